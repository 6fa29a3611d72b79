"""Leadership transfer: the leader stops, waits until the target has all, and asks it to campaign.

With TimeoutNow the leader asks the others to break its own lease, so it serves no reads from the
beginning of a transfer.  When that comes to nothing the request may still be under way: leases
count again only when an op appended after the abort has committed, for then the target's log is
too short to win, or too long for the request to be meant.
"""

from __future__ import annotations

from meterd.core.raft import leading
from meterd.core.raft.events import NOT_LEADER, TRANSFERRING, UNFIT, TransferLeadership
from meterd.core.raft.state import LEADER, GroupState, Transfer
from meterd.protocol.raft_messages import AFTER_TRANSFER, NOBODY, NOOP, TimeoutNow


def on_request(group: GroupState, event: TransferLeadership) -> None:
    """Begin a transfer; silence means that it is under way."""
    target = event.target or best_target(group)
    if group.role != LEADER:
        group.refuse(event.cause, NOT_LEADER)
    elif group.transfer is not None:
        group.refuse(event.cause, TRANSFERRING)
    elif not may_lead(group, target):
        group.refuse(event.cause, UNFIT)
    else:
        begin(group, target)


def begin(group: GroupState, target: int) -> None:
    group.transfer = Transfer(target, group.moment.now, sent=False)
    maybe_send(group)


def may_lead(group: GroupState, target: int) -> bool:
    """Whether a member is another voter, undamaged and certain, with room for ops."""
    progress = group.progress.get(target)
    return (
        progress is not None
        and target in group.log.configuration.voters
        and progress.room
        and not progress.damaged
        and not progress.uncertain_since
    )


def best_target(group: GroupState) -> int:
    """Return the fit voter that has most, or nobody."""
    fit = [m for m in group.progress if may_lead(group, m)]
    return max(fit, key=lambda m: (group.progress[m].match, -m), default=NOBODY)


def maybe_send(group: GroupState) -> None:
    """Send TimeoutNow as soon as the target's log is as long as mine."""
    transfer = group.transfer
    if transfer is None or transfer.sent:
        return
    progress = group.progress.get(transfer.target)
    if progress is not None and progress.match == group.log.last:
        group.transfer = transfer._replace(sent=True)
        message = TimeoutNow(group.group, group.term, group.log.last)
        group.send(transfer.target, message)


def maybe_abort(group: GroupState) -> bool:
    """Give up a transfer that takes too long; return whether that was so."""
    transfer = group.transfer
    if transfer is None or group.moment.now - transfer.started_at < group.settings.transfer_ms:
        return False
    group.transfer = None
    if transfer.sent:
        item = (NOOP, leading.NOOP_SIZE, AFTER_TRANSFER)
        group.lease_from = leading.append_ops(group, (item,))
    return True
