"""The queue against a plain model: what is applied, what is lost, and where a replay would begin.

A world makes logs as leaders that come and go do: each record has slices of some groups, a new
leader's slice may take the place of ones that were not committed.  Records, what is durable, and
what is committed come in any order that their senders allow.  Logs of a few dozen records with up
to five groups; the node may start anew anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.log import commit_queue
from meterd.core.log.commit_queue import BLOCKS_MAX, CommitQueue, everything, find_cuts
from meterd.core.log.scan import Groups
from meterd.protocol import log_format
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.log_format import GROUP_COUNT, META_GROUP, NOT_HERE, REPAIR, Record

GROUPS = (0, 3, 7, 255, META_GROUP)
FIRST = 7  # the log had a history


@pytest.fixture(autouse=True, scope="module", params=[0, commit_queue.FEW])
def few(request: Any) -> Iterator[None]:
    """Whether only those are looked at whose groups have moved on changes no answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit_queue, "FEW", request.param)
        yield


def record_of(
    sequence: int,
    slices: list[tuple[int, int, int, int]],
    registry_version: int = 0,
    kind: int = log_format.META,
) -> Record:
    """Return a record; slices: (group, index, term, flags)."""
    table = np.zeros(len(slices), log_format.SLICE)
    for row, (group, index, term, flags) in enumerate(slices):
        table[row]["partition"], table[row]["index"] = group, index
        table[row]["term"], table[row]["flags"] = term, flags
        table[row]["count"] = 1
    return Record(
        0, 0, kind, 1, 0, 0, registry_version, 1_000 + sequence, sequence, table, memoryview(b"")
    )


class World:
    """The logs, and what a node that follows the rules to the letter would do."""

    def __init__(self, random: Any) -> None:
        self.random = random
        self.records: list[Record] = []
        self.blocks: list[tuple[int, int]] = []  # first and last sequence
        self.index = dict.fromkeys(GROUPS, 0)  # last of the surviving log
        self.committed = dict.fromkeys(GROUPS, 0)
        self.term = 1
        self.registry = 0  # version that the metas made so far lead to
        # The model: (group, index) → sequence of the record that survives.
        self.survivor: dict[tuple[int, int], int] = {}

    @property
    def sequence(self) -> int:
        return FIRST + len(self.records) - 1

    def make_record(self) -> Record:
        random, slices = self.random, []
        sequence = FIRST + len(self.records)
        if random.random() < 0.1:
            record = record_of(sequence, [], kind=log_format.TERMS)
            self.records.append(record)
            return record
        for group in sorted(random.sample(GROUPS, random.randint(1, len(GROUPS)))):
            index, flags = self.index[group] + 1, 0
            if random.random() < 0.15:
                flags = NOT_HERE
            elif random.random() < 0.1 and index > self.committed[group] + 1:
                index = random.randint(self.committed[group] + 1, index - 1)
                self.term += 1
            slices.append((group, index, self.term, flags))
            if not flags:
                for lost in range(index, self.index[group] + 1):
                    del self.survivor[group, lost]
                self.index[group] = index
                self.survivor[group, index] = sequence
        record = record_of(sequence, slices)
        self.records.append(record)
        return record

    def commit_some(self) -> dict[int, int]:
        """Commit more of some groups."""
        said = {}
        for group in self.random.sample(GROUPS, self.random.randint(1, len(GROUPS))):
            said[group] = self.random.randint(self.committed[group], self.index[group])
        self.committed |= said
        return said


