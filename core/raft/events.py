"""What a group is told, and what it asks for: the two vocabularies of `Group.step`.

(`index` hides what tuples have under that name; it is the paper's word.)

Events are past or requests; actions are duties of the caller, in order.  Writes go into the block
that the moment names.  A message may leave when the block it names is durable: that is all the
gating there is, and who sends need know nothing else.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from meterd.protocol.raft_messages import Configuration, GroupMessage, Mark, Op

# Why something was refused: one reason for each thing the asker should do.
NOT_LEADER: Final = "not_leader"  # ask the leader named, or anybody when none is
OVERLOADED: Final = "overloaded"  # come back later
TRANSFERRING: Final = "transferring"  # ask again at once: there is a new leader soon
NO_ROOM: Final = "no_room"  # my disk is full
NOT_READY: Final = "not_ready"  # elected, but nothing of my term is committed yet
CHANGE_PENDING: Final = "change_pending"  # one change at a time
BAD_CHANGE: Final = "bad_change"  # not one voter more or less, or of the leader itself
NOT_CAUGHT_UP: Final = "not_caught_up"  # promote the learner later
NO_QUORUM: Final = "no_quorum"  # too few of the new voters are alive
UNFIT: Final = "unfit"  # target or leader is damaged, or its clock is off


class Moment:
    """What a step may know of the world; the node keeps it true."""

    __slots__ = ("block", "boot", "fit", "now", "room", "round", "standing")

    def __init__(self, now: int, block: int = 1) -> None:
        self.now = now  # monotonic ms
        self.block = block  # number of the block that writes of this step go to
        self.round = 1  # number of the next round of beats
        self.room = True  # there is room on the disk for ops (always for terms and votes)
        self.fit = True  # the clock is right: may lead
        self.boot = 1  # of this start; it rises from start to start


# Events.  A peer's message is an event, too: `Group.receive`.


class Tick(NamedTuple):
    pass


class Durable(NamedTuple):
    block: int


class Proposal(NamedTuple):
    """Ops to append; `cause` comes back in the answer."""

    items: tuple[tuple[int, int, Any], ...]  # kind, size, body
    cause: Any = None


class ProposeChange(NamedTuple):
    configuration: Configuration
    cause: Any = None


class TransferLeadership(NamedTuple):
    target: int = 0  # 0: whoever has most
    cause: Any = None


class Read(NamedTuple):
    """Linearizable: everything committed before now must be visible."""

    cause: Any


class SnapshotStored(NamedTuple):
    """A snapshot from the leader is durable and verified as a file."""

    mark: Mark


class Compacted(NamedTuple):
    """A snapshot of my own at this mark is durable: the log before it may go."""

    mark: Mark


class Forgotten(NamedTuple):
    """Ops up to here are applied and can be read from disk: memory need not hold them."""

    index: int  # type: ignore[assignment]


class ForgottenSlices(NamedTuple):
    """Forgotten for many groups, each as far as it is committed here."""

    groups: Any  # int64, ascending
    index: Any


class MetLeader(NamedTuple):
    """Another node says that it leads this group; who knows of no leader asks it for votes."""

    member: int


class OpsRead(NamedTuple):
    """The ops that ReadOps asked for, and what comes before them (UNKNOWN and 0: not there)."""

    to: int
    term: int
    prev_term: int
    prev_digest: int
    ops: tuple[Op, ...]


class OpsGone(NamedTuple):
    """No file has the ops any more that ReadOps asked for, from `first` on."""

    to: int
    term: int
    first: int


class Damaged(NamedTuple):
    """A record on my disk has become unreadable."""

    index: int  # type: ignore[assignment]


Event = (
    Tick
    | Durable
    | Proposal
    | ProposeChange
    | TransferLeadership
    | Read
    | SnapshotStored
    | Compacted
    | Forgotten
    | MetLeader
    | OpsRead
    | OpsGone
    | Damaged
)


# Actions.


class WriteTerm(NamedTuple):
    group: int
    term: int
    vote: int
    uncertain: bool


class WriteOps(NamedTuple):
    """Append ops; whatever the log had from the first one's index on is gone."""

    group: int
    ops: tuple[Op, ...]


class WriteRepair(NamedTuple):
    """The content of damaged ops again; nothing is truncated."""

    group: int
    ops: tuple[Op, ...]


class WriteSnapshot(NamedTuple):
    """From here on the log begins at this mark: the switch, in one record."""

    group: int
    mark: Mark


class Send(NamedTuple):
    to: int
    message: GroupMessage
    after: int  # block that must be durable before


class Commit(NamedTuple):
    """Ops up to here are committed and readable: apply them."""

    group: int
    index: int  # type: ignore[assignment]


class Restored(NamedTuple):
    """The state machine is now the snapshot at this mark."""

    group: int
    mark: Mark


class StoreSnapshot(NamedTuple):
    """Make the snapshot durable as a file, verify it, then say SnapshotStored."""

    group: int
    mark: Mark
    body: Any


class TakeSnapshot(NamedTuple):
    """A record that is applied has rotted: keep the state, so that it is not needed (Compacted)."""

    group: int


class SendSnapshot(NamedTuple):
    """Send your newest snapshot to a follower, as Install."""

    group: int
    to: int
    term: int


class ReadOps(NamedTuple):
    """Read ops from `first` to `last` from disk and say OpsRead with the same `to` and `term`.

    Less will do (a message's size, damage); when there is none, say OpsGone.
    """

    group: int
    to: int
    term: int
    first: int
    last: int


class FollowerBehind(NamedTuple):
    """A member lacks ops from `first` on that cannot be read here: only a copy of a peer helps."""

    group: int
    to: int
    first: int


class BeatSoon(NamedTuple):
    """A read waits for a round of beats: begin one now."""


class Accepted(NamedTuple):
    """Proposed ops lie at first_index.. in this term; committed when they still do then."""

    group: int
    cause: Any
    first_index: int
    op_count: int
    term: int


class Refused(NamedTuple):
    group: int
    cause: Any
    reason: str
    leader: int  # 0: not known


class ReadReady(NamedTuple):
    """Answer from a state that has applied `index`; by lease: check `holds_lease` afterwards."""

    group: int
    cause: Any
    index: int  # type: ignore[assignment]
    by_lease: bool


class RoleChanged(NamedTuple):
    """For telemetry and redirects."""

    group: int
    role: int
    term: int
    leader: int


Write = WriteTerm | WriteOps | WriteRepair | WriteSnapshot
Action = (
    Write
    | Send
    | Commit
    | Restored
    | StoreSnapshot
    | TakeSnapshot
    | SendSnapshot
    | ReadOps
    | FollowerBehind
    | BeatSoon
    | Accepted
    | Refused
    | ReadReady
    | RoleChanged
)
