"""Leads the outcomes of a record's rows back to the requests they came from.

Almost always every row is stored, and a request's answer is a handful of counts; only other rows
are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import UUID

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.actors.frames.sockets import Frame
from meterd.core.kernels import stage
from meterd.core.staging import Packed, Refusals
from meterd.protocol import log_format
from meterd.protocol.errors import REASONS, REJECTED, STATUSES
from meterd.protocol.event_columns import EventColumns, text_rows
from meterd.protocol.limits import ACCOUNT_SIZE_MAX, ID_SIZE_MAX, UUID_SIZE
from meterd.protocol.log_format import Record
from meterd.protocol.result import IngestResult, Item

# Refused events of one record that are kept; more say nothing new.
REFUSED_PER_RECORD_MAX = 100
STATUS_MASK = 0xF
REASON_SHIFT = 4


class Reply(NamedTuple):
    """Who has split the requests that a proposal is a part of."""

    node: int  # 0: this one
    token: bytes


class Wait(NamedTuple):
    """How long usage waits for the outcome of requests of which one node leads all."""

    due: float  # monotonic seconds
    groups: list[int]


class Origin(NamedTuple):
    """Where the rows of a proposal came from."""

    began: float  # monotonic seconds, when ingest took the first of them
    # (rid, request id, events, [(row, reason) without an identity], is only `accepted` told?)
    requests: list[Any]
    request_of_row: NDArray[np.uint16]
    row_of_row: NDArray[np.uint16]
    refusals: Refusals | None
    reply: Reply | None = None  # of a part of what a node has split: who waits for its outcome
    wait: Wait | None = None  # of requests that are not split, in a cluster


# The origin of a command that nobody asked for.
NO_REQUESTS: bytes = msgpack.packb([])


def encode_origin(
    began: float,
    requests: list[Any],
    packed: Packed,
    reply: Reply | None = None,
    wait: Wait | None = None,
) -> bytes:
    """Return what goes with a proposal of events as one frame."""
    refusals = packed.refusals
    refused = None
    if refusals is not None:
        refused = [refusals.rows.tobytes(), refusals.heap.tobytes(), refusals.codes]
    rows = packed.request_of_row.tobytes(), packed.row_of_row.tobytes()
    waits = [] if reply is None or wait is None else [list(reply), list(wait)]
    frame: bytes = msgpack.packb([began, requests, *rows, refused, *waits])
    return frame


def encode_own_part(token: bytes, packed: Packed) -> bytes:
    """Return what goes with a part that this node leads of what it has split."""
    refusals = packed.refusals
    if refusals is None:
        return encode_part(Reply(0, token), b"", b"", None)
    refused = [refusals.rows.tobytes(), refusals.heap.tobytes(), refusals.codes]
    return encode_part(
        Reply(0, token), packed.request_of_row.tobytes(), packed.row_of_row.tobytes(), refused
    )


def encode_part(
    reply: Reply, request_of_row: bytes, row_of_row: bytes, refused: list[Any] | None
) -> bytes:
    """Return what goes with a part of split requests as one frame."""
    frame: bytes = msgpack.packb([0.0, [], request_of_row, row_of_row, refused, list(reply)])
    return frame


def parse_origin(frame: Frame) -> Origin:
    """Read what `encode_origin` or `encode_part` wrote."""
    began, requests, request_of_row, row_of_row, refused, *reply = msgpack.unpackb(frame)
    refusals = None
    if refused is not None:
        rows = np.frombuffer(refused[0], np.int64).reshape(-1, stage.ROW_WORDS)
        refusals = Refusals(rows, np.frombuffer(refused[1], np.uint8), refused[2])
    return Origin(
        began,
        requests,
        np.frombuffer(request_of_row, np.uint16),
        np.frombuffer(row_of_row, np.uint16),
        refusals,
        Reply(*reply[0]) if reply else None,
        Wait(*reply[1]) if len(reply) > 1 else None,
    )


def asked_of(record: Record, frame: Frame) -> Any:
    """Return who asked for a record, of a command as it came; None when nobody did."""
    if not frame:
        return None
    if record.kind == log_format.EVENTS:
        return parse_origin(frame)
    return frame if record.kind in log_format.COMMANDS else None


def encode_command_part(reply: Reply) -> bytes:
    """Return what goes with a command that is a part of what a node has split."""
    frame: bytes = msgpack.packb(reply._asdict())
    return frame


def parse_command_origin(frame: Frame) -> tuple[Reply | None, list[Any]]:
    """Return who waits for the outcome of a command, or its requests: (rid, request id, kind)."""
    found = msgpack.unpackb(frame)
    if isinstance(found, dict):
        return Reply(**found), []
    return None, found


def results(
    origin: Origin, outcome: NDArray[np.uint8], judged: NDArray[np.uint8] | None
) -> Iterator[tuple[bytes, int, bool, IngestResult]]:
    """Yield (rid, request id, is only `accepted` told?, result) of every request of a record."""
    items: dict[int, list[Item]] = {}
    for i in outcome.nonzero()[0].tolist():
        number = int(origin.request_of_row[i])
        items.setdefault(number, []).append(_item(int(origin.row_of_row[i]), int(outcome[i])))
    if origin.refusals is not None and judged is not None:
        rows = origin.refusals.rows
        for i, (request, row) in enumerate(rows[:, [stage.REQUEST, stage.ROW]].tolist()):
            items.setdefault(request, []).append(_item(row, int(judged[i])))
    for number, (rid, request_id, count, faults, accepts) in enumerate(origin.requests):
        mine = items.get(number, [])
        if faults:
            mine += [(row, STATUSES[REJECTED], REASONS[reason]) for row, reason in faults]
        yield rid, request_id, accepts, _result(count, mine)


def as_accepted(result: IngestResult) -> IngestResult:
    """Return what an `async` request is told: that events are taken, not what they are."""
    items = [item for item in result.items if item[1] in ("rejected", "unknown")]
    return IngestResult(
        result.received,
        rejected=result.rejected,
        unknown=result.unknown,
        accepted=result.stored + result.duplicate + result.conflict,
        items=items,
    )


def _item(row: int, outcome: int) -> Item:
    return row, STATUSES[outcome & STATUS_MASK], REASONS[outcome >> REASON_SHIFT]


def _result(count: int, items: list[Item]) -> IngestResult:
    if not items:
        return IngestResult(count, count)
    items.sort()
    counts = dict.fromkeys(STATUSES, 0)
    for _, status, _ in items:
        counts[status] += 1
    return IngestResult(
        count,
        count - len(items),
        counts["duplicate"],
        counts["conflict"],
        counts["rejected"],
        counts["unknown"],
        items=items,
    )


def in_order(
    origin: Origin,
    record: Record,
    outcome: NDArray[np.uint8],
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Return what refused rows are, given what they were before and after their record was applied.

    The two differ for a row whose identity this record entered: it is known to the row only if the
    event that entered it came first.
    """
    refusals = origin.refusals
    changed = np.flatnonzero(before != after).tolist()
    if refusals is None or not changed:
        return after
    heap, ends = log_format.columns(record).heap, log_format.columns(record).heap_end.tolist()
    places = list(zip(origin.request_of_row.tolist(), origin.row_of_row.tolist(), strict=True))
    entered: dict[bytes, tuple[int, int]] = {}
    for i in np.flatnonzero(outcome == 0).tolist():
        entered[_identity(heap, ends[i - 1] if i else 0)] = places[i]
    judged = after.copy()
    for i in changed:
        row = refusals.rows[i]
        key = _identity(refusals.heap, int(row[stage.ENTRY_START]))
        if entered.get(key, (-1, -1)) > (int(row[stage.REQUEST]), int(row[stage.ROW])):
            judged[i] = before[i]
    return judged


