"""What replicas of a group say to each other, as values: ops, configurations, messages.

The words are the paper's, with `op` for a log entry.  A member is an int that names a node *and*
its incarnation (`member_id`): a node whose disk was wiped comes back as another member, so nobody
can take its new promises for the old ones.

Every reply names what it answers: `asked` the term of a vote, `asked` the previous index of an
append, `round` the beat.  A reply that did not could be taken for the answer to something newer.
(`index` hides what tuples have under that name; it is the paper's word.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

# Kinds of op that the engine makes itself; all others are the state machine's (log_format.KINDS).
NOOP: Final = 16
CONFIG: Final = 17

# Why there is a NOOP.  Only the first kind is a view change.
OPENS_TERM: Final = 1
AFTER_TRANSFER: Final = 2
TO_VOUCH: Final = 3  # for a follower that is uncertain

UNKNOWN: Final = 0  # in place of the term of an op before, which the sender has no more; or none is

NODE_BITS: Final = 8
NOBODY: Final = 0  # no member has this id: nodes are numbered from 1
# In a cluster nodes have numbers up to this; it stands for any other, of a node alone.
NUMBERLESS: Final = 255


def member_id(node: int, incarnation: int) -> int:
    """Return the member that node number `node` is in its `incarnation` (from 0)."""
    return incarnation << NODE_BITS | (node if 0 < node < NUMBERLESS else NUMBERLESS)


def node_of(member: int) -> int:
    """Return the number of a member's node."""
    return member & ((1 << NODE_BITS) - 1)


def incarnation_of(member: int) -> int:
    """Return the incarnation of a member's node."""
    return member >> NODE_BITS


class Configuration(NamedTuple):
    """Who has a replica.  Absolute: it says everything, whoever reads it."""

    voters: tuple[int, ...]  # ascending
    learners: tuple[int, ...] = ()  # ascending; get ops, are never counted

    @property
    def members(self) -> tuple[int, ...]:
        """Everybody who gets ops."""
        return self.voters + self.learners

    @property
    def quorum(self) -> int:
        """How many voters are a majority."""
        return len(self.voters) // 2 + 1


class Op(NamedTuple):
    """One entry of a group's log: in the files, a slice of a record."""

    index: int  # type: ignore[assignment]
    term: int
    digest: int  # of the digest before and everything else here: equal means equal history
    kind: int
    size: int  # bytes, for limits
    body: Any  # CONFIG: a Configuration; NOOP: why; else the shell's


class Mark(NamedTuple):
    """A place in a group's history, and who was a member there."""

    index: int  # type: ignore[assignment]
    term: int
    digest: int
    configuration: Configuration


class PreVote(NamedTuple):
    """Would you vote for me?  Changes nothing at either end."""

    group: int
    term: int  # the one I would campaign in: mine + 1
    last_index: int
    last_term: int


class PreVoteReply(NamedTuple):
    group: int
    asked: int  # the term of the question
    granted: bool
    term: int  # mine


class Vote(NamedTuple):
    group: int
    term: int
    last_index: int
    last_term: int
    transfer: bool  # the leader itself wants this election: the sticky refusal does not hold


class VoteReply(NamedTuple):
    group: int
    asked: int
    granted: bool
    term: int


class Append(NamedTuple):
    """Ops of a leader, and the one before them.

    `prev_term` UNKNOWN: the leader's files begin with the first of these ops.  Then `prev_digest`
    is 0, and becomes the receiver's own digest there if the first op follows from it.
    """

    group: int
    term: int
    prev_index: int
    prev_term: int
    prev_digest: int
    ops: tuple[Op, ...]
    commit: int


class AppendReply(NamedTuple):
    """What a follower has of its leader's log.

    `match` is durable and undamaged and compared with the leader's log in this term; `accepted`
    is the same, not yet durable.  A refusal has `conflict` > 0: the logs may agree before it.
    """

    group: int
    term: int
    asked: int  # prev_index of the append; 0 when ops became durable
    accepted: int
    match: int
    conflict: int
    conflict_term: int  # of my op before `conflict`
    need_from: int  # lowest damaged index, 0 for none
    uncertain_since: int  # the start since which I may lack acks and votes of mine, 0: I do not
    room: bool  # False: my disk is full, send no ops


class Beat(NamedTuple):
    """The part of a node's beat that is about one group it leads."""

    group: int
    term: int
    commit: int


class BeatReply(NamedTuple):
    group: int
    term: int
    accepted: int
    match: int
    need_from: int
    uncertain_since: int
    room: bool


class Beats(NamedTuple):
    """One heartbeat between two nodes, for all groups that the sender leads."""

    round: int  # counts up as long as the sender's process lives
    sent_at: int  # sender's monotonic ms; comes back as it is
    wall: int  # sender's wall clock, ms
    beats: Sequence[Beat]  # groups ascending


class BeatReplies(NamedTuple):
    round: int
    sent_at: int
    wall: int  # replier's wall clock, ms
    replies: Sequence[BeatReply]


class Install(NamedTuple):
    """A snapshot, whole; how its bytes travel is the shell's matter."""

    group: int
    term: int
    mark: Mark
    body: Any


class TimeoutNow(NamedTuple):
    """Campaign at once, if your log still ends where I saw it end."""

    group: int
    term: int
    last_index: int


class Vouch(NamedTuple):
    """What you may have forgotten cannot matter any more: you are certain."""

    group: int
    term: int
    since: int  # the start since which you were not


class Repair(NamedTuple):
    """Who has the content of these ops?  (index, term) names one content for ever."""

    group: int
    wanted: tuple[tuple[int, int], ...]


class RepairReply(NamedTuple):
    group: int
    ops: tuple[Op, ...]


class Hello(NamedTuple):
    """I have just started, and my log is durable up to this block.  Have you heard of more?"""

    block: int


class HelloReply(NamedTuple):
    boot: int  # of the start that asked
    block: int  # the highest durable block you told me of before this start


GroupMessage = (
    PreVote
    | PreVoteReply
    | Vote
    | VoteReply
    | Append
    | AppendReply
    | Install
    | TimeoutNow
    | Vouch
    | Repair
    | RepairReply
)
Message = GroupMessage | Beats | BeatReplies | Hello | HelloReply


class Envelope(NamedTuple):
    """Everything that goes to one peer at once."""

    cluster: int
    source: int  # member
    target: int  # member: what was meant for an older incarnation is not for a newer one
    boot: int  # counts the sender's starts; older ones are ignored
    block: int  # durable at the sender
    messages: tuple[Any, ...]  # Message, AppendSlices or AckSlices (raft_slices.py)
