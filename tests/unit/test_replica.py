"""The replica: order, time and the hash chain of what is proposed, against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.cluster.proposals import Proposal, slices_of
from meterd.core.kernels.hashing import CHAIN_KEY_0, CHAIN_KEY_1
from meterd.core.log.scan import Groups, verify_chain
from meterd.core.staging import Stage
from meterd.protocol import log_format
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.log_format import Damaged, Record
from tests.property.test_staging import REGISTRY, Row, columns_of
from tests.support.pipeline import KEY, proposal_of
from tests.support.replica import TERM, Replica
from tests.support.siphash import siphash_words, words_of

CHAIN_KEY = (int(CHAIN_KEY_0), int(CHAIN_KEY_1))


def meta(body: bytes) -> Proposal:
    payload = body.ljust(log_format.padded(len(body)), b"\0")
    slices = slices_of([log_format.META_GROUP], payload)
    return Proposal(log_format.META, slices, payload, 0, len(body), 3)


def events(accounts: list[str]) -> Proposal:
    stage = Stage(64, KEY)
    stage.use(REGISTRY)
    rows = [
        Row(name.encode(), b"i%d" % n, "cents", n, n, 0, 1, 0, {})
        for n, name in enumerate(accounts)
    ]
    stage.add(columns_of(rows, False), 0)
    return proposal_of(stage.pack(), stage)


def contents(record: Record) -> list[tuple[int, int]]:
    """The content's hash of every slice, as docs/STORAGE.md says."""
    if record.kind != log_format.EVENTS:
        return [siphash_words(CHAIN_KEY, words_of(bytes(record.payload)))]
    columns = log_format.columns(record)
    found, row, byte = [], 0, 0
    for piece in record.slices:
        end, heap_end = row + int(piece["count"]), byte + int(piece["heap_size"])
        words = [end - row]
        for column in (columns.timestamp, columns.value, columns.metric, columns.operation):
            words += words_of(column[row:end].tobytes())
        words += words_of(columns.heap[byte:heap_end].tobytes())
        found.append(siphash_words(CHAIN_KEY, words))
        row, byte = end, heap_end
    return found


proposals = st.one_of(
    st.binary(min_size=1, max_size=30).map(meta),
    st.lists(st.sampled_from(["a", "b", "c", "d/x", "e"]), min_size=1, max_size=8).map(events),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(proposals, st.integers(0, 10)), min_size=1, max_size=8))
def test_records_are_ordered_and_chained(drawn):
    replica = Replica(Groups())
    digests: dict[int, tuple[int, int]] = {}
    index: dict[int, int] = {}
    follower = Groups()
    last_time = 0
    for sequence, (proposal, now) in enumerate(drawn, 1):
        append = replica.propose(proposal, now)
        record = log_format.parse_frames(append.head, append.payload)
        assert record.sequence == append.sequence == sequence
        assert record.leader_time == max(now, last_time + 1)
        last_time = record.leader_time
        for piece, content in zip(record.slices, contents(record), strict=True):
            group = int(piece["partition"])
            index[group] = index.get(group, 0) + 1
            assert (int(piece["index"]), int(piece["term"])) == (index[group], TERM)
            before = digests.get(group, (0, 0))
            words = [*before, index[group], TERM, record.kind, record.registry_version]
            digests[group] = siphash_words(CHAIN_KEY, [*words, record.leader_time, *content])
            assert piece["digest"].tolist() == list(digests[group])
        verify_chain(record, follower)
        follower.follow(record)
        assert replica.waiting == sequence


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4), st.data())
def test_a_changed_byte_breaks_the_chain(accounts, data):
    append = Replica(Groups()).propose(events(accounts), 5)
    record = log_format.parse_frames(append.head, append.payload)
    layout = log_format.payload_layout(record.row_count, record.heap_size)
    n = record.row_count
    spans = [(layout.timestamp, 8 * n), (layout.value, 8 * n), (layout.metric, 2 * n)]
    spans += [(layout.operation, n), (layout.heap, record.heap_size)]
    places = [start + at for start, size in spans for at in range(size)]
    payload = bytearray(record.payload)
    payload[data.draw(st.sampled_from(places))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damaged, match="chain"):
        verify_chain(record._replace(payload=memoryview(bytes(payload))), Groups())


def test_records_become_durable_in_their_order():
    replica = Replica(Groups())
    for body in (b"a", b"b", b"c"):
        replica.propose(meta(body), 1)
    replica.durable(np.array([1, 2], np.uint64))
    assert replica.waiting == 1
    with pytest.raises(InvariantViolation, match="record 2"):
        replica.durable(np.array([2], np.uint64))


def test_what_was_never_proposed_cannot_be_durable():
    with pytest.raises(InvariantViolation, match="record 1"):
        Replica(Groups()).durable(np.array([1], np.uint64))
