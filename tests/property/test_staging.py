"""Staging and packing against a plain-Python rule for every row, read back as the log reads it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from uuid import UUID

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.client.partitions import partition_of
from meterd.core.kernels import stage as kernels
from meterd.core.log.scan import Groups, verify_chain
from meterd.core.questions.zones import UTC
from meterd.core.staging import Refusals, Stage
from meterd.core.state.registry import Registry
from meterd.protocol import log_format
from meterd.protocol.errors import REASONS
from meterd.protocol.event_columns import ABSENT, EventColumns, PropertyColumn, text_column
from meterd.protocol.metric import MetricDefinition
from tests.support.pipeline import KEY, proposal_of
from tests.support.replica import Replica

SPLIT = 1_000
# code → decimals of each version; the second begins at SPLIT.
CODES = {"whole": [0], "cents": [2, 4], "atoms": [9], "gone": [2]}
KEYS = [f"k{n:02}" for n in range(35)]


def registry() -> Registry:
    made = Registry()
    for code, versions in CODES.items():
        for decimals in versions:
            fields = {"code": code, "aggregation": "sum", "decimals": decimals}
            made.put(MetricDefinition.from_map(fields), UTC, True, SPLIT)
    made.delete("gone")
    return made


REGISTRY = registry()
CANONICAL = str(UUID(int=0x0123456789ABCDEF0123456789ABCDEF))
texts = (
    st.sampled_from([b"", b"a", b"a/b", b"a/c", b"\xff", b"\xc3", b"\xed\xa0\x80", b"x" * 128])
    | st.sampled_from(
        [b"x" * 129, "é".encode() * 64, "𐍈/ü".encode(), b"12345678/9", b"x" * 127 + b"\xc3"]
    )
    | st.text(max_size=20).map(str.encode)
    | st.binary(max_size=12)
)
near_uuids = [
    CANONICAL,
    CANONICAL.upper(),
    CANONICAL.replace("-", "_"),
    "{" + CANONICAL[1:],
    CANONICAL[:-1] + "g",
    CANONICAL[:-1],
    CANONICAL.replace("-", ""),
]
ids = texts | st.sampled_from(near_uuids).map(str.encode)
values = st.sampled_from([0, 1, 150, -150, 10**18, 2**63 - 1, -(2**63), 9223372036854775800]) | (
    st.integers(-(2**63), 2**63 - 1)
)


@dataclass(frozen=True)
class Row:
    """One event as the decoders hand it over."""

    account: bytes
    id: bytes
    code: str
    timestamp: int
    value: int
    exponent: int
    operation: int
    reason: int
    properties: dict[str, bytes]


rows = st.builds(
    Row,
    texts,
    ids,
    st.sampled_from([*CODES, "cents", "unknown"]),
    st.sampled_from([-(2**63), SPLIT - 1, SPLIT, SPLIT + 1, 2**63 - 1]),
    values,
    st.integers(0, 18),
    st.integers(0, 2),
    st.sampled_from([0] * 8 + [REASONS.index(name) for name in ("bad_value", "bad_timestamp")])
    | st.sampled_from([REASONS.index(name) for name in ("bad_account", "bad_id", "bad_metric")]),
    st.dictionaries(st.sampled_from(KEYS[:3]), st.sampled_from([b"", b"eu", b"\xc3\xa9" * 127]))
    | st.integers(30, 35).map(lambda n: dict.fromkeys(KEYS[:n], b"v")),
)


def columns_of(batch: list[Row], as_uuid: bool) -> EventColumns:
    n = len(batch)
    codes = list(dict.fromkeys(row.code for row in batch))
    properties = []
    for key in sorted({key for row in batch for key in row.properties}):
        held = sorted({row.properties[key] for row in batch if key in row.properties})
        index = [held.index(r.properties[key]) if key in r.properties else ABSENT for r in batch]
        column = PropertyColumn(key.encode(), text_column(held), np.array(index, np.uint32))
        properties.append(column)
    return EventColumns(
        n,
        np.array([row.timestamp for row in batch], np.int64),
        np.array([row.value for row in batch], np.int64),
        np.array([row.exponent for row in batch], np.uint8),
        [code.encode() for code in codes],
        np.array([codes.index(row.code) for row in batch], np.uint16),
        text_column([row.account for row in batch]),
        None if as_uuid else text_column([row.id for row in batch]),
        np.array([list(uuid_of(row)) for row in batch], np.uint8) if as_uuid else None,
        np.array([row.operation for row in batch], np.uint8),
        properties,
        np.array([row.reason for row in batch], np.uint8),
        "sync",
    )


def uuid_of(row: Row) -> bytes:
    return row.id[:16].ljust(16, b"u")


def is_text(raw: bytes) -> bool:
    try:
        return 1 <= len(raw) <= 128 and bool(raw.decode())
    except UnicodeDecodeError:
        return False


def canonical_uuid(raw: bytes) -> bytes | None:
    try:
        found = UUID(raw.decode())
    except ValueError:
        return None
    return found.bytes if str(found).encode() == raw else None


def entry_of(row: Row, as_uuid: bool) -> bytes:
    """The heap entry as docs/STORAGE.md has it; without properties when there are too many."""
    raw = uuid_of(row) if as_uuid else canonical_uuid(row.id)
    identity = (0, raw) if raw is not None else (len(row.id), row.id)
    entry = bytes([len(row.account), identity[0]]) + row.account + identity[1]
    if len(row.properties) > 32:
        return entry + b"\0"
    entry += bytes([len(row.properties)])
    for key, value in sorted(row.properties.items()):
        entry += bytes([len(key)]) + key.encode() + bytes([len(value)]) + value
    return entry


def fault_of(row: Row, as_uuid: bool) -> str:
    if row.reason == REASONS.index("bad_account") or not is_text(row.account):
        return "bad_account"
    if row.reason == REASONS.index("bad_id") or (not as_uuid and not is_text(row.id)):
        return "bad_id"
    return ""


def staged_as(row: Row) -> tuple[str, int, int]:
    """(reason, metric number, value in its units) of a row with an identity."""
    if row.reason:
        return REASONS[row.reason], 0, 0
    if len(row.properties) > 32:
        return "bad_properties", 0, 0
    entry = REGISTRY.select(row.code, row.timestamp)
    if entry is None:
        return "unknown_metric", 0, 0
    units = Fraction(row.value, 10**row.exponent) * 10**entry.definition.decimals
    if units.denominator != 1 or not -(2**63) <= units < 2**63:
        return "bad_value", 0, 0
    return "", entry.number, int(units)


requests_of_rows = st.lists(
    st.tuples(st.lists(rows, min_size=1, max_size=12), st.booleans()), min_size=1, max_size=4
)


@settings(max_examples=200, deadline=None)
@given(requests_of_rows)
def test_every_row_lands_where_the_rule_says(requests):
    stage, staged, refused = staged_requests(requests)
    packed = stage.pack()
    assert stage.empty
    check_refused(packed.refusals, refused)
    assert packed.row_count == len(staged)
    if staged:
        check_record(stage, packed, staged)


@settings(max_examples=100, deadline=None)
@given(requests_of_rows, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_each_leader_gets_its_rows_and_what_was_refused_of_its_partitions(requests, nodes):
    stage, staged, refused = staged_requests(requests)
    if stage.empty:
        return
    leaders = np.array([nodes[p % 4] for p in range(257)], np.uint8)
    parts = stage.pack_parts(leaders)
    assert stage.empty
    taken = [node for node, _ in parts]
    assert taken == sorted({leader_of(one, leaders) for one in staged + refused})
    for node, packed in parts:
        check_refused(packed.refusals, [one for one in refused if leader_of(one, leaders) == node])
        led = [one for one in staged if leader_of(one, leaders) == node]
        assert packed.row_count == len(led)
        if led:
            check_record(stage, packed, led)


def leader_of(one: Any, leaders: Any) -> int:
    return int(leaders[partition_of(one[2].account.decode())])


def staged_requests(requests: Any) -> tuple[Stage, list[Any], list[Any]]:
    """A stage that has taken these requests, and what should be staged and refused of them."""
    stage = Stage(64, KEY)
    stage.use(REGISTRY)
    staged, refused = [], []
    for number, (batch, as_uuid) in enumerate(requests):
        faults = stage.add(columns_of(batch, as_uuid), number)
        wanted = []
        for place, row in enumerate(batch):
            fault = fault_of(row, as_uuid)
            if fault:
                wanted.append((place, REASONS.index(fault)))
            elif staged_as(row)[0]:
                refused.append((number, place, row, as_uuid))
            else:
                staged.append((number, place, row, as_uuid))
        assert faults == wanted
        assert stage.refused_rows(number) == [
            (place, REASONS.index(staged_as(row)[0])) for n, place, row, _ in refused if n == number
        ]
    assert stage.empty == (not staged and not refused)
    return stage, staged, refused


def check_refused(refusals: Refusals | None, wanted: list[Any]) -> None:
    """Refused rows keep their order and everything that their identity and content need."""
    if refusals is None:
        assert not wanted
        return
    assert len(refusals.rows) == len(wanted)
    for found, (number, place, row, as_uuid) in zip(refusals.rows.tolist(), wanted, strict=True):
        flags = found[kernels.FLAGS]
        assert (found[kernels.REQUEST], found[kernels.ROW]) == (number, place)
        assert REASONS[flags >> 16 & 0xFF] == staged_as(row)[0]
        comparable = row.reason == 0 and len(row.properties) <= 32
        assert bool(flags & kernels.NOT_COMPARABLE) != comparable
        entry = refusals.heap[found[kernels.ENTRY_START] : found[kernels.ENTRY_END]]
        assert entry.tobytes() == entry_of(row, as_uuid)
        assert refusals.codes[found[kernels.METRIC]] == row.code.encode()
        assert (found[kernels.TIMESTAMP], found[kernels.VALUE]) == (row.timestamp, row.value)
        assert (flags >> 8 & 0xFF, flags & 0xFF) == (row.exponent, row.operation)


def check_record(stage: Stage, packed: Any, staged: list[Any]) -> None:
    """Rows lie by partition in the order they came, and lead back to their requests."""
    append = Replica(Groups()).propose(proposal_of(packed, stage), 5)
    record = log_format.parse_frames(append.head, append.payload)
    verify_chain(record, Groups())
    Groups().follow(record)
    columns = log_format.columns(record)
    wanted = sorted(staged, key=lambda one: partition_of(one[2].account.decode()))
    counts: dict[int, int] = {}
    start = 0
    for i, (number, place, row, as_uuid) in enumerate(wanted):
        _, metric, units = staged_as(row)
        assert (packed.request_of_row[i], packed.row_of_row[i]) == (number, place)
        assert (columns.timestamp[i], columns.value[i]) == (row.timestamp, units)
        assert (columns.metric[i], columns.operation[i]) == (metric, row.operation)
        end = int(columns.heap_end[i])
        assert columns.heap[start:end].tobytes() == entry_of(row, as_uuid)
        start = end
        partition = partition_of(row.account.decode())
        counts[partition] = counts.get(partition, 0) + 1
    assert start == record.heap_size
    slices = record.slices
    assert dict(zip(slices["partition"].tolist(), slices["count"].tolist(), strict=True)) == counts
    assert slices["index"].tolist() == [1] * len(counts)


@given(st.lists(st.binary(max_size=10) | st.text(max_size=12).map(str.encode), min_size=1))
def test_utf8_is_what_python_takes(accounts):
    batch = [Row(raw, b"i", "whole", 0, 1, 0, 0, 0, {}) for raw in accounts]
    stage = Stage(64, KEY)
    stage.use(REGISTRY)
    faults = stage.add(columns_of(batch, False), 0)
    bad = REASONS.index("bad_account")
    assert faults == [(n, bad) for n, raw in enumerate(accounts) if not is_text(raw)]