class Node:
    """A queue with what it has taken, and what comes to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: CommitQueue[str] = CommitQueue(Groups(), [0], lambda: 99)
        self.applied: list[tuple[int, int, int]] = []  # (group, index, sequence)
        self.resolved: set[int] = set()
        self.told: dict[int, int] = dict.fromkeys(GROUPS, 0)  # committed
        self.here = self.durable = FIRST - 1
        self.commits_told = FIRST - 1

    def take(self) -> None:
        for ready in self.queue.ready():
            sequence = ready.record.sequence
            assert ready.location[0] == sequence and ready.asked in ("live", "logged")
            slices = ready.record.slices
            chosen = np.ones(len(slices), np.bool_) if ready.chosen is None else ready.chosen
            for one in slices[chosen]:
                assert not one["flags"] & NOT_HERE
                self.applied.append((int(one["partition"]), int(one["index"]), sequence))
            assert sequence not in self.resolved
            if ready.done:
                self.resolved.add(sequence)

    def restart(self) -> Node:
        """Start anew from a checkpoint: the log is replayed up to what is durable."""
        new = Node(self.world)
        groups = Groups.unpacked(self.queue.groups.packed())
        begin = self.queue.position
        new.queue = CommitQueue(groups, begin, lambda: 99)
        new.applied = list(self.applied)
        new.here = new.durable = new.commits_told = self.durable
        blocks = [b for b in self.world.blocks if begin[0] < b[1] <= self.durable]
        last_index, cuts = np.zeros(GROUP_COUNT, np.uint64), []
        for first, last in blocks:
            for sequence in range(first, last + 1):
                record = self.world.records[sequence - FIRST]
                cuts += [(g, sequence, i) for g, i in find_cuts(record.slices, last_index)]
        new.queue.replay(self.durable, last_index, cuts)
        new.to_read = blocks
        # What is resolved stays so, and is not told again.
        new.resolved = {n for n in self.resolved if n <= begin[0]}
        for number in range(new.durable + 1, self.here + 1):  # what is not durable comes again
            new.queue.add_record(self.world.records[number - FIRST], "live")
        new.here, new.told = self.here, self.told
        new.queue.add_committed(
            np.array(list(self.told), np.intp), np.array(list(self.told.values()), np.uint64)
        )
        if not blocks:
            new.queue.end_replay()
        return new

    to_read: list[tuple[int, int]] = []

    def read(self) -> None:
        """Hand over one block of the log."""
        if self.to_read:
            (first, last), self.to_read = self.to_read[0], self.to_read[1:]
            rows = [([n, 1, 0, 0], self.world.records[n - FIRST]) for n in range(first, last + 1)]
            self.queue.add_logged(rows, [last], "logged")
            if not self.to_read:
                self.queue.end_replay()

    def check(self) -> None:
        """Compare with what the rules give."""
        world = self.world
        reading = bool(self.to_read)
        for group in GROUPS:
            mine = [(index, seq) for g, index, seq in self.applied if g == group]
            assert [index for index, _ in mine] == list(range(1, len(mine) + 1))
            expected = []
            for index in range(1, self.told[group] + 1):
                sequence = world.survivor[group, index]
                if sequence > self.durable:
                    break
                expected.append((index, sequence))
            if reading:  # only a part of the log has been handed over
                assert mine[: len(expected)] == expected[: len(mine)]
                continue
            done = max(len(expected), len(mine))
            assert mine == [(i, world.survivor[group, i]) for i in range(1, done + 1)]
        if reading:
            return
        applied = {(g, i): s for g, i, s in self.applied}
        newest = {}  # by group and index: the last record that came with it or an earlier index
        unresolved = []
        for record in reversed(world.records[: self.here - FIRST + 1]):
            waits = False
            for one in record.slices:
                group, index = int(one["partition"]), int(one["index"])
                if one["flags"] & NOT_HERE:
                    continue
                replaced = newest.get(group, 1 << 60) <= index
                newest[group] = min(newest.get(group, 1 << 60), index)
                waits |= not replaced and (group, index) not in applied
            if record.sequence <= self.durable and waits:
                unresolved.append(record.sequence)
        ended = [FIRST - 1] + [last for _, last in world.blocks if last <= self.durable]
        first = min(unresolved, default=self.durable + 1)
        expected_place = max(last for last in ended if last < first)
        place = self.queue.position[0] or FIRST - 1
        if self.queue.position == [0]:
            assert expected_place == FIRST - 1
        else:
            assert place == expected_place == self.queue.groups.sequence
        assert sorted(unresolved) == [
            n for n in self.queue._held if len(self.queue._held[n].states)
        ]


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.integers(5, 60))
def test_slices_are_applied_as_the_rules_say(random, steps):
    world = World(random)
    node = Node(world)
    for _ in range(steps):
        what = random.random()
        if what < 0.35:
            world.make_record()
            if random.random() < 0.8:
                while node.here < world.sequence:
                    node.here += 1
                    node.queue.add_record(world.records[node.here - FIRST], "live")
        elif what < 0.6:
            first = world.blocks[-1][1] + 1 if world.blocks else FIRST
            if first <= world.sequence:
                last = random.randint(first, world.sequence)
                world.blocks.append((first, last))
        elif what < 0.75:
            for first, last in world.blocks:
                if first > node.commits_told:
                    located = [[n, 1, 0, 0] for n in range(first, last + 1)]
                    node.queue.add_commit(located, [last], committed=False)
                    node.commits_told = last
        elif what < 0.9 and node.here == world.sequence:
            said = world.commit_some()
            node.told |= said
            groups = np.array(list(said), np.intp)
            node.queue.add_committed(groups, np.array(list(said.values()), np.uint64))
        elif what < 0.95 and FIRST <= node.durable == node.commits_told:
            node.take()
            node = node.restart()
        node.read()
        if not node.to_read:
            node.durable = min(node.commits_told, max(_whole(world, node.here), node.durable))
        node.take()
        node.check()


def _whole(world: World, here: int) -> int:
    """Return the end of the last block all of whose records are here."""
    return max([last for _, last in world.blocks if last <= here], default=FIRST - 1)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_committed_block_is_taken_as_soon_as_its_commit_and_its_records_are_here(sizes, random):
    blocks, sequence = [], FIRST
    for size in sizes:
        blocks.append([[number, 1, 0, 0] for number in range(sequence, sequence + size)])
        sequence += size
    records, commits = list(range(FIRST, sequence)), list(enumerate(blocks))
    queue: CommitQueue[str] = CommitQueue(Groups(), [0], lambda: 0)
    here, told, taken = FIRST - 1, 0, 0
    while records or commits:
        if commits and (not records or random.random() < len(blocks) / (sequence - FIRST + 1)):
            number, located = commits.pop(0)
            queue.add_commit(located, [number], committed=True)
            told += 1
        else:
            here = records.pop(0)
            record = record_of(here, [(g, here - FIRST + 1, 1, 0) for g in GROUPS])
            queue.add_record(record, f"record {here}")
        found = [(ready.location, ready.asked) for ready in queue.ready()]
        expected = []
        while taken < told and blocks[taken][-1][0] <= here:
            expected += [(row, f"record {row[0]}") for row in blocks[taken]]
            taken += 1
        assert found == expected
        if found:
            assert queue.position == queue.end == [taken - 1]
            assert queue.groups.sequence == found[-1][0][0]
        waits = taken < len(blocks) and here >= blocks[taken][0][0]
        newest = next(reversed([*queue._held, *queue._coming]), None)
        assert newest == (here if waits else None)
    assert queue.empty and taken == len(blocks)


def test_what_does_not_follow_is_a_fault_and_no_wait():
    queue: CommitQueue[str] = CommitQueue(Groups(), [0], lambda: 0)
    queue.add_record(record_of(FIRST, []), "")
    with pytest.raises(InvariantViolation, match="record 9 came after record 7"):
        queue.add_record(record_of(FIRST + 2, []), "")
    queue.add_commit([[FIRST, 1, 0, 0]], [], committed=True)
    with pytest.raises(InvariantViolation, match="record 9 was committed after record 7"):
        queue.add_commit([[FIRST + 2, 1, 0, 0]], [], committed=True)


def test_a_commit_of_records_from_before_the_first_is_a_fault():
    queue: CommitQueue[str] = CommitQueue(Groups(), [0], lambda: 0)
    queue.add_record(record_of(FIRST, []), "")
    queue.add_commit([[FIRST - 1, 1, 0, 0], [FIRST, 1, 0, 0]], [], committed=True)
    with pytest.raises(InvariantViolation, match="record 6 is committed but never came"):
        list(queue.ready())


def queue_of(*records: Record, registry: Any = lambda: 0) -> CommitQueue[str]:
    """Return a queue to which these records came, each in a block of its own."""
    queue: CommitQueue[str] = CommitQueue(Groups(), [0], registry)
    for record in records:
        queue.add_record(record, "")
        queue.add_commit([[record.sequence, 1, 0, 0]], [record.sequence], committed=False)
    return queue


def taken(queue: CommitQueue[str]) -> list[tuple[int, int]]:
    """Return (sequence, group) of the slices that may be applied."""
    found = []
    for ready in queue.ready():
        slices = ready.record.slices
        chosen = slices if ready.chosen is None else slices[ready.chosen]
        found += [(ready.record.sequence, group) for group in chosen["partition"].tolist()]
    return found


def commit(queue: CommitQueue[str], **groups: int) -> None:
    numbers = np.array([int(name[1:]) for name in groups], np.intp)
    queue.add_committed(numbers, np.array(list(groups.values()), np.uint64))


def test_a_slice_waits_for_the_registry_and_other_groups_go_on():
    version = 0
    queue = queue_of(
        record_of(1, [(0, 1, 1, 0)], registry_version=2),
        record_of(2, [(0, 2, 1, 0), (1, 1, 1, 0)]),
        registry=lambda: version,
    )
    commit(queue, g0=2, g1=1)
    assert taken(queue) == [(2, 1)]
    version = 2
    commit(queue, g0=2)
    assert taken(queue) == [(1, 0), (2, 0)]


def test_a_repair_lets_the_slices_behind_it_go_on():
    """What was damaged stands again at the end of the log, behind what it comes before."""
    repair = record_of(2, [(0, 1, 1, REPAIR)])._replace(leader_time=1)
    queue = queue_of(record_of(1, [(0, 2, 1, 0)]), repair)
    commit(queue, g0=2)
    assert taken(queue) == [(2, 0), (1, 0)]
    assert queue.empty and queue.position == [2]


def test_what_is_committed_is_never_replaced():
    queue = queue_of(record_of(1, [(0, 1, 1, 0)]))
    commit(queue, g0=1)
    queue.add_record(record_of(2, [(0, 1, 2, 0)]), "")
    with pytest.raises(InvariantViolation, match="replaces op 1 of group 0"):
        list(queue.ready())


def test_a_group_that_stands_still_costs_a_bounded_number_of_places():
    """Blocks behind it are remembered together, and the position moves on when it does."""
    count = BLOCKS_MAX + 50
    stuck = record_of(1, [(0, 1, 1, 0)])
    others = [record_of(n, [(1, n - 1, 1, 0)]) for n in range(2, count)]
    queue = queue_of(stuck, *others[: count // 2])
    commit(queue, g1=count)
    assert len(taken(queue)) == count // 2
    for record in others[count // 2 :]:
        queue.add_record(record, "")
        queue.add_commit([[record.sequence, 1, 0, 0]], [record.sequence], committed=False)
        assert taken(queue) == [(record.sequence, 1)]
    assert queue.unresolved == 1 and len(queue._blocks) <= BLOCKS_MAX + 1
    assert queue.position == [0] and queue.end == [count - 1]
    commit(queue, g0=1)
    assert taken(queue) == [(1, 0)] and queue.position == [count - 1]


def test_an_empty_block_of_the_log_moves_the_position():
    """The WAL-writer protects the last record with one."""
    queue: CommitQueue[str] = CommitQueue(Groups(), [0], lambda: 0)
    queue.replay(1, np.eye(1, GROUP_COUNT, dtype=np.uint64)[0], [])
    queue.add_logged([], [1], "")
    assert queue.position == [1] and queue.groups.sequence == 0
    queue.add_logged([([1, 1, 0, 0], record_of(1, [(0, 1, 1, 0)]))], [2], "")
    queue.add_logged([], [3], "")
    queue.end_replay()
    assert queue.position == [1] and queue.end == [3]
    commit(queue, g0=1)
    assert taken(queue) == [(1, 0)]
    assert queue.position == [3] and queue.groups.sequence == 1 and queue.empty


def test_the_first_new_block_may_be_durable_before_the_replay_begins():
    """What a new leader's first records commit includes the log before them."""
    queue: CommitQueue[str] = CommitQueue(Groups(), [0], lambda: 0)
    queue.add_commit([[2, 1, 0, 0]], [2], committed=True)
    assert taken(queue) == []
    queue.replay(1, np.eye(1, GROUP_COUNT, dtype=np.uint64)[0], [])
    queue.add_logged([([1, 1, 0, 0], record_of(1, [(0, 1, 1, 0)]))], [1], "")
    assert taken(queue) == []
    queue.add_record(record_of(2, [(0, 2, 2, 0)], kind=log_format.META), "")
    assert taken(queue) == [(1, 0)]
    queue.end_replay()
    assert taken(queue) == [(2, 0)]
    assert queue.position == [2] and queue.empty


