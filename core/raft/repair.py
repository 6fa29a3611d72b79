"""Damaged ops: their identity is known, their content is fetched from whoever has it.

Cutting the log at a damaged op would forget what this replica has acked, and committed ops with
it.  So it keeps the op as a hole: it votes by the hole's identity, acks only what lies before it,
applies only that, and never leads.  (index, term) names one content for ever, so any peer may
give it, committed or not.  What was fetched is a hole until it is durable again.
"""

from __future__ import annotations

from collections.abc import Iterable

from meterd.core.raft.events import Damaged, WriteRepair
from meterd.core.raft.state import LEADER, GroupState
from meterd.protocol.raft_messages import NOBODY, Op, Repair, RepairReply


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
    """Give what is here and whole."""
    log = group.log
    found = [
        log.op(index)
        for index, term in message.wanted[: group.settings.repair_ops_max]
        if log.base.index < index <= log.last
        and log.term_at(index) == term
        and index not in log.holes
    ]
    if found:
        group.send(sender, RepairReply(group.group, tuple(found)))


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
    """A record has rotted while I run; a leader hands over at its next tick."""
    group.log.damage(event.index)
    if group.log.holes and group.role != LEADER:
        group.repair_at = group.moment.now
        group.deadline = group.moment.now
