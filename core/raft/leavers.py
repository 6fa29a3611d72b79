"""Tells a member that is no member any more that it is not, when it missed that.

A leader sends nothing to who has left its group.  Who was away just then would never learn of it,
and would ask for votes for ever.  So the leader answers such a request with what follows in the
log, message by message, until the configuration without the sender is there, and committed.

Nothing is kept here: each message says where the next one begins.  An append of a leader may go to
anybody; whoever is no voter is not counted for it.
"""

from __future__ import annotations

from meterd.core.raft.events import MetLeader, OpsRead, ReadOps
from meterd.core.raft.state import LEADER, GroupState
from meterd.protocol.raft_messages import NOBODY, Append, AppendReply, PreVote


def has_left(group: GroupState, member: int) -> bool:
    """Whether I lead, and it is committed that somebody is no member."""
    log = group.log
    return (
        group.role == LEADER
        and member not in log.configuration.members
        and log.configuration_index <= group.commit
    )


def on_pre_vote(group: GroupState, sender: int, message: PreVote) -> None:
    """Send what follows where our logs may agree."""
    if not has_left(group, sender):
        return
    log, last = group.log, message.last_index
    if last > log.base.index:
        last = log.last_of_term(message.last_term, last)
    _send_behind(group, sender, last)


def on_append_reply(group: GroupState, sender: int, message: AppendReply) -> None:
    """Go on, or go back; the configuration in force is the last that it needs."""
    if message.term != group.term or not has_left(group, sender):
        return
    if message.conflict:
        at = group.log.last_of_term(message.conflict_term, message.conflict - 1)
        _send_behind(group, sender, min(at, message.conflict - 1, max(message.asked - 1, 0)))
    elif message.asked < message.accepted == message.match < group.log.configuration_index:
        # Durable there; of the two answers to an append only this one counts.  Who took nothing
        # (its disk is full) asks again itself, after a while.
        _send_behind(group, sender, message.accepted)


def on_met_leader(group: GroupState, event: MetLeader) -> None:
    """Ask somebody for his vote who leads, and whom I do not know as a member.

    All whom I know may follow him by now.  His vote would not count; he says what I missed.
    """
    known = group.log.configuration.voters
    if group.role != LEADER and group.leader == NOBODY and event.member not in known:
        last, term = group.log.last, group.log.last_term
        group.send(event.member, PreVote(group.group, group.term + 1, last, term))


def on_ops_read(group: GroupState, event: OpsRead) -> None:
    """Send what was read from disk."""
    if group.term == event.term and has_left(group, event.to):
        before = (event.ops[0].index - 1, event.prev_term, event.prev_digest)
        group.send(event.to, Append(group.group, group.term, *before, event.ops, group.commit))


def _send_behind(group: GroupState, member: int, prev: int) -> None:
    log, settings = group.log, group.settings
    if prev < log.floor:
        return  # only a copy of a peer would help, and who has left needs none
    if prev < log.base.index:
        last = min(log.base.index, prev + settings.append_ops_max)
        group.actions.append(ReadOps(group.group, member, group.term, prev + 1, last))
        return
    ops = log.read(prev + 1, settings.append_ops_max, settings.append_bytes_max)
    before = (prev, log.term_at(prev), log.digest_at(prev))
    group.send(member, Append(group.group, group.term, *before, ops, group.commit))
