"""Snapshots: the log begins later, with a state machine that has applied what came before.

A snapshot is installed by *one* record of the log, written after the file is durable.  Two steps
(new state, then new position) would apply ops twice after a crash between them.
"""

from __future__ import annotations

from meterd.core.raft import following
from meterd.core.raft.events import (
    Compacted,
    Forgotten,
    Restored,
    SnapshotStored,
    StoreSnapshot,
    WriteSnapshot,
)
from meterd.core.raft.state import GroupState
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.raft_messages import Install, Mark


def on_compacted(group: GroupState, event: Compacted) -> None:
    """Begin the log behind a snapshot of my own state."""
    log, mark = group.log, event.mark
    _check_applied(group, mark.index)
    if mark.index <= log.floor:
        return
    if mark.index > log.base.index:
        log.compact(mark)
    log.floor = mark.index
    group.actions.append(WriteSnapshot(group.group, mark))


def on_forgotten(group: GroupState, event: Forgotten) -> None:
    """Keep no longer in memory what only followers far behind need."""
    _check_applied(group, event.index)
    if event.index > group.log.base.index:
        group.log.forget(event.index)


def _check_applied(group: GroupState, index: int) -> None:
    if index > group.applicable:
        raise InvariantViolation(f"op {index} is forgotten, {group.applicable} are applied")


def on_install(group: GroupState, sender: int, message: Install) -> None:
    """Have the leader's snapshot stored, unless the log has all of it."""
    if not following.heed_leader(group, message.term, sender):
        following.reply(group, sender, 0)
    elif message.mark.index <= group.applicable:
        # Committed and applied here, so it is the leader's history, too.
        group.verified = max(group.verified, message.mark.index)
        following.reply(group, sender, 0)
    else:
        group.actions.append(StoreSnapshot(group.group, message.mark, message.body))


def on_stored(group: GroupState, event: SnapshotStored) -> None:
    """The file is durable: switch to it, by one record."""
    mark = event.mark
    if mark.index <= group.applicable:
        return  # the log was faster
    switch(group, mark)
    group.actions.append(Restored(group.group, mark))
    group.release()


def switch(group: GroupState, mark: Mark) -> None:
    """Begin the log at the mark.  What is acked does not grow before the record is durable."""
    acked = min(group.durable, group.log.whole_to)
    continues = group.log.compact(mark)
    group.durable = acked if continues else min(acked, mark.index)
    group.pending.clear()  # all of it lies in blocks up to this one
    group.await_durable(group.log.last)
    group.commit = max(group.commit, mark.index)
    group.applicable = mark.index
    # What is committed is in the log of every later leader.
    group.verified = max(group.verified, mark.index)
    group.actions.append(WriteSnapshot(group.group, mark))
