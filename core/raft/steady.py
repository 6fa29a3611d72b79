"""The fast path: groups in steady state as columns, one array operation for all slices of a record.

A group is *parked* while nothing but the ordinary happens: the leader proposes one op, followers
take it, it becomes durable, it is acked and committed.  For a parked group the columns here hold
what changes, and its `Group` is out of date.  Whatever else happens brings it back first
(`unpark`), so the scalar engine alone knows every rule; `propose`, `accept`, `ack` and `durable`
do exactly what it would do, and a differential test holds one against the other.

A group may be parked (`park` says) when its log is whole and compared to the end, its term is
durable, and, on a leader, its term is open, no transfer is under way, and every follower either
*streams* (has been sent everything, each op by itself) or is left alone until its next probe.

Invariants:
  * an entry of `_history` or `_waiting` counts for a group only while its epoch is the same
  * the ops of a parked group that its `Group` does not know are its valid rows in `_history`, but
    for the oldest ones, which may be forgotten
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import steady as kernels
from meterd.core.kernels.steady import MEMBERS_MAX
from meterd.core.raft.group import Group
from meterd.core.raft.progress import PROBE, REPLICATE
from meterd.core.raft.slices import AcceptedSlices, CommitSlices, WriteSlices
from meterd.core.raft.state import FOLLOWER, LEADER
from meterd.protocol.raft_messages import NOBODY, Mark, Op
from meterd.protocol.raft_slices import AckSlices, AppendSlices, Digests, Ints, SliceOps, words

# Records that parked groups' ops lie in; when there are more the oldest one's groups come back.
HISTORY_MAX: Final = 512
NEVER: Final = 1 << 60
# Uncommitted ops of a group that has no followers; there are no flights to count.
LONE_MAX: Final = 256

_NO_ROWS: Ints = np.zeros(0, np.int64)

# Digests [k, 2] of (digests before, terms, indices, kinds, bodies).
ChainMany = Callable[[Digests, Ints, Ints, Ints, Sequence[Any]], Digests]


class Proposed(NamedTuple):
    """What a fast proposal leads to; `left`: rows for the scalar engine."""

    record: WriteSlices
    sends: list[tuple[int, AppendSlices]]
    accepted: AcceptedSlices
    left: Ints


class View(NamedTuple):
    """What is told of a group; the rest of it does not change while it is parked."""

    role: int
    leader: int
    term: int
    last: int
    commit: int
    matches: dict[int, int]  # of a leader: what each other member has
    leader_commit: int  # of a follower: the last commit index heard from its leader


class Remembered(NamedTuple):
    """The ops of one record, and what each of them follows."""

    ops: SliceOps
    epochs: Ints
    before: Digests
    before_term: Ints
    rows: Ints  # of each group; below 0: none


class Steady:
    """Columns of the groups of one node, by group number."""

    def __init__(
        self, groups: dict[int, Group], chain: ChainMany, await_block: Callable[[int, int], None]
    ) -> None:
        """`await_block(block, group)`: a group that has come back waits for that block."""
        count = max(groups, default=0) + 1
        self._groups = groups
        self._chain, self._await_block = chain, await_block
        self._flags = np.zeros((3, count), np.bool_)
        self.parked = self._flags[kernels.PARKED]
        self.leads = self._flags[kernels.LEADS]
        self.lone = self._flags[kernels.LONE]  # leads, and nobody follows
        self._remembers = np.zeros(count, np.bool_)  # its Group holds ops, too
        self._forgotten = np.zeros(count, np.int64)  # ops up to here may go
        self._numbers = np.array(list(groups), np.int64)
        self._all_lone: bool | None = None  # None: not known since a group came or went
        self.moves = 0  # how often a group has come or gone
        # All of these together are what kernels take.
        self._columns = columns = np.zeros((kernels.COLUMNS, count), np.int64)
        self._digest = np.zeros((count, 2), np.uint64)
        self._of_members = np.zeros((3, count, MEMBERS_MAX), np.int64)
        self._masks = np.zeros((2, count, MEMBERS_MAX), np.bool_)
        self.state = columns, self._flags, self._of_members, self._masks
        self.term, self.last = columns[kernels.TERM], columns[kernels.LAST]
        self._last_term, self.durable_to = columns[kernels.LAST_TERM], columns[kernels.DURABLE]
        self.commit, self.leader = columns[kernels.COMMIT], columns[kernels.LEADER]
        self._reported, self.quorum = columns[kernels.REPORTED], columns[kernels.QUORUM]
        self.sent_at, self._probe_at = columns[kernels.SENT_AT], columns[kernels.PROBE_AT]
        self._size_max = columns[kernels.SIZE_MAX]
        self._flights_max = columns[kernels.FLIGHTS_MAX]
        self._epoch = columns[kernels.EPOCH]
        self.members = self._of_members[kernels.MEMBER]  # 0 is the group's own
        self.match = self._of_members[kernels.MATCH]
        self.accepted = self._of_members[kernels.ACCEPTED]
        self.voters, self.streams = self._masks[kernels.VOTES], self._masks[kernels.STREAMS]
        self._history: deque[Remembered] = deque()
        # Block, groups, index, epochs, rows as in `Remembered`.
        self._waiting: deque[tuple[int, Ints, Ints, Ints, Ints]] = deque()
        self._came: Callable[[Group], None] = _nothing
        self._goes: Callable[[Group], None] = _nothing

    def watch(self, came: Callable[[Group], None], goes: Callable[[Group], None]) -> None:
        """Have these called with each group that is parked, and that is brought back."""
        self._came, self._goes = came, goes

    def knows(self, groups: Ints) -> bool:
        """Whether there is a row for each of these; a peer may say anything."""
        if len(groups) == 1:
            return 0 <= int(groups[0]) < len(self.parked)
        return bool(((groups >= 0) & (groups < len(self.parked))).all())

    def views(self, g: Ints, leader_commit: Ints) -> list[View]:
        """Return parked groups as they are; `leader_commit` of each."""
        columns = (self.leads, self.leader, self.term, self.last, self.commit)
        rows = zip(
            *[column[g].tolist() for column in columns],
            self.members[g].tolist(),
            self.match[g].tolist(),
            leader_commit.tolist(),
            strict=True,
        )
        views = []
        for leads, leader, term, last, commit, members, match, heard in rows:
            role, matches = FOLLOWER, {}
            if leads:
                role = LEADER
                matches = {m: k for m, k in zip(members, match, strict=True) if m}
            views.append(View(role, leader, term, last, commit, matches, heard))
        return views

    # Coming and going.

    def park(self, group: Group, durable_block: int) -> None:
        """Take a group into the columns, if it is steady."""
        if self.parked[group.group] or not is_steady(group, durable_block):
            return
        g, log = group.group, group.log
        self.parked[g] = True
        self.leads[g] = group.role == LEADER
        self.lone[g] = group.role == LEADER and not group.progress
        self._forgotten[g] = 0
        self._all_lone = None
        self.moves += 1
        self._remembers[g] = len(log.ops) > 0
        self._epoch[g] += 1
        self.term[g], self.last[g], self._last_term[g] = group.term, log.last, log.last_term
        self.durable_to[g], self.commit[g] = group.durable, group.commit
        self._digest[g] = words(log.digest_at(log.last))
        self.leader[g], self._reported[g] = group.leader, group.reported
        if group.role == LEADER:
            self._park_leader(g, group)
        self._came(group)

    def _park_leader(self, g: int, group: Group) -> None:
        settings, configuration = group.settings, group.log.configuration
        self.quorum[g] = configuration.quorum
        self.sent_at[g] = -NEVER
        self._flights_max[g] = settings.flights_max
        self._size_max[g] = settings.flight_bytes_max // settings.flights_max
        self.voters[g] = self.streams[g] = False
        self.members[g] = 0
        self.voters[g, 0] = True
        due = NEVER
        for column, (member, progress) in enumerate(group.progress.items(), 1):
            self.members[g, column] = member
            counts = member in configuration.voters and not progress.uncertain_since
            self.voters[g, column] = counts
            self.streams[g, column] = progress.state == REPLICATE
            self.match[g, column] = progress.match
            self.accepted[g, column] = progress.accepted
            if progress.state == PROBE and progress.next <= group.log.floor:
                due = -NEVER  # it gets a snapshot with the next op
            elif progress.state == PROBE and not progress.is_silent:
                due = min(due, progress.sent_at + settings.retransmit_ms)
        self._probe_at[g] = due

    def unpark(self, g: int) -> None:
        """Bring a group back: its Group is true again."""
        if not self.parked[g]:
            return
        group, epoch = self._groups[g], self._epoch[g]
        self.parked[g] = False
        self._all_lone = None
        self.moves += 1
        before, ops = self._ops_of(g, int(epoch))
        if before[0] > group.log.last:  # what lies between is forgotten
            group.log.forget_to(Mark(*before, group.log.configuration))
        group.log.extend(ops)
        group.commit = int(self.commit[g])
        group.applicable = group.commit
        group.durable = int(self.durable_to[g])
        for block, _, index, epochs, rows in self._waiting:
            row = rows[g]
            if row >= 0 and epochs[row] == epoch:
                group.pending.append((block, int(index[row])))
                self._await_block(block, g)
        if self.leads[g]:
            self._unpark_leader(g, group)
        else:
            group.verified = group.log.last
            group.reported = int(self._reported[g])
        self._goes(group)

    def _unpark_leader(self, g: int, group: Group) -> None:
        log = group.log
        group.uncommitted_bytes = log.size_behind(group.commit)
        for column, progress in enumerate(group.progress.values(), 1):
            if not self.streams[g, column]:
                continue
            progress.accepted = int(self.accepted[g, column])
            while progress.next <= log.last:
                index = progress.next
                size = log.op(index).size if index > log.base.index else 0  # forgotten
                progress.take_off(index, size, progress.sent_at)
            if self.sent_at[g] > -NEVER:
                progress.sent_at = int(self.sent_at[g])
            match = int(self.match[g, column])
            if match > progress.match:
                progress.land(match)

    def _ops_of(self, g: int, epoch: int) -> tuple[tuple[int, int, int], list[Op]]:
        """Return the ops that are remembered, and index, term and digest of the one before."""
        before, ops = None, []
        for found in self._history:
            row = found.rows[g]
            if row < 0 or found.epochs[row] != epoch:
                continue
            ops.append(found.ops.op(int(row)))
            if before is None:
                low, high = found.before[row].tolist()
                before = (ops[0].index - 1, int(found.before_term[row]), low | high << 64)
        if before is None:
            low, high = self._digest[g].tolist()
            before = (int(self.last[g]), int(self._last_term[g]), low | high << 64)
        return before, ops

    def _remember(
        self, block: int, ops: SliceOps, before: Digests, before_term: Ints, epochs: Ints
    ) -> None:
        places = np.empty(len(self.parked), np.int64)
        kernels.rows_of(ops.groups, places)
        self._history.append(Remembered(ops, epochs, before, before_term, places))
        self._waiting.append((block, ops.groups, ops.index, epochs, places))
        while self._history and (
            len(self._history) > HISTORY_MAX or not self._counts(self._history[0])
        ):
            oldest = self._history[0]
            for g in oldest.ops.groups[self._valid(oldest.ops, oldest.epochs)].tolist():
                self.unpark(g)
            self._history.popleft()

    def forget(self, groups: Ints, index: Ints) -> None:
        """Drop ops of parked groups, each up to an index and as far as it is committed."""
        index = np.minimum(index, self.commit[groups])
        self._forgotten[groups] = np.maximum(index, self._forgotten[groups])
        for g in groups[self._remembers[groups]].tolist():
            log = self._groups[g].log
            last = min(int(self._forgotten[g]), log.last)
            if last > log.base.index:
                log.forget(last)
            self._remembers[g] = len(log.ops) > 0
        while self._history:
            ops, epochs, *_ = self._history[0]
            valid = self._valid(ops, epochs)
            if (ops.index > self._forgotten[ops.groups])[valid].any():
                return
            self._history.popleft()

    def _valid(self, ops: SliceOps, epochs: Ints) -> NDArray[np.bool_]:
        return self.parked[ops.groups] & (self._epoch[ops.groups] == epochs)

    def _counts(self, entry: Remembered) -> bool:
        if self.all_lone:
            return True
        state = self._columns, self._flags
        return bool(kernels.any_counts(*state, entry.ops.groups, entry.epochs))

    @property
    def all_lone(self) -> bool:
        """Whether every group is here and leads nobody but itself: a node that is alone."""
        if self._all_lone is None:
            numbers = self._numbers
            self._all_lone = bool((self.parked[numbers] & self.lone[numbers]).all())
        return self._all_lone

    # The leader's half.

    def propose(
        self, wanted: SliceOps, causes: Sequence[Any], block: int, now: int
    ) -> Proposed | None:
        """Append one op to each group that is parked and leads; None when there is none.

        Of `wanted` the groups, kinds, sizes and bodies count.
        """
        g = wanted.groups
        if self.all_lone and len(self._waiting) < LONE_MAX:
            return self._append(wanted, causes, block, now, _NO_ROWS)
        fast = np.empty(len(g), np.bool_)
        count = kernels.may_append(*self.state, g, wanted.size, now, fast)
        if count == len(g):
            return self._append(wanted, causes, block, now, _NO_ROWS)
        return self._propose_some(fast, wanted, causes, block, now)

    def _propose_some(
        self,
        fast: NDArray[np.bool_],
        wanted: SliceOps,
        causes: Sequence[Any],
        block: int,
        now: int,
    ) -> Proposed | None:
        left = np.flatnonzero(~fast)
        rows = np.flatnonzero(fast)
        if not len(rows):
            return None
        taken = wanted.take(rows)
        return self._append(taken, [causes[k] for k in rows.tolist()], block, now, left)

    def _append(
        self, taken: SliceOps, causes: Sequence[Any], block: int, now: int, left: Ints
    ) -> Proposed:
        g = taken.groups
        place = np.empty((5, len(g)), np.int64)
        before = np.empty((len(g), 2), np.uint64)
        kernels.places(self._columns, self._digest, g, place, before)
        index, term, before_term, commit, epochs = place
        digest = self._chain(before, term, index, taken.kind, taken.body)
        ops = taken._replace(index=index, term=term, digest=digest)
        sends = []
        if not self.all_lone:
            message = AppendSlices(term, before_term, before, commit, ops)
            sends = self._sends(g, message)
        sent_at = now if not self.all_lone else -1
        kernels.append(self._columns, self._digest, g, place, digest, sent_at)
        self._remember(block, ops, before, before_term, epochs)
        accepted = AcceptedSlices(g, index, term, causes)
        return Proposed(WriteSlices(ops), sends, accepted, left)

    def _sends(self, g: Ints, message: AppendSlices) -> list[tuple[int, AppendSlices]]:
        """Return what each streaming member gets: usually the same for all of them."""
        alike = np.empty(MEMBERS_MAX, np.int64)
        count = kernels.streaming(self._of_members, self._masks, g, alike)
        if count >= 0:
            return [(member, message) for member in alike[:count].tolist()]
        members, streams = self.members[g], self.streams[g]
        sends = []
        for member in np.unique(members[streams]).tolist():
            mine = ((members == member) & streams).any(axis=1)
            sends.append((member, message.take(np.flatnonzero(mine))))
        return sends

    def ack(self, source: int, acks: AckSlices) -> tuple[CommitSlices | None, Ints]:
        """Take a streaming follower's acks; return what is committed, and rows not taken."""
        rows = np.array(acks, np.int64)
        # Nobody has of me what I have not: the kernel leaves such a row, as one of another term.
        rows[1, rows[3:].max(axis=0) > self._columns[kernels.LAST, rows[0]]] = -1
        left = np.empty(rows.shape[1], np.int64)
        committed = np.empty((2, rows.shape[1]), np.int64)
        more, raised = kernels.take_acks(source, *self.state, rows, left, committed)
        return _committed(committed, raised), left[:more]

    # The follower's half.

    def accept(
        self, source: int, message: AppendSlices, block: int
    ) -> tuple[WriteSlices | None, CommitSlices | None, Ints]:
        """Take slices that continue parked groups; return record, commits and rows left.

        They are acked when they are durable.
        """
        ops = message.ops
        count = len(ops.groups)
        said = np.array((message.term, message.prev_term, message.commit), np.int64)
        before, prev_digest = np.empty((count, 2), np.uint64), np.array(message.prev_digest)
        before_term, epochs = np.empty((2, count), np.int64)
        fast, committed = np.empty(count, np.bool_), np.empty((2, count), np.int64)
        taken, raised = kernels.accept(
            source,
            self._columns,
            self._flags,
            self._digest,
            said,
            prev_digest,
            (ops.groups, ops.index, ops.term, ops.digest),
            (before, before_term, epochs),
            fast,
            committed,
        )
        left = _NO_ROWS
        if taken < count:
            left = np.flatnonzero(~fast)
            if not taken:
                return None, None, left
            ops = ops.take(np.flatnonzero(fast))
        self._remember(block, ops, before[:taken], before_term[:taken], epochs[:taken])
        return WriteSlices(ops), _committed(committed, raised), left

    # Both.

    def durable(self, block: int) -> tuple[CommitSlices | None, list[tuple[int, AckSlices]]]:
        """Everything up to a block is on disk: leaders count it, followers tell theirs."""
        if self.all_lone:
            return self._durable_alone(block), []
        found = []
        while self._waiting and self._waiting[0][0] <= block:
            _, g, index, epochs, _ = self._waiting.popleft()
            ours = np.empty(len(g), np.int64)
            count = kernels.note_durable(self._columns, self._flags, g, index, epochs, ours)
            if count:
                found.append(ours[:count])
        if not found:
            return None, []
        groups = found[0] if len(found) == 1 else np.unique(np.concatenate(found))
        committed = np.empty((2, len(groups)), np.int64)
        told = np.empty((6, len(groups)), np.int64)
        raised, count, alike = kernels.count_durable(*self.state, groups, committed, told)
        leaders, acks = told[0, :count], told[1:, :count]
        if count and alike:
            return _committed(committed, raised), [(int(leaders[0]), AckSlices(*acks))]
        by_leader = [
            (leader, AckSlices(*acks[:, leaders == leader]))
            for leader in np.unique(leaders).tolist()
        ]
        return _committed(committed, raised), by_leader

    def _durable_alone(self, block: int) -> CommitSlices | None:
        """Where this replica is the only voter, what is durable is committed.

        Nobody will want it from memory either.
        """
        done = []
        while self._waiting and self._waiting[0][0] <= block:
            _, g, index, epochs, _ = self._waiting.popleft()
            valid = self._epoch[g] == epochs
            if not valid.all():  # written before the group came here, and counted then
                g, index = g[valid], index[valid]
            self.durable_to[g], self.commit[g] = index, index
            done.append((g, index))
        while self._history and len(self._history) > len(self._waiting):
            self._history.popleft()
        if not done:
            return None
        if len(done) == 1:
            return CommitSlices(*done[0])
        groups = np.unique(np.concatenate([g for g, _ in done]))
        return CommitSlices(groups, self.commit[groups])


