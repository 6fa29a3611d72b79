"""What a replica of one group knows (the paper's Figure 2), and how it writes and sends.

Two numbers tie the engine to the disk.  `term_block` is the block of the last term or vote that
was written: *every* message waits for it, so nobody hears of a promise that a crash could take
back.  `durable` is the last index that is on disk here; it moves when the disk reports a block,
by the queue of (block, index) in `pending`, never by comparing indices: an index can be written
twice (truncated, appended anew) and an old report must not count for the new op.

Invariants:
  * term never falls; vote changes only with the term or from 0
  * commit <= last, durable <= last, base.index <= applicable <= commit
  * pending: blocks rise, indices <= last
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

from meterd.core.raft.events import (
    NOT_LEADER,
    Action,
    Commit,
    Moment,
    Refused,
    RoleChanged,
    Send,
    WriteOps,
    WriteTerm,
)
from meterd.core.raft.log import Log
from meterd.core.raft.progress import Progress
from meterd.core.raft.settings import Settings
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.raft_messages import NOBODY, GroupMessage, Op

FOLLOWER: Final = 0
PRE_CANDIDATE: Final = 1
CANDIDATE: Final = 2
LEADER: Final = 3
ROLES: Final = ("follower", "pre-candidate", "candidate", "leader")

# Digest of (digest before, term, index, kind, body).
Chain = Callable[[int, int, int, int, Any], int]


class Random(Protocol):
    """A source of randomness; `random.Random` is one."""

    def random(self) -> float:
        """Return the next number in [0, 1)."""


class Recovered(NamedTuple):
    """A group as the log on disk has it."""

    term: int
    vote: int
    log: Log
    # The last block was damaged, so it is not known where the log ended: see `vouching`.
    uncertain: bool = False


class Transfer(NamedTuple):
    """A leadership transfer under way."""

    target: int
    started_at: int
    sent: bool  # TimeoutNow is out: the lease is over


class WaitingRead(NamedTuple):
    round: int  # of beats; this one or a later one must be answered by a majority
    index: int  # type: ignore[assignment]
    cause: Any


class GroupState:
    """State of one replica.  Only `Group.step` and `Group.receive` begin a change."""

    def __init__(
        self,
        group: int,
        member: int,
        recovered: Recovered,
        moment: Moment,
        *,
        settings: Settings,
        random: Random,
        chain: Chain,
    ) -> None:
        self.group, self.member = group, member
        self.settings, self.random, self.chain = settings, random, chain
        self.moment = moment
        self.actions: list[Action] = []

        # Persistent.
        self.term, self.vote, self.log = recovered.term, recovered.vote, recovered.log
        self.uncertain = recovered.uncertain

        # Volatile, on all.
        self.role = FOLLOWER
        self.leader = NOBODY
        self.commit = self.log.base.index
        self.applicable = self.commit  # committed and whole: what may be applied
        # Last index that is as this term's leader has it: compared, or committed.
        self.verified = self.commit
        self.reported = 0  # last match told to it
        self.leader_commit = 0  # last commit index heard from it

        # The disk.
        self.durable = self.log.last
        self.durable_block = moment.block - 1
        self.term_block = self.durable_block
        self.pending: deque[tuple[int, int]] = deque()
        self.repairs: deque[tuple[int, tuple[Op, ...]]] = deque()
        self.repair_at = 0

        # Elections.
        self.started_at = moment.now
        self.heard_at = -(1 << 60)  # when the leader's beat was last answered
        self.deadline = moment.now  # nothing to do by the clock before
        self.patience = 0  # how long without a beat before campaigning
        self.election_at = 0  # when that is over
        self.ballots: dict[int, bool] = {}

        # On leaders.
        self.progress: dict[int, Progress] = {}
        self.term_start = 0  # index of the op that opened the term
        self.lease_from = 0  # index that must be committed before leases count
        self.led_since = 0
        self.transfer: Transfer | None = None
        self.reads: deque[WaitingRead] = deque()
        self.uncommitted_bytes = 0

    # What follows from the state.

    @property
    def is_voter(self) -> bool:
        """Whether this replica is counted, or was until a change that may not be committed.

        Who is about to be removed may have the longest log, and then nobody else can be elected:
        it must lead until the change is committed.  It counts only the others.
        """
        log = self.log
        if self.member in log.configuration.voters:
            return True
        changed = log.configuration_index
        return changed > self.commit and self.member in log.configuration_at(changed - 1).voters

    @property
    def match(self) -> int:
        """What may be acked: compared with the leader's log, durable, and before any damage."""
        return min(self.verified, self.durable, self.log.whole_to)

    @property
    def uncertain_since(self) -> int:
        """The start since which this replica may lack acks and votes of its own, 0: it does not."""
        return self.moment.boot if self.uncertain else 0

    def others(self) -> list[int]:
        """Return the other voters."""
        return [m for m in self.log.configuration.voters if m != self.member]

    # Acting.

    def send(self, to: int, message: GroupMessage) -> None:
        """Send when the last term and vote are durable."""
        self.actions.append(Send(to, message, self.term_block))

    def refuse(self, cause: Any, reason: str) -> None:
        """Answer a request that nothing was done about."""
        self.actions.append(Refused(self.group, cause, reason, self.leader))

    def write_term(self) -> None:
        """Write term and vote; whatever is sent from now on waits for it."""
        self.term_block = self.moment.block
        self.actions.append(WriteTerm(self.group, self.term, self.vote, self.uncertain))

    def write_ops(self, ops: Iterable[Op]) -> None:
        """Append ops; their first index decides what is truncated."""
        new = tuple(ops)
        if new[0].index <= self.log.last:
            self.truncate(new[0].index - 1)
        self.log.extend(new)
        self.actions.append(WriteOps(self.group, new))
        self.await_durable(self.log.last)

    def await_durable(self, index: int) -> None:
        """Ops up to `index` are durable when the present block is."""
        block = self.moment.block
        if self.pending and self.pending[-1][0] == block:
            self.pending.pop()
        self.pending.append((block, index))

    def truncate(self, last: int) -> None:
        """Forget ops behind `last`, which a newer leader has replaced."""
        if last < self.commit:
            raise InvariantViolation(
                f"group {self.group}: op {last + 1} is committed (to {self.commit}) and replaced"
            )
        self.log.truncate(last)
        self.durable = min(self.durable, last)
        self.verified = min(self.verified, last)
        self.pending = deque((block, min(index, last)) for block, index in self.pending)

    def take_durable(self, block: int) -> None:
        """Move `durable` on: the disk has everything up to `block`."""
        self.durable_block = block
        while self.pending and self.pending[0][0] <= block:
            self.durable = self.pending.popleft()[1]

    def advance_commit(self, index: int) -> None:
        """Ops up to `index` <= last are committed."""
        if index > self.commit:
            self.commit = index
        self.release()

    def release(self) -> None:
        """Have applied what is committed and whole."""
        index = min(self.commit, self.log.whole_to)
        if index > self.applicable:
            self.applicable = index
            self.actions.append(Commit(self.group, index))

    # Changing role.

    def enter(self, role: int, leader: int) -> None:
        """Take a role; what belongs to the last one ends."""
        if self.role == LEADER:
            self._leave_leadership(leader)
        changed = (role, leader) != (self.role, self.leader)
        self.role, self.leader = role, leader
        self.ballots = {}
        if changed:
            self.actions.append(RoleChanged(self.group, role, self.term, leader))

    def _leave_leadership(self, leader: int) -> None:
        self.progress = {}
        self.transfer = None
        self.uncommitted_bytes = 0
        for read in self.reads:
            self.actions.append(Refused(self.group, read.cause, NOT_LEADER, leader))
        self.reads.clear()

    def begin_term(self, term: int, vote: int) -> None:
        """Be in a term of whose leader nothing is known but that it has what is committed."""
        self.term, self.vote = term, vote
        self.verified = self.reported = self.commit
        self.leader_commit = 0
        self.write_term()

    def become_follower(self, term: int, leader: int) -> None:
        """Follow `leader` (NOBODY: not known) in `term` >= the present one."""
        if term > self.term:
            self.begin_term(term, NOBODY)
        self.enter(FOLLOWER, leader)
