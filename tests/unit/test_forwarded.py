"""What another node forwards is taken only when every byte of it is right."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from meterd.core.cluster.forwarded import (
    check_part_origin,
    check_proposal,
    encode_outcome,
    encode_part_origin,
    join_outcomes,
)
from meterd.core.cluster.proposals import slices_of
from meterd.core.staging import Packed
from meterd.protocol import log_format
from meterd.protocol.errors import CONFLICT, DUPLICATE, REJECTED, UNKNOWN
from meterd.protocol.log_format import Damaged
from tests.support.pipeline import Pipeline

NOW = 1_800_000_000_000_000_000
LEADERS = (np.arange(256) % 3 + 1).astype(np.uint8)


def staged(count: int = 60) -> list[tuple[int, Packed]]:
    """Events of many accounts, every seventh of an unknown metric, packed by leader."""
    pipeline = Pipeline()
    pipeline.put(NOW, {"code": "calls", "aggregation": "sum", "decimals": 2})
    columns = [
        {
            "account": f"account-{n}",
            "metric": "calls" if n % 7 else "unknown",
            "id": f"event-{n}",
            "timestamp": NOW + n,
            "value": n,
            "properties": {"region": "eu"} if n % 2 else {},
        }
        for n in range(count)
    ]
    from meterd.protocol.columns import decode_events

    assert pipeline.stage.add(decode_events(msgpack.packb({"events": columns}), None), 0) == []
    return pipeline.stage.pack_parts(LEADERS)


def meta_of(packed: Packed) -> dict[str, Any]:
    return {
        "kind": log_format.EVENTS,
        "slices": packed.slices.tobytes(),
        "row_count": packed.row_count,
        "heap_size": packed.heap_size,
        "registry_version": 1,
    }


def test_what_ingest_packs_is_taken() -> None:
    parts = staged()
    assert [node for node, _ in parts] == [1, 2, 3]
    for _, packed in parts:
        meta = meta_of(packed)
        assert check_proposal(msgpack.packb(meta), packed.payload.tobytes()) == meta
        assert packed.refusals is not None
        frame = encode_part_origin(packed.request_of_row, packed.row_of_row, packed.refusals)
        found = check_part_origin(frame, packed.row_count)
        assert found.request_of_row == packed.request_of_row.tobytes()
        assert found.refused == [
            packed.refusals.rows.tobytes(),
            packed.refusals.heap.tobytes(),
            packed.refusals.codes,
        ]


def test_a_flipped_bit_anywhere_but_in_padding_is_refused() -> None:
    _, packed = staged(12)[0]
    meta, payload = meta_of(packed), packed.payload.tobytes()
    layout = log_format.payload_layout(packed.row_count, packed.heap_size)
    ends = [layout.heap_end + 4 * packed.row_count, layout.metric + 2 * packed.row_count]
    ends += [layout.operation + packed.row_count, layout.heap + packed.heap_size]
    starts = [0, layout.metric, layout.operation, layout.heap]
    for start, end in zip(starts, ends, strict=True):
        for at in range(start, end):
            wrong = bytearray(payload)
            wrong[at] ^= 1 << at % 8
            with pytest.raises(Damaged):
                check_proposal(msgpack.packb(meta), bytes(wrong))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 2},
        {"kind": 32},
        {"row_count": 5},
        {"heap_size": 5},
        {"slices": b""},
        {"slices": bytes(39)},
        {"slices": bytes(40)},
        {"registry_version": -1},
        {"registry_version": 1 << 32},
        {"registry_version": "1"},
        {"more": 1},
    ],
)
def test_a_proposal_that_says_something_else_is_refused(change: dict[str, Any]) -> None:
    _, packed = staged()[0]
    with pytest.raises(Damaged):
        check_proposal(msgpack.packb(meta_of(packed) | change), packed.payload.tobytes())


def test_slices_in_another_order_or_partition_are_refused() -> None:
    _, packed = staged()[0]
    for change in ("swap", "partition", "index"):
        slices = packed.slices.copy()
        if change == "swap":
            slices[[0, 1]] = slices[[1, 0]]
        elif change == "partition":
            slices[0, 0] += np.uint64(1)
        else:
            slices[0, 1] = 7
        meta = meta_of(packed) | {"slices": slices.tobytes()}
        with pytest.raises(Damaged):
            check_proposal(msgpack.packb(meta), packed.payload.tobytes())


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x90", msgpack.packb([1, 2, 3]), b"\x80"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(Damaged):
        check_proposal(junk, b"")
    if junk:
        with pytest.raises(Damaged):
            check_part_origin(junk, 0)


def test_refused_rows_that_point_elsewhere_are_refused() -> None:
    _, packed = staged()[0]
    assert packed.refusals is not None
    for column in range(8):
        rows = packed.refusals.rows.copy()
        rows[0, column] = 1 << 40
        refused = [rows.tobytes(), packed.refusals.heap.tobytes(), packed.refusals.codes]
        maps = packed.request_of_row.tobytes(), packed.row_of_row.tobytes()
        frame = msgpack.packb([*maps, refused])
        if column in (0, 1, 3):  # what the event says; no place
            check_part_origin(frame, packed.row_count)
            continue
        with pytest.raises(Damaged):
            check_part_origin(frame, packed.row_count)


def test_a_refused_row_of_no_partition_is_refused() -> None:
    _, packed = staged()[0]
    assert packed.refusals is not None
    rows = packed.refusals.rows.copy()
    rows[0, 3] |= 0xFFFF << 24
    refused = [rows.tobytes(), packed.refusals.heap.tobytes(), packed.refusals.codes]
    maps = packed.request_of_row.tobytes(), packed.row_of_row.tobytes()
    with pytest.raises(Damaged):
        check_part_origin(msgpack.packb([*maps, refused]), packed.row_count)


def test_commands_belong_into_one_group_of_their_kind() -> None:
    body = msgpack.packb({"op": "metric_delete", "code": "calls"})
    payload = body.ljust(log_format.padded(len(body)), b"\0")
    for kind, group, good in ((3, 256, True), (3, 7, False), (4, 7, True), (4, 256, False)):
        kind = {3: log_format.META, 4: log_format.ACCOUNT}[kind]
        meta = {
            "kind": kind,
            "slices": bytes(slices_of([group], payload)),
            "row_count": 0,
            "heap_size": len(body),
            "registry_version": 1,
        }
        if good:
            check_proposal(msgpack.packb(meta), payload)
            continue
        with pytest.raises(Damaged):
            check_proposal(msgpack.packb(meta), payload)


def test_outcomes_are_joined_and_what_is_missing_is_unknown() -> None:
    outcome = np.array([0, DUPLICATE], np.uint8)
    judged = np.array([REJECTED | 3 << 4], np.uint8)
    sizes = [(2, 1), (2, 0), (1, 1), (0, 1)]
    bodies = [
        encode_outcome(outcome, judged),
        encode_outcome(np.zeros(2, np.uint8), None),
        None,
        encode_outcome(np.zeros(0, np.uint8), np.array([CONFLICT], np.uint8)),
    ]
    assert bodies[1] == b""
    rows, refused = join_outcomes(sizes, bodies)
    assert rows.tolist() == [0, DUPLICATE, 0, 0, UNKNOWN]
    assert refused.tolist() == [REJECTED | 3 << 4, UNKNOWN, CONFLICT]


@pytest.mark.parametrize(
    "body",
    [b"\xc1", b"\x90", msgpack.packb([b"\0", b""]), msgpack.packb([b"\x09\0", b"\0"]), b"\x80"],
)
def test_an_outcome_that_makes_no_sense_is_unknown(body: bytes) -> None:
    rows, refused = join_outcomes([(2, 1)], [body])
    assert rows.tolist() == [UNKNOWN] * 2 and refused.tolist() == [UNKNOWN]
