"""A slice that is cut out of its record is the same op: same rows, same content, same digest."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.kernels import chain, stage
from meterd.core.log.record_cut import cut
from meterd.core.log.scan import Groups, verify_chain
from meterd.protocol import log_format
from meterd.protocol.log_format import (
    EVENTS,
    META,
    META_GROUP,
    SLICE,
    Damaged,
    Record,
    RecordFields,
)
from meterd.protocol.raft_records import head_of
from tests.support.log_builder import LoggedEvent, columns

TERM = 7

events = st.builds(
    LoggedEvent,
    st.sampled_from(["a", "a/b", "ab", "ä/ö", "x" * 128]),
    st.uuids().map(str) | st.text("xyz", min_size=1, max_size=9),
    st.integers(0, 65_535),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["none", "add", "remove"]),
    st.dictionaries(st.sampled_from(["k", "region"]), st.text("uü", max_size=5), max_size=2),
)
# Each partition's rows: a partition in the record has at least one.
contents = st.dictionaries(
    st.integers(0, META_GROUP - 1), st.lists(events, min_size=1, max_size=5), min_size=1, max_size=6
)


def groups_at(random: np.random.Generator) -> Groups:
    """Groups that have a history."""
    groups = Groups()
    groups.index[:] = random.integers(0, 1 << 40, len(groups.index))
    groups.digest[:] = random.integers(0, 1 << 64, groups.digest.shape, np.uint64)
    return groups


def chained(table: np.ndarray, kind: int, groups: Groups) -> np.ndarray:
    """Give the slices, whose digests are contents, the next places in their groups."""
    partitions = table["partition"].astype(np.int64)
    table["index"], table["term"] = groups.index[partitions] + np.uint64(1), TERM
    digests = np.empty((len(table), 2), np.uint64)
    chain.chain_ops(
        groups.digest[partitions],
        table["index"].astype(np.int64),
        table["term"].astype(np.int64),
        np.array([kind, 3, 99], np.uint64),
        table["digest"].copy(),
        digests,
    )
    table["digest"] = digests
    return table


def events_record(rows: dict[int, list[LoggedEvent]], groups: Groups) -> Record:
    partitions = sorted(rows)
    together = [event for number in partitions for event in rows[number]]
    payload, heap_size = columns(together)
    ends = [0, *log_format.Columns(*views(payload, len(together), heap_size)).heap_end.tolist()]
    table = np.zeros(len(partitions), SLICE)
    layout = log_format.payload_layout(len(together), heap_size)[:6]
    row = 0
    for at, number in enumerate(partitions):
        last = row + len(rows[number])
        span = (row, last - row, ends[row], ends[last])
        table[at]["digest"] = stage.content_of(np.frombuffer(payload, np.uint8), layout, *span)
        table[at]["partition"], table[at]["count"] = number, last - row
        table[at]["heap_size"] = ends[last] - ends[row]
        row = last
    fields = RecordFields(EVENTS, row, heap_size, 3, 99, 12)
    chained(table, EVENTS, groups)
    table["flags"] = np.arange(len(table)) % 2
    return log_format.parse_frames(log_format.encode_record_head(fields, table, payload), payload)


def _cut(record: Record, number: int) -> tuple[bytes, memoryview]:
    alone = cut(record, [number])
    return head_of(alone), alone.payload


def views(payload: bytes, rows: int, heap_size: int) -> log_format.Columns:
    at = log_format.payload_layout(rows, heap_size)
    return log_format.Columns(
        np.frombuffer(payload, np.int64, rows, at.timestamp),
        np.frombuffer(payload, np.int64, rows, at.value),
        np.frombuffer(payload, np.uint32, rows, at.heap_end),
        np.frombuffer(payload, np.uint16, rows, at.metric),
        np.frombuffer(payload, np.uint8, rows, at.operation),
        np.frombuffer(payload, np.uint8, heap_size, at.heap),
    )


@given(contents, st.integers(0, 2**32))
def test_a_slice_alone_has_the_digest_it_had(rows: dict[int, list[LoggedEvent]], seed: int) -> None:
    before = groups_at(np.random.default_rng(seed))
    record = events_record(rows, groups_at(np.random.default_rng(seed)))
    for number, partition in enumerate(sorted(rows)):
        head, payload = _cut(record, number)
        alone = log_format.parse_frames(head, payload)
        verify_chain(alone, before)  # raises if content or digest had changed
        assert payload == columns(rows[partition])[0]
        assert alone[2:4] == record[2:4]
        assert alone[6:9] == record[6:9]
        whole = record.slices[number].copy()
        whole["flags"] = 0
        assert alone.slices.tobytes() == whole.tobytes()


@given(contents, st.integers(0, 2**32))
def test_a_slice_that_is_not_what_it_was_is_seen(
    rows: dict[int, list[LoggedEvent]], seed: int
) -> None:
    before = groups_at(np.random.default_rng(seed))
    record = events_record(rows, groups_at(np.random.default_rng(seed)))
    head, payload = _cut(record, len(rows) - 1)
    changed = bytearray(payload)
    changed[8] ^= 1  # the first row's value, or its timestamp's second row
    with pytest.raises(Damaged):
        log_format.parse_frames(head, changed)
    fields = RecordFields(EVENTS, 1, 0, 3, 99, 12)._replace(
        row_count=log_format.record_sizes(head)[2],
        heap_size=log_format.parse_frames(head, payload).heap_size,
    )
    table = np.frombuffer(head[log_format.RECORD_HEADER_SIZE :], SLICE)
    again = log_format.encode_record_head(fields, table, changed)
    with pytest.raises(Damaged, match="hash chain"):
        verify_chain(log_format.parse_frames(again, changed), before)


def test_a_body_is_the_content_of_each_of_its_slices() -> None:
    body = msgpack.packb({"horizon": 5})
    payload = body.ljust(log_format.padded(len(body)), b"\0")
    content = stage.content_of_bytes(np.frombuffer(payload, np.uint8))
    table = np.zeros(3, SLICE)
    table["partition"], table["count"], table["digest"] = [1, 7, META_GROUP], 1, content
    random = np.random.default_rng
    chained(table, META, groups_at(random(1)))
    fields = RecordFields(META, 0, len(body), 3, 99, 12)
    record = log_format.parse_frames(log_format.encode_record_head(fields, table, payload), payload)
    for number in range(3):
        head, same = _cut(record, number)
        alone = log_format.parse_frames(head, same)
        verify_chain(alone, groups_at(random(1)))
        assert bytes(alone.body) == body
        assert alone.slices["partition"].tolist() == [table["partition"][number]]