def _committed(found: NDArray[np.int64], count: int) -> CommitSlices | None:
    """Return the first of [groups, indices] as an action; None when there are none."""
    return CommitSlices(*found[:, :count]) if count else None


def _nothing(_: Group) -> None:
    pass


def is_steady(group: Group, durable_block: int) -> bool:
    """Whether nothing but the ordinary is under way in a group."""
    log, moment = group.log, group.moment
    if (
        log.holes
        or group.repairs
        or group.uncertain
        or not moment.room
        or group.term_block > durable_block
        or group.applicable != group.commit
    ):
        return False
    if group.role == FOLLOWER:
        return group.leader != NOBODY and group.verified == log.last
    return group.role == LEADER and _leads_steadily(group)


def _leads_steadily(group: Group) -> bool:
    if (
        group.transfer is not None
        or not group.moment.fit
        or group.commit < group.term_start
        or len(group.progress) >= MEMBERS_MAX
        or group.member not in group.log.configuration.voters
    ):
        return False
    last, settings = group.log.last, group.settings
    size_max = settings.flight_bytes_max // settings.flights_max
    if group.uncommitted_bytes > settings.flight_bytes_max:
        return False
    for progress in group.progress.values():
        streams = (
            progress.room
            and not progress.damaged
            and not progress.uncertain_since
            and progress.next == last + 1
            and len(progress.flights) == last - progress.match
            and progress.flight_bytes <= size_max * len(progress.flights)
        )
        if progress.state == REPLICATE and not streams:
            return False
    return True
