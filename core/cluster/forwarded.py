"""Checks what another node has forwarded, and joins the outcomes of the parts of a request.

Sans-I/O.  A forwarded proposal is taken like a record of the log: every size, the content's hashes
and every row are checked, so what is wrong is refused here and never logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import foreign, stage
from meterd.core.staging import Refusals, partitions_of
from meterd.protocol import log_format
from meterd.protocol.body import Bytes
from meterd.protocol.errors import REASONS, UNKNOWN
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.log_format import META_GROUP, SLICE_SIZE, Damaged

# What nodes forward to each other: events, and commands that somebody waits for.
KINDS = (log_format.EVENTS, log_format.META, log_format.ACCOUNT)
META_KEYS = {"kind", "slices", "row_count", "heap_size", "registry_version"}
NUMBER_MAX = (1 << 32) - 1
CODES_MAX = 100_000
ROWS_MAX = 1 << 20
REQUESTS_MAX = 1 << 16
REASON_COUNT = len(REASONS)


def check_proposal(meta: Bytes, payload: Bytes) -> dict[str, Any]:
    """Return the fields of a forwarded proposal, or raise Damaged."""
    fields = _unpacked(meta, dict)
    if fields.keys() != META_KEYS or type(fields["slices"]) is not bytes:
        raise Damaged(0, "what belongs to a proposal is missing")
    numbers = [fields[key] for key in sorted(META_KEYS - {"slices"})]
    if any(type(n) is not int or not 0 <= n <= NUMBER_MAX for n in numbers):
        raise Damaged(0, "a field of a proposal is no number of 32 bits")
    slices = fields["slices"]
    if fields["kind"] not in KINDS or not slices or len(slices) % SLICE_SIZE:
        raise Damaged(0, "a proposal of this kind or with these slices is not forwarded")
    table = _check_slices(fields, np.frombuffer(slices, log_format.SLICE))
    events = fields["kind"] == log_format.EVENTS
    row_count, heap_size = fields["row_count"], fields["heap_size"]
    layout = log_format.payload_layout(row_count, heap_size)
    if len(payload) != (layout.size if events else log_format.padded(heap_size)):
        raise Damaged(0, "a payload of another size")
    content = np.frombuffer(payload, np.uint8)
    if foreign.first_bad_content(table, content, layout[:6], events) >= 0:
        raise Damaged(0, "the content of a slice is not what its hash says")
    if events:
        columns = log_format.columns_of(row_count, heap_size, payload)
        row = foreign.first_bad_row(table, columns.heap_end, columns.operation, columns.heap)
        if row >= 0:
            raise Damaged(0, f"row {row} is not what the slice table and heap_end say")
    return fields


def _check_slices(fields: dict[str, Any], table: NDArray[np.void]) -> NDArray[np.void]:
    """Check that slices which nobody has ordered yet describe a proposal of this kind."""
    groups = table["partition"].astype(np.int64)
    if table["flags"].any() or table["index"].any() or table["term"].any():
        raise Damaged(0, "slices that nobody has ordered have neither index, term nor flags")
    if fields["kind"] != log_format.EVENTS:
        is_meta = fields["kind"] == log_format.META
        if fields["row_count"] or len(table) != 1 or groups[0] > META_GROUP:
            raise Damaged(0, "a command lies in one group")
        if is_meta != (groups[0] == META_GROUP):
            raise Damaged(0, "a command of this kind does not belong into this group")
        return table
    counts, sizes = table["count"].astype(np.int64), table["heap_size"].astype(np.int64)
    if (groups >= META_GROUP).any() or (np.diff(groups) <= 0).any() or not counts.all():
        raise Damaged(0, "slices of events are not in order")
    if (int(counts.sum()), int(sizes.sum())) != (fields["row_count"], fields["heap_size"]):
        raise Damaged(0, "slices of events do not add up")
    if fields["row_count"] > ROWS_MAX or fields["heap_size"] > log_format.RECORD_SIZE_MAX:
        raise Damaged(0, "more events than a record holds")
    return table


class PartOrigin(NamedTuple):
    """What the leader must know of the rows of a part, and only if some of them were refused."""

    request_of_row: bytes
    row_of_row: bytes
    refused: list[Any] | None  # rows, heap, codes, as in an origin


def encode_part_origin(
    request_of_row: NDArray[np.uint16], row_of_row: NDArray[np.uint16], refusals: Refusals | None
) -> bytes:
    """Return what goes with a forwarded part: nothing when none of its rows was refused."""
    if refusals is None:
        return b""
    refused = [refusals.rows.tobytes(), refusals.heap.tobytes(), refusals.codes]
    frame: bytes = msgpack.packb([request_of_row.tobytes(), row_of_row.tobytes(), refused])
    return frame


def check_part_origin(frame: Bytes, row_count: int) -> PartOrigin:
    """Return what `encode_part_origin` wrote, or raise Damaged."""
    if len(frame) == 0:
        return PartOrigin(b"", b"", None)
    parts = _unpacked(frame, list)
    if len(parts) != 3 or type(parts[2]) is not list or len(parts[2]) != 3:
        raise Damaged(0, "what belongs to refused rows is missing")
    request_of_row, row_of_row, (raw, heap, codes) = parts
    if any(type(one) is not bytes for one in (request_of_row, row_of_row, raw, heap)):
        raise Damaged(0, "what belongs to refused rows is no bytes")
    sizes = {len(request_of_row), len(row_of_row)}
    if sizes != {2 * row_count} or len(raw) % (8 * stage.ROW_WORDS) or not raw:
        raise Damaged(0, "the sizes of refused rows are wrong")
    if (
        type(codes) is not list
        or len(codes) > CODES_MAX
        or any(type(c) is not bytes for c in codes)
    ):
        raise Damaged(0, "the codes of refused rows are wrong")
    rows = np.frombuffer(raw, np.int64).reshape(-1, stage.ROW_WORDS)
    # numpy lays columns that were chosen out in another way when there are several rows.
    places = np.ascontiguousarray(rows[:, [stage.ENTRY_START, stage.ENTRY_END, stage.METRIC]])
    bad = foreign.first_bad_refusal(places, np.frombuffer(heap, np.uint8), len(codes))
    numbers = rows[:, [stage.REQUEST, stage.ROW]]
    in_bounds = (numbers >= 0).all() and (numbers < REQUESTS_MAX).all()
    if bad >= 0 or not in_bounds or (partitions_of(rows) >= PARTITION_COUNT).any():
        raise Damaged(0, f"a refused row is not what it says ({bad})")
    return PartOrigin(request_of_row, row_of_row, parts[2])


def encode_outcome(outcome: NDArray[np.uint8], judged: NDArray[np.uint8] | None) -> bytes:
    """Return what became of a part's rows, and of those refused: nothing when all are stored."""
    if judged is None and not outcome.any():
        return b""
    frame: bytes = msgpack.packb(
        [
            outcome.tobytes() if outcome.any() else b"",
            b"" if judged is None else judged.tobytes(),
        ]
    )
    return frame


