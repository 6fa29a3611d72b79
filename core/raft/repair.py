"""Damaged ops: their identity is known, their content is fetched from whoever has it.

Cutting the log at a damaged op would forget what this replica has acked, and committed ops with
it.  So it keeps the op as a hole: it votes by the hole's identity, acks only what lies before it,
applies only that, and never leads.  (index, term) names one content for ever, so any peer may
give it, committed or not.  What was fetched is a hole until it is durable again.
"""

from __future__ import annotations

from collections.abc import Iterable

from meterd.core.raft.events import (
    Damaged,
    FollowerBehind,
    OpsGone,
    OpsRead,
    ReadOps,
    TakeSnapshot,
    WriteRepair,
)
from meterd.core.raft.state import LEADER, GroupState
from meterd.protocol.raft_messages import NOBODY, Op, Repair, RepairReply

FOR_REPAIR = 0  # in place of the term of a leader that reads ops to send


def ask(group: GroupState) -> None:
    """Ask one peer, any, for the content of the first holes."""
    log, settings = group.log, group.settings
    group.repair_at = group.moment.now + settings.repair_retry_ms
    peers = [
        m for m in (group.leader, *log.configuration.members) if m not in (NOBODY, group.member)
    ]
    if not peers:
        return
    peer = peers[int(group.random.random() * len(peers))]
    holes = log.holes[: settings.repair_ops_max]
    group.send(peer, Repair(group.group, tuple([(i, log.term_at(i)) for i in holes])))


def on_repair(group: GroupState, sender: int, message: Repair) -> None:
    """Give what is here and whole, from memory or from disk."""
    log = group.log
    wanted = message.wanted[: group.settings.repair_ops_max]
    found = [
        log.op(index)
        for index, term in wanted
        if log.base.index < index <= log.last
        and log.term_at(index) == term
        and index not in log.holes
    ]
    if found:
        group.send(sender, RepairReply(group.group, tuple(found)))
    on_disk = [index for index, _ in wanted if log.floor < index <= log.base.index]
    if on_disk:
        group.actions.append(ReadOps(group.group, sender, FOR_REPAIR, on_disk[0], on_disk[0]))


def on_ops_read(group: GroupState, event: OpsRead) -> None:
    """Give what was read from disk; who asked takes what is his."""
    group.send(event.to, RepairReply(group.group, event.ops))


def on_ops_gone(group: GroupState, event: OpsGone) -> None:
    """Say so if this replica leads: who asked may have asked everybody."""
    if group.role == LEADER:
        group.actions.append(FollowerBehind(group.group, event.to, event.first))


def on_repair_reply(group: GroupState, message: RepairReply) -> None:
    take(group, message.ops)


def take(group: GroupState, ops: Iterable[Op]) -> None:
    """Write the content of holes among `ops` anew."""
    log = group.log
    under_way = {op.index for _, written in group.repairs for op in written}
    found = tuple(
        [
            op
            for op in ops
            if op.index in log.holes
            and op.index not in under_way
            and (op.term, op.digest) == (log.term_at(op.index), log.digest_at(op.index))
        ]
    )
    if found and group.moment.room:
        group.actions.append(WriteRepair(group.group, found))
        group.repairs.append((group.moment.block, found))


def on_durable(group: GroupState) -> None:
    """What is on disk again is a hole no more."""
    log = group.log
    while group.repairs and group.repairs[0][0] <= group.durable_block:
        for op in group.repairs.popleft()[1]:
            if op.index in log.holes and log.term_at(op.index) == op.term:
                log.fill(op)
    group.release()


def on_damaged(group: GroupState, event: Damaged) -> None:
    """A record has rotted while I run; a leader hands over at its next tick.

    When the op is applied, its effect is here: a snapshot of it makes the record needless, also
    where no peer's log reaches back to.
    """
    group.log.damage(event.index)
    if group.log.floor < event.index <= group.applicable:
        group.actions.append(TakeSnapshot(group.group))
    if group.log.holes:
        group.deadline = group.moment.now
        if group.role != LEADER:
            group.repair_at = group.moment.now