def test_everything_of_a_log_can_be_said_to_be_committed():
    groups, index = everything(np.ones(GROUP_COUNT, np.uint64))
    assert len(groups) == len(index) == GROUP_COUNT


def test_an_op_goes_before_its_repair_whenever_both_are_there() -> None:
    """Also when it has waited for the registry, and the repair stands behind what brought that."""
    version = 0
    queue: CommitQueue[str] = CommitQueue(Groups(), [0], lambda: version)
    records = [
        record_of(FIRST, [(3, 1, 1, 0)], registry_version=1, kind=log_format.EVENTS),
        record_of(FIRST + 1, [(META_GROUP, 1, 1, 0)]),
        record_of(FIRST + 2, [(3, 1, 1, REPAIR)], registry_version=1, kind=log_format.EVENTS),
    ]
    located = [((record.sequence, 1, 0, 0), record) for record in records]
    queue.replay(FIRST + 2, np.zeros(GROUP_COUNT, np.uint64), [])
    queue.add_logged(located, [1, 0, 0, 0, 0], "logged")
    queue.end_replay()
    queue.add_committed(np.array([3, META_GROUP]), np.array([1, 1], np.uint64))
    taken = []
    for ready in queue.ready():
        if ready.chosen is None or ready.chosen.any():
            taken.append(ready.record.sequence)
        if ready.record.kind == log_format.META:
            version = 1
    assert taken == [FIRST + 1, FIRST]