def join_outcomes(
    sizes: Sequence[tuple[int, int]], bodies: Sequence[Bytes | None]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return what became of all rows, and of all refused ones, in the order of the parts.

    sizes: rows and refused rows of each part.  What is not known, or makes no sense, is UNKNOWN:
    never that it was not stored.
    """
    rows, refused = [], []
    for (row_count, refused_count), body in zip(sizes, bodies, strict=True):
        outcome, judged = _outcome_of(body, row_count, refused_count)
        rows.append(outcome)
        refused.append(judged)
    none = np.zeros(0, np.uint8)
    return np.concatenate([none, *rows]), np.concatenate([none, *refused])


def _outcome_of(
    body: Bytes | None, row_count: int, refused_count: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    unknown = np.full(row_count, UNKNOWN, np.uint8), np.full(refused_count, UNKNOWN, np.uint8)
    if body is None:
        return unknown
    if len(body) == 0:
        return np.zeros(row_count, np.uint8), unknown[1]
    try:
        outcome, judged = _unpacked(body, list)
    except (Damaged, ValueError):
        return unknown
    if outcome == b"":
        outcome = bytes(row_count)
    for raw, count in ((outcome, row_count), (judged, refused_count)):
        if type(raw) is not bytes or len(raw) != count or not _known(np.frombuffer(raw, np.uint8)):
            return unknown
    return np.frombuffer(outcome, np.uint8), np.frombuffer(judged, np.uint8)


def _known(outcomes: NDArray[np.uint8]) -> bool:
    """Are these statuses and reasons that there are?"""
    return bool(((outcomes & 0xF) <= UNKNOWN).all() and ((outcomes >> 4) < REASON_COUNT).all())


def _unpacked(frame: Bytes, kind: type) -> Any:
    try:
        found = msgpack.unpackb(frame)
    except (ValueError, msgpack.UnpackException) as error:
        raise Damaged(0, f"not msgpack: {error!s:.100}") from None
    if type(found) is not kind:
        raise Damaged(0, "not of the form that nodes forward")
    return found
