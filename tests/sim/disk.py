"""A simulated disk: blocks in order, durable when synced; what a crash leaves of the others.

`DiskGroup` is what recovery would read: records folded one by one, written independently of the
engine's own log, so that one can be held against the other.
"""

from __future__ import annotations

from random import Random
from typing import Any

from meterd.core.raft.events import Write, WriteOps, WriteRepair, WriteSnapshot, WriteTerm
from meterd.core.raft.log import Log
from meterd.core.raft.state import Recovered
from meterd.protocol.raft_messages import Configuration, Mark, Op

NOTHING = Mark(0, 0, 0, Configuration(()))


class DiskGroup:
    """One group, as far as some block."""

    __slots__ = ("base", "damaged", "ops", "tail", "term", "uncertain", "vote")

    def __init__(self, base: Mark = NOTHING) -> None:
        self.term = base.term
        self.vote = 0
        self.uncertain = False
        self.base = base
        self.ops: list[Op] = []
        self.damaged: set[int] = set()
        self.tail: tuple[int, int, int] | None = None  # last index, term, vote before last block

    def copy(self) -> DiskGroup:
        other = DiskGroup(self.base)
        other.term, other.vote, other.uncertain = self.term, self.vote, self.uncertain
        other.ops, other.damaged = list(self.ops), set(self.damaged)
        return other

    @property
    def last(self) -> int:
        return self.base.index + len(self.ops)

    def loses_promise(self) -> bool:
        """Whether the last block has a term or a vote."""
        return self.tail is not None and self.tail[1:] != (self.term, self.vote)

    def term_at(self, index: int) -> int | None:
        """Return the term at an index, None when there is no such op."""
        at = index - self.base.index
        if at == 0:
            return self.base.term
        return self.ops[at - 1].term if 0 < at <= len(self.ops) else None

    def read(self, first: int, last: int) -> tuple[int, int, tuple[Op, ...]] | None:
        """Return term and digest before `first`, and whole ops up to `last`; None if none is."""
        at = first - self.base.index - 1
        if not 0 <= at < len(self.ops):
            return None
        prev = self.ops[at - 1] if at else self.base
        ops = []
        for op in self.ops[at : last - self.base.index]:
            if op.index in self.damaged:
                break
            ops.append(op)
        return (prev.term, prev.digest, tuple(ops)) if ops else None

    def apply(self, record: Write) -> None:
        if isinstance(record, WriteTerm):
            self.term, self.vote, self.uncertain = record.term, record.vote, record.uncertain
        elif isinstance(record, WriteOps):
            keep = record.ops[0].index - self.base.index - 1
            assert 0 <= keep <= len(self.ops), "ops leave a gap"
            del self.ops[keep:]
            self.damaged = {i for i in self.damaged if i < record.ops[0].index}
            self.ops.extend(record.ops)
        elif isinstance(record, WriteRepair):
            for op in record.ops:
                if op.index in self.damaged and self.term_at(op.index) == op.term:
                    self.damaged.discard(op.index)
                    self.ops[op.index - self.base.index - 1] = op
        elif isinstance(record, WriteSnapshot):
            mark = record.mark
            if self.term_at(mark.index) == mark.term:
                del self.ops[: mark.index - self.base.index]
            else:
                self.ops = []
            self.damaged = {i for i in self.damaged if mark.index < i <= mark.index + len(self.ops)}
            self.base = mark

    def recovered(self) -> Recovered:
        log = Log(self.base, self.ops, sorted(self.damaged))
        return Recovered(self.term, self.vote, log, self.uncertain)


class Disk:
    """The log of one node, and its snapshot files."""

    def __init__(self, groups: dict[int, DiskGroup]) -> None:
        self.groups = groups  # durable
        self.block = 0  # last durable one
        self.queue: list[tuple[int, list[Write]]] = []  # written, not synced
        self.syncing = 0  # blocks of the queue that the present sync covers
        # group, index -> its mark and the state there
        self.snapshots: dict[tuple[int, int], tuple[Mark, Any]] = {}

    def write(self, block: int, records: list[Write]) -> None:
        self.queue.append((block, records))

    def sync(self) -> int:
        """The sync that was begun is done; return the last durable block."""
        for block, records in self.queue[: self.syncing]:
            self._apply(block, records)
        del self.queue[: self.syncing]
        self.syncing = 0
        return self.block

    def _apply(self, block: int, records: list[Write]) -> None:
        before = {r.group for r in records}
        for number in before:
            group = self.groups[number]
            group.tail = (group.last, group.term, group.vote)
        for number in self.groups.keys() - before:
            self.groups[number].tail = None
        for record in records:
            group = self.groups[record.group]
            replaces = isinstance(record, WriteOps) and record.ops[0].index <= group.last
            group.apply(record)
            if replaces or isinstance(record, WriteSnapshot | WriteRepair):
                group.tail = None  # what was there before is not known any more
        self.block = block

    def crash(self, random: Random) -> None:
        """Keep some of what was not synced: blocks reach the disk in order, the last may tear."""
        kept = random.randint(0, len(self.queue)) if self.queue else 0
        for block, records in self.queue[:kept]:
            self._apply(block, records)
        self.queue.clear()
        self.syncing = 0

    def damage(self, random: Random) -> tuple[int, int] | None:
        """Make one op unreadable; return its group and index."""
        number = random.choice(sorted(self.groups))
        group = self.groups[number]
        if not group.ops:
            return None
        op = random.choice(group.ops)
        self.ruin(number, op.index)
        return number, op.index

    def ruin(self, number: int, index: int) -> None:
        group = self.groups[number]
        at = index - group.base.index - 1
        if 0 <= at < len(group.ops):
            group.ops[at] = group.ops[at]._replace(body=None)
            group.damaged.add(index)

    def voted_in_last_block(self, number: int) -> int:
        """Return whom a group's vote went to, if the last block has that; else 0."""
        group = self.groups[number]
        return group.vote if group.loses_promise() else 0

    def lose_tail(self) -> int:
        """The last block is damaged whole: what it said is not known, only that it was there.

        Return how many groups have forgotten a term or a vote.
        """
        promises = 0
        for group in self.groups.values():
            group.uncertain = True
            if group.tail is None or group.tail[0] < group.base.index:
                continue
            promises += group.loses_promise()
            last, group.term, group.vote = group.tail
            del group.ops[last - group.base.index :]
            group.damaged = {i for i in group.damaged if i <= last}
            group.tail = None
        return promises