class Looks:
    """Counts how often a queue looks at a record that waits."""

    count = 0

    def registry(self) -> int:
        self.count += 1
        return 0


def test_what_waits_is_looked_at_once_for_each_change() -> None:
    """A replay holds thousands of records until it is said how far they are committed."""
    looks, count = Looks(), 300
    queue: CommitQueue[None] = CommitQueue(Groups(), [0], looks.registry)
    queue.replay(count, np.full(GROUP_COUNT, count, np.uint64), ())
    for sequence in range(1, count + 1):
        record = record_of(sequence, [(3, sequence, 1, 0)])
        queue.add_logged([((sequence, 1, 64 * sequence, 0), record)], [sequence], None)
        assert not list(queue.ready())
    assert queue.unresolved == count
    assert looks.count < 5 * count
    queue.add_committed(np.array([3]), np.array([count], np.uint64))
    assert [ready.record.sequence for ready in queue.ready()] == list(range(1, count + 1))
    assert queue.empty
    assert looks.count < 10 * count


def test_what_waits_for_other_groups_is_not_looked_at() -> None:
    """A follower that catches up holds tens of thousands, and is told of commits all the time."""
    looks, waiting, others = Looks(), 300, 100
    queue: CommitQueue[None] = CommitQueue(Groups(), [0], looks.registry)
    for sequence in range(1, waiting + others + 1):
        slices = [(3, sequence, 1, 0)] if sequence <= waiting else [(7, sequence - waiting, 1, 0)]
        queue.add_record(record_of(sequence, slices), None)
        queue.add_commit([(sequence, 1, 64 * sequence, 0)], [sequence], False)
        assert not list(queue.ready())
    looks.count = 0
    for index in range(1, others + 1):
        queue.add_committed(np.array([7]), np.array([index], np.uint64))
        assert [ready.record.sequence for ready in queue.ready()] == [waiting + index]
    assert queue.unresolved == waiting
    # All of one group at most, and once what waits of the others.
    assert looks.count < waiting + 3 * sum(range(others + 1))
    queue.add_committed(np.array([3]), np.array([waiting], np.uint64))
    assert len(list(queue.ready())) == waiting
    assert queue.empty