def _identity(heap: NDArray[np.uint8], start: int) -> bytes:
    """Return the bytes of a heap entry that name its event: account and id, with their sizes."""
    end = start + 2 + int(heap[start]) + (int(heap[start + 1]) or UUID_SIZE)
    return heap[start:end].tobytes()


def refused_events(
    origin: Origin,
    outcome: NDArray[np.uint8],
    judged: NDArray[np.uint8] | None,
    record: Record | None,
) -> list[dict[str, Any]]:
    """Return rejected events of a record as plain values for `refused.log`, a bounded number."""
    events: list[dict[str, Any]] = []
    if record is not None:
        columns = log_format.columns(record)
        rejected = np.flatnonzero((outcome & STATUS_MASK) == REJECTED)
        for i in rejected[:REFUSED_PER_RECORD_MAX].tolist():
            start = int(columns.heap_end[i - 1]) if i else 0
            events.append(
                {
                    "metric": int(columns.metric[i]),
                    "timestamp": int(columns.timestamp[i]),
                    "value": int(columns.value[i]),
                    "reason": REASONS[int(outcome[i]) >> REASON_SHIFT],
                    **_names(columns.heap, start),
                }
            )
    if origin.refusals is not None and judged is not None:
        rows, heap, codes = origin.refusals.rows, origin.refusals.heap, origin.refusals.codes
        rejected = np.flatnonzero((judged & STATUS_MASK) == REJECTED)
        for i in rejected[:REFUSED_PER_RECORD_MAX].tolist():
            events.append(
                {
                    "metric": codes[int(rows[i, stage.METRIC])].decode("utf-8", "replace"),
                    "timestamp": int(rows[i, stage.TIMESTAMP]),
                    "value": int(rows[i, stage.VALUE]),
                    "exponent": int(rows[i, stage.FLAGS]) >> 8 & 0xFF,
                    "reason": REASONS[int(judged[i]) >> REASON_SHIFT],
                    **_names(heap, int(rows[i, stage.ENTRY_START])),
                }
            )
    return events


def nameless_events(columns: EventColumns, faults: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return events refused for their account or id as plain values for `refused.log`.

    faults: (row, reason) of those.  What is too long is cut.
    """
    events = []
    accounts = text_rows(columns.account)
    ids = text_rows(columns.id) if columns.id is not None else None
    for row, reason in faults[:REFUSED_PER_RECORD_MAX]:
        named = str(UUID(bytes=columns.uuid[row].tobytes())) if columns.uuid is not None else ""
        events.append(
            {
                "metric": columns.metric_codes[int(columns.metric_index[row])].decode(
                    "utf-8", "replace"
                ),
                "timestamp": int(columns.timestamp[row]),
                "value": int(columns.value[row]),
                "exponent": int(columns.exponent[row]),
                "reason": REASONS[reason],
                "account": accounts[row][:ACCOUNT_SIZE_MAX].decode("utf-8", "replace"),
                "id": named if ids is None else ids[row][:ID_SIZE_MAX].decode("utf-8", "replace"),
            }
        )
    return events


def _names(heap: NDArray[np.uint8], start: int) -> dict[str, str]:
    """Return account and id of a heap entry."""
    account_end = start + 2 + int(heap[start])
    id_size = int(heap[start + 1])
    raw = heap[account_end : account_end + (id_size or UUID_SIZE)].tobytes()
    return {
        "account": heap[start + 2 : account_end].tobytes().decode(),
        "id": raw.decode() if id_size else str(UUID(bytes=raw)),
    }
