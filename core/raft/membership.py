"""Single-server changes of who is a member.

A configuration is in force from the time it is appended, committed or not, and ends with its op
when that is truncated.  Any majority of it meets any majority of the one before, because they
differ by one voter; that holds only if there is nothing else uncommitted, neither an earlier
change nor one that an older leader began: so the leader commits an op of its own term first.
"""

from __future__ import annotations

from meterd.core.raft import leading
from meterd.core.raft.events import (
    BAD_CHANGE,
    CHANGE_PENDING,
    NO_QUORUM,
    NOT_CAUGHT_UP,
    NOT_LEADER,
    NOT_READY,
    TRANSFERRING,
    Accepted,
    ProposeChange,
)
from meterd.core.raft.state import LEADER, GroupState
from meterd.protocol.raft_messages import CONFIG, Configuration

CONFIG_SIZE = 256


def on_change(group: GroupState, event: ProposeChange) -> None:
    """Append a configuration, or say why not."""
    reason = reason_against(group, event.configuration)
    if reason:
        group.refuse(event.cause, reason)
        return
    item = (CONFIG, CONFIG_SIZE, event.configuration)
    index = leading.append_ops(group, (item,))
    leading.keep_progress(group)
    leading.send_to_all(group)
    leading.maybe_commit(group)
    group.actions.append(Accepted(group.group, event.cause, index, 1, group.term))


def reason_against(group: GroupState, new: Configuration) -> str:
    """Return why this change may not be made now, or nothing."""
    if group.role != LEADER:
        return NOT_LEADER
    if group.transfer is not None:
        return TRANSFERRING
    if not has_opened_term(group):
        return NOT_READY
    if group.log.configuration_index > group.commit:
        return CHANGE_PENDING
    old = group.log.configuration
    if not is_single_change(old, new) or group.member not in new.voters:
        return BAD_CHANGE  # a leader is removed after it has handed over
    promoted = [m for m in new.voters if m not in old.voters]
    if not all(is_caught_up(group, m) for m in promoted):
        return NOT_CAUGHT_UP
    return "" if has_living_majority(group, new) else NO_QUORUM


def has_opened_term(group: GroupState) -> bool:
    """Whether an op of my own term is committed (the bug of 2015 is to do without)."""
    return group.commit >= group.term_start


def is_single_change(old: Configuration, new: Configuration) -> bool:
    """Whether at most one voter comes or goes, and nobody is both voter and learner."""
    differing = set(old.voters) ^ set(new.voters)
    return (
        len(differing) <= 1
        and len(new.voters) >= 1
        and list(new.voters) == sorted(set(new.voters))
        and list(new.learners) == sorted(set(new.learners))
        and not set(new.voters) & set(new.learners)
    )


def is_caught_up(group: GroupState, member: int) -> bool:
    """Whether a learner has nearly all, and can be counted; a stranger has nothing."""
    progress = group.progress.get(member)
    lag_max = group.settings.promotion_lag_max
    return (
        progress is not None
        and not progress.damaged
        and not progress.uncertain_since
        and progress.match > 0
        and group.log.last - progress.match <= lag_max
    )


def has_living_majority(group: GroupState, new: Configuration) -> bool:
    """Whether enough of the new voters have answered lately for the change to commit."""
    since = group.moment.now - group.settings.check_quorum_ms
    alive = 1 + sum(
        group.progress[m].counted_sent_at >= since for m in new.voters if m in group.progress
    )
    return alive >= new.quorum
