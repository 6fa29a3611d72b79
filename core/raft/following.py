"""AppendEntries as its receiver sees it, and what a follower says it has.

`verified` is the last index that is known to be as this term's leader has it, because it was
compared or is committed: what lies behind it may differ, however long the own log is, so nothing
behind it is acked or committed.

A follower answers an append whose ops are all new when they are durable, and any other at once: it
says nothing that the leader does not learn from the next answer to a beat, and that never waits for
the disk.
"""

from __future__ import annotations

from itertools import takewhile

from meterd.core.raft import elections, leading, repair
from meterd.core.raft.state import FOLLOWER, GroupState
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.raft_messages import UNKNOWN, Append, AppendReply, Beat, BeatReply, Op


class TwoHistories(InvariantViolation):
    """A leader has another op under an index and term than this node; a restore can do that."""


def heed_leader(group: GroupState, term: int, leader: int) -> bool:
    """Follow whoever leads in `term`; return False when that term is over."""
    if term < group.term:
        return False
    if term > group.term or group.role != FOLLOWER or group.leader != leader:
        elections.follow(group, term, leader)
    return True


def on_append(group: GroupState, sender: int, message: Append) -> None:
    """Take the ops if they continue a common history, else say where that may end."""
    if not heed_leader(group, message.term, sender):
        reply(group, sender, message.prev_index)
        return
    log = group.log
    prev, ops = message.prev_index, message.ops
    if prev < log.base.index:
        # Up to the snapshot all is committed, so the leader has the same.
        known = log.base.index - prev
        if len(ops) >= known and ops[known - 1].digest != log.base.digest:
            raise _two_histories(group, log.base.index, log.base.term)
        ops, prev = ops[known:], log.base.index
    elif not _agrees(group, message):
        at = log.last_of_term(message.prev_term or log.last_term, prev)
        reply(group, sender, message.prev_index, at + 1, log.term_at(at))
        return
    new = bool(ops) and prev == log.last and group.moment.room and not log.holes
    verified = _take(group, ops, prev)
    group.verified = max(group.verified, verified)
    group.leader_commit = max(message.commit, group.leader_commit)
    group.advance_commit(min(message.commit, group.verified))
    if not new:
        reply(group, sender, message.prev_index)


def _agrees(group: GroupState, message: Append) -> bool:
    """Whether my log holds the op before the first one sent.  Raises TwoHistories."""
    log, prev = group.log, message.prev_index
    if prev > log.last:
        return False
    if prev and message.prev_term == UNKNOWN:
        return log.digest_at(prev) == message.prev_digest
    if log.term_at(prev) != message.prev_term:
        return False
    if log.digest_at(prev) != message.prev_digest:
        raise _two_histories(group, prev, message.prev_term)
    return True


def _two_histories(group: GroupState, index: int, term: int) -> TwoHistories:
    return TwoHistories(f"group {group.group}: op ({index}, {term}) has two histories")


def _take(group: GroupState, ops: tuple[Op, ...], prev: int) -> int:
    """Append what is new; return the last index that is now as the leader has it.

    Raises TwoHistories: a digest covers all before it, so that of the last known op says it.

    Only an op of another term at the same index shows a conflict.  A shorter append does not: it
    may be an old one, and what lies behind it may be acked since.
    """
    log = group.log
    known = 0
    for op in ops:
        if op.index > log.last or log.term_at(op.index) != op.term:
            break
        known += 1
    if known and log.digest_at(prev + known) != ops[known - 1].digest:
        raise _two_histories(group, prev + known, ops[known - 1].term)
    if log.holes:
        repair.take(group, ops[:known])
    new = ops[known:]
    if not group.moment.room:
        new = tuple(takewhile(leading.fits_reserve, new))
    if not new:
        return prev + known
    group.write_ops(new)
    return new[-1].index


def on_beat(group: GroupState, sender: int, beat: Beat) -> BeatReply:
    """Answer the leader's sign of life; from now on nobody else gets my vote for a while."""
    if heed_leader(group, beat.term, sender):
        group.heard_at = group.moment.now
        group.election_at = group.moment.now + group.patience
        if not group.log.holes:
            group.deadline = group.election_at
        group.leader_commit = max(beat.commit, group.leader_commit)
        group.advance_commit(min(beat.commit, group.verified))
    return BeatReply(
        group.group,
        group.term,
        group.verified,
        group.match,
        group.log.first_hole,
        group.uncertain_since,
        group.moment.room,
    )


def reply(
    group: GroupState, leader: int, asked: int, conflict: int = 0, conflict_term: int = 0
) -> None:
    """Tell the leader what I have of its log."""
    group.reported = group.match
    message = AppendReply(
        group.group,
        group.term,
        asked,
        group.verified,
        group.match,
        conflict,
        conflict_term,
        group.log.first_hole,
        group.uncertain_since,
        group.moment.room,
    )
    group.send(leader, message)


def on_durable(group: GroupState) -> None:
    """Tell the leader that more is durable."""
    if group.role == FOLLOWER and group.leader and group.match > group.reported:
        reply(group, group.leader, 0)
