"""Says what may be applied: slices of records that are durable here, committed, and not replaced.

Sans-I/O.  Records and what is durable and committed come by different ways, each in its order.  A
record is taken at once when everything in it may be applied and nothing before it waits: that is
nearly always so, and then no slice is looked at.  Otherwise it is held until each of its slices is
applied, or *replaced* (a later slice of the group took its index before it was committed), or *not
here*; what the checkpoint had applied already is passed over.  Groups do not wait for each other.

Where a later slice replaces earlier ones is kept as a cut (record, first index that is gone), and
there is none while leaders stay.  A log that is replayed is looked through for cuts first
(actors/log/replay.py), so that its records can be read when their turn comes.

Invariants:
  * the slices of a group are taken in the order of their indices, without a gap
  * nothing that a cut has removed is taken, and no cut removes what is committed
  * of a group whose bit is not in `_moved` nothing that was looked at can be taken now
  * `position` is where the oldest block begins of which something is unresolved
Bounded by what the router admits (records on their way) and by what the engine appends beyond the
commit index (unresolved slices); blocks behind an unresolved one are merged beyond BLOCKS_MAX.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import waiting as waits
from meterd.core.log.scan import Groups
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.log_format import GROUP_COUNT, NOT_HERE, REPAIR, Record

Asked = TypeVar("Asked")

# Of a record: sequence, file number, offset in the file, first row in the file.
Location = Sequence[int]
# Where a block belongs: file number, offset, block_seq, row, previous_crc.
LogPosition = Sequence[int]
Mask = NDArray[np.bool_]
Words = NDArray[np.uint64]

# Of more records that wait only those are looked at whose groups have moved on: a follower that
# catches up holds tens of thousands.
FEW = 64
# Any group, as bits.
EVERY = -1
# Beyond so many blocks their places are no longer kept one by one.
BLOCKS_MAX = 4_096
NOTHING = np.zeros(GROUP_COUNT, np.uint64)
# What `find_cuts` works in.
_FOUND = np.zeros((GROUP_COUNT, 2), np.int64)


class Ready(NamedTuple, Generic[Asked]):
    """What may be applied now of a record; nothing, when what was left of it was replaced."""

    record: Record
    location: Location
    asked: Asked
    chosen: Mask | None  # slices; None: all of them, at once
    passed: Mask | None  # slices that the checkpoint has applied
    done: bool  # nothing of the record is left


class _Block:
    """Records that became durable together, and where the next block belongs."""

    __slots__ = ("end", "last", "unresolved")

    def __init__(self, unresolved: int, last: int, end: LogPosition) -> None:
        self.unresolved, self.last, self.end = unresolved, last, end


class _Held(Generic[Asked]):
    """A durable record that waits, and the state of each of its slices."""

    __slots__ = ("asked", "block", "groups", "location", "record", "seen", "states")

    def __init__(self, record: Record, asked: Asked, location: Location, block: _Block) -> None:
        self.record, self.asked, self.location, self.block = record, asked, location, block
        self.states = np.zeros(len(record.slices), np.uint8)
        self.seen = False  # has somebody been told of a part of it?
        self.groups = EVERY  # those whose slices wait, as bits; EVERY: not looked at


class CommitQueue(Generic[Asked]):
    """`groups` is what is applied; it moves on as slices are taken from `ready`."""

    def __init__(self, groups: Groups, position: LogPosition, registry: Callable[[], int]) -> None:
        """Begin with what a checkpoint says; `registry` returns the version that is applied."""
        self.groups = groups
        self.position = position
        self.end = position  # behind the last durable block of which records were taken or held
        self._registry = registry
        self.committed = groups.index.copy()
        self._base = groups.index.copy()  # applied by the checkpoint
        self._coming: dict[int, tuple[Record, Asked]] = {}  # not durable yet, by sequence
        self._commits: deque[tuple[Sequence[Location], LogPosition, bool]] = deque()
        self._noted = 0  # of these commits: so many have raised `committed`
        self._held: dict[int, _Held[Asked]] = {}  # in the order of the log
        self._blocks: deque[_Block] = deque()
        self._newest = 0  # sequence of the last record that came
        self._durable = 0  # and of the last that is durable
        self._replayed = 0  # the last record that was in the log when the replay began
        self._reading = False  # is some of it still to come?
        self._unscanned: deque[Record] = deque()
        self._last = groups.index.copy()  # of each group, when nothing is stale or unscanned
        self._stale = False
        self._cuts: dict[int, list[tuple[int, int]]] = {}  # group: (sequence, first index gone)
        self._moved = 0  # groups, as bits, of which more of what is held may be taken than before
        self._fresh: list[_Held[Asked]] = []  # held, and not looked at yet

    @property
    def unresolved(self) -> int:
        """Return how many durable records wait."""
        return len(self._held)

    @property
    def empty(self) -> bool:
        """Is there neither a record nor a commit?"""
        return not (self._coming or self._commits or self._held)

    @property
    def end_sequence(self) -> int:
        """Return the last record before `end`."""
        return self._blocks[-1].last if self._blocks else self.groups.sequence

    def last_index(self) -> Words:
        """Return the last index of each group in the records that have come (u64[257])."""
        self._scan()
        return self.groups.index if self._stale else self._last

    # What comes

    def add_record(self, record: Record, asked: Asked) -> None:
        """Take a record that has just been made.  Raises InvariantViolation on a gap."""
        if self._newest and record.sequence != self._newest + 1:
            raise InvariantViolation(f"record {record.sequence} came after record {self._newest}")
        self._coming[record.sequence] = (record, asked)
        self._newest = record.sequence
        self._unscanned.append(record)

    def add_commit(self, located: Sequence[Location], end: LogPosition, committed: bool) -> None:
        """Take a block that is durable now; `committed`: all that is here in it is committed, too.

        Raises InvariantViolation when it does not follow the last one.
        """
        if self._durable and located[0][0] != self._durable + 1:
            raise InvariantViolation(
                f"record {located[0][0]} was committed after record {self._durable}"
            )
        self._commits.append((located, end, committed))
        self._durable = located[-1][0]

    def add_committed(self, groups: NDArray[np.intp], index: Words) -> None:
        """These groups are committed up to these indices.  They never go back.

        Whoever says so knows all records that have come: what replaces something came before.
        """
        self._scan()
        self.committed[groups] = np.maximum(self.committed[groups], index)
        self._moved = EVERY if len(self._held) <= FEW else self._moved | _bits(groups)

    def replay(self, last: int, last_index: Words, cuts: Iterable[tuple[int, int, int]]) -> None:
        """Records up to `last` will be added from the log (`add_logged`), then `end_replay`.

        last_index u64[257]: of the log's slices, 0 where there are none; cuts: (group, sequence of
        the record, first index that is gone).
        """
        if self._commits and self._commits[0][0][0][0] != last + 1:
            raise InvariantViolation(
                f"the log was replayed up to {last}, and its commits go on later"
            )
        self._newest = self._replayed = last
        self._durable = max(self._durable, last)  # of new records the WAL-writer may say so before
        self._last = np.maximum(last_index, np.where(last_index, 0, self.groups.index))
        self._reading = True
        for group, sequence, index in cuts:
            self._cuts.setdefault(group, []).append((sequence, index))

    def add_logged(
        self, records: Sequence[tuple[Location, Record]], end: LogPosition, asked: Asked
    ) -> None:
        """Take the next block of the log that is replayed."""
        self._hold([(location, record, asked) for location, record in records], end)

    def end_replay(self) -> None:
        """The log has been read up to where it ended at the start."""
        self._reading = False

    # What may be applied

    def ready(self) -> Iterator[Ready[Asked]]:
        """Yield what may be applied; `groups` has moved on by it already."""
        if self._reading:
            self._raise_committed()
        while not self._reading and (block := self._next_block()) is not None:
            yield from self._enter(*block)
        if self._held:
            self._scan()
            yield from self._walk()

    def _next_block(self) -> tuple[Sequence[Location], LogPosition, bool] | None:
        """Return the next durable block when all its records are here."""
        if not self._commits or self._commits[0][0][-1][0] > self._newest:
            return None
        self._noted = max(0, self._noted - 1)
        return self._commits.popleft()

    def _raise_committed(self) -> None:
        """Take from blocks that wait for the replay's end that they are committed."""
        for located, _, committed in list(self._commits)[self._noted :]:
            if located[-1][0] > self._newest:
                return
            self._noted += 1
            if committed:
                for sequence, *_ in located:
                    self._commit(self._coming[sequence][0])

    def _commit(self, record: Record) -> None:
        """Everything that is here in a record is committed."""
        here = record.slices[record.slices["flags"] & NOT_HERE == 0]
        self.add_committed(here["partition"].astype(np.intp), here["index"])

    def _enter(
        self, located: Sequence[Location], end: LogPosition, committed: bool
    ) -> Iterator[Ready[Asked]]:
        rows: list[tuple[Location, Record, Asked]] = []
        for location in located:
            found = self._coming.pop(location[0], None)
            if found is None:
                raise InvariantViolation(f"record {location[0]} is committed but never came")
            record, asked = found
            if committed and not (self._held or rows) and self._take_whole(record):
                yield Ready(record, location, asked, None, None, True)
                continue
            if committed:
                self._commit(record)
            rows.append((location, record, asked))
        self._hold(rows, end, located[-1][0])

    def _take_whole(self, record: Record) -> bool:
        """Take all slices at once, if that may be, now that everything before it is resolved."""
        if record.registry_version > self._registry() or len(record.slices) == 0:
            return False
        if self._cuts or not self.groups.take_plain(record):
            return False
        if self._unscanned and self._unscanned[0] is record:
            self._unscanned.popleft()
            self._stale = True
        return True

    def _hold(
        self, rows: Sequence[tuple[Location, Record, Asked]], end: LogPosition, last: int = 0
    ) -> None:
        """Hold records of a block that is durable; none: all of it is resolved."""
        if not last:  # a block of the log may be empty
            before = self._blocks[-1].last if self._blocks else self.groups.sequence
            last = rows[-1][0][0] if rows else before
        self.end = end
        if len(self._blocks) >= BLOCKS_MAX and not self._blocks[-1].unresolved:
            block = self._blocks[-1]
            block.unresolved, block.last, block.end = len(rows), last, end
        else:
            block = _Block(len(rows), last, end)
            self._blocks.append(block)
        for location, record, asked in rows:
            held = self._held[record.sequence] = _Held(record, asked, location, block)
            self._fresh.append(held)
        self._advance()

    def _advance(self) -> None:
        """Move on over blocks of which nothing is left."""
        blocks = self._blocks
        while blocks and not blocks[0].unresolved:
            self.position, self.groups.sequence = blocks[0].end, blocks[0].last
            blocks.popleft()
        if self._cuts and not self._reading:
            done = self.groups.sequence
            kept = {g: [cut for cut in cuts if cut[0] > done] for g, cuts in self._cuts.items()}
            self._cuts = {group: cuts for group, cuts in kept.items() if cuts}

    def _walk(self) -> Iterator[Ready[Asked]]:
        """Go over what is held until nothing more can be taken.

        When nothing has changed that is only what has come since: a replay holds thousands.
        """
        fresh, self._fresh = self._fresh, []
        while self._moved or fresh:
            moved, self._moved = self._moved, 0
            over = [one for one in self._held.values() if one.groups & moved] if moved else fresh
            fresh = []
            for held in over:
                version = self._registry()
                ready = self._step(held)
                if ready is not None:
                    yield ready
                if self._registry() != version:
                    # What has waited for it goes first: of an op and its repair behind it the op
                    # is taken, whether they came one by one or are replayed.
                    self._moved = EVERY
                    break

    def _step(self, held: _Held[Asked]) -> Ready[Asked] | None:
        """Resolve what can be resolved of a record; return None when nothing may be applied."""
        record, states = held.record, held.states
        if len(states) == 0:
            # It speaks of what comes before it.
            first = next(iter(self._held)) == record.sequence
            return self._told(held, done=True, whole=True) if first else None
        if self._cuts:
            self._cut(held)
        may = record.registry_version <= self._registry()
        base = self._base if record.sequence <= self._replayed else NOTHING
        index = self.groups.index
        rows, committed = frozen(record.slices), self.committed
        taken, waiting = waits.resolve(rows, states, index, committed, base, may)
        if taken == 0:
            if waiting == 0:
                return self._told(held, done=True, whole=False)
            if held.groups == EVERY and len(self._held) > FEW:
                held.groups = _bits(record.slices["partition"][states == waits.WAITING])
            return None
        whole = taken == len(states)
        slices = record.slices if whole else record.slices[states == waits.TAKEN]
        slices.setflags(write=False)  # as those of a buffer are: one type for the kernels
        self.groups.take(record, slices)
        # The slices behind a damaged one wait for its repair, which stands behind them.
        if (slices["flags"] & REPAIR).any():
            self._moved = EVERY
            self.groups.note_repair(held.location[1])
        return self._told(held, waiting == 0, whole and not held.seen)

    def _cut(self, held: _Held[Asked]) -> None:
        slices, replayed = held.record.slices, held.record.sequence <= self._replayed
        for row in np.flatnonzero(held.states == waits.WAITING).tolist():
            group, mine = int(slices["partition"][row]), int(slices["index"][row])
            if slices["flags"][row] & NOT_HERE or (replayed and mine <= int(self._base[group])):
                continue
            for sequence, index in self._cuts.get(group, ()):
                if sequence > held.record.sequence and index <= mine:
                    held.states[row] = waits.REPLACED

    def _told(self, held: _Held[Asked], done: bool, whole: bool) -> Ready[Asked]:
        """Return what to say of a record; when it is done it is held no longer."""
        if done:
            del self._held[held.record.sequence]
            held.block.unresolved -= 1
            self._advance()
        chosen = passed = None
        if not whole:
            chosen, passed = held.states == waits.TAKEN, held.states == waits.PASSED
            held.states[chosen] = waits.APPLIED
        held.seen = True
        return Ready(held.record, held.location, held.asked, chosen, passed, done)

    def waiting(self) -> Iterator[Ready[Asked]]:
        """Yield the records of which nothing has been said yet, with nothing to apply."""
        for held in self._held.values():
            if not held.seen:
                yield self._told(held, done=False, whole=False)

    def _scan(self) -> None:
        """Look through new records for slices that replace earlier ones.

        When none was looked at that is still held, `_last` is what is applied.
        """
        if not self._unscanned:
            return
        if self._stale:
            self._last, self._stale = self.groups.index.copy(), False
        for record in self._unscanned:
            for group, index in find_cuts(record.slices, self._last):
                if index <= max(int(self.committed[group]), int(self.groups.index[group])):
                    raise InvariantViolation(
                        f"record {record.sequence} replaces op {index} of group {group},"
                        " which is committed"
                    )
                self._cuts.setdefault(group, []).append((record.sequence, index))
                self._moved = EVERY
        self._unscanned.clear()


def find_cuts(slices: NDArray[np.void], last_index: Words) -> list[tuple[int, int]]:
    """Return (group, first index that is gone) of slices that replace earlier ones.

    last_index u64[257]: of each group; moved on.
    """
    count = waits.find_cuts(frozen(slices), last_index, _FOUND)
    return [(int(group), int(index)) for group, index in _FOUND[:count].tolist()] if count else []


def _bits(groups: NDArray[Any]) -> int:
    """Return groups as bits of a number."""
    marks = np.zeros(GROUP_COUNT, np.bool_)
    marks[groups] = True
    return int.from_bytes(np.packbits(marks, bitorder="little").tobytes(), "little")


def everything(last_index: Words) -> tuple[NDArray[np.intp], Words]:
    """Return what to say to `add_committed` when all of a log is committed."""
    return np.arange(GROUP_COUNT), last_index
