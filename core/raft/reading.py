"""Linearizable reads on the leader: by lease when it holds one, else by a round of beats.

Both prove that no newer leader had committed anything when the read came.  A *round*: a majority
answered, in this term, a beat that was sent after the read came.  A *lease*: a majority answered
a beat sent less than lease_ms ago, and who has answered a beat votes for nobody for sticky_ms,
counted from a later instant.  The lease runs from the time of *sending*: an answer that was slow
to come says nothing about now.

A leader that has just been elected does not know what is committed before its first op is, and
one that has sent TimeoutNow has asked the others to break its lease.
"""

from __future__ import annotations

from typing import NamedTuple

from meterd.core.raft.events import (
    NOT_LEADER,
    NOT_READY,
    OVERLOADED,
    TRANSFERRING,
    BeatSoon,
    Read,
    ReadReady,
)
from meterd.core.raft.state import LEADER, GroupState, WaitingRead
from meterd.protocol.raft_slices import Ints

FOREVER = 1 << 60


class Leases(NamedTuple):
    """Of each group that this member leads and may serve reads of by lease."""

    groups: Ints
    term_start: Ints
    sent_at: Ints  # since when a majority is known to follow; FOREVER: nobody else is needed


def quorum_sent_at(group: GroupState) -> int:
    """Return the latest time since which a majority of voters is known to have followed."""
    configuration = group.log.configuration
    times = []
    for member in configuration.voters:
        if member == group.member:
            times.append(group.moment.now)
        else:
            times.append(group.progress[member].counted_sent_at)
    times.sort(reverse=True)
    return times[configuration.quorum - 1]


def quorum_round(group: GroupState) -> int:
    """Return the newest round that a majority of voters has answered."""
    configuration = group.log.configuration
    rounds = []
    for member in configuration.voters:
        if member == group.member:
            rounds.append(FOREVER)
        else:
            rounds.append(group.progress[member].counted_round)
    rounds.sort(reverse=True)
    return rounds[configuration.quorum - 1]


def holds_lease(group: GroupState) -> bool:
    """Whether nobody else can lead now.  Ask again after the answer is computed."""
    return (
        group.role == LEADER
        and group.transfer is None
        and group.commit >= group.lease_from
        and group.moment.now - quorum_sent_at(group) < group.settings.lease_ms
    )


def lease_of(group: GroupState) -> tuple[int, int, int] | None:
    """Return group, first index of the term, and since when a majority is known to follow.

    None where this replica may serve nothing by lease.
    """
    if group.role != LEADER or group.transfer is not None or group.commit < group.lease_from:
        return None
    alone = group.log.configuration.voters == (group.member,)
    return group.group, group.term_start, FOREVER if alone else quorum_sent_at(group)


def on_read(group: GroupState, event: Read) -> None:
    """Say which state answers the read, now or after a round, or why none does."""
    if group.role != LEADER:
        group.refuse(event.cause, NOT_LEADER)
    elif group.transfer is not None:
        group.refuse(event.cause, TRANSFERRING)
    elif group.commit < group.term_start:
        group.refuse(event.cause, NOT_READY)
    elif holds_lease(group):
        group.actions.append(ReadReady(group.group, event.cause, group.commit, by_lease=True))
    elif len(group.reads) >= group.settings.reads_max:
        group.refuse(event.cause, OVERLOADED)
    else:
        group.reads.append(WaitingRead(group.moment.round, group.commit, event.cause))
        group.actions.append(BeatSoon())
        serve_waiting(group)


def serve_waiting(group: GroupState) -> None:
    """Answer reads whose round a majority has answered."""
    answered = quorum_round(group)
    while group.reads and group.reads[0].round <= answered:
        read = group.reads.popleft()
        group.actions.append(ReadReady(group.group, read.cause, read.index, by_lease=False))
