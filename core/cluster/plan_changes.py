"""Says what a leader should do next, so that its group becomes what the plan says.

A change is one step of the engine: learners come and go freely, voters one at a time.  New ones
come before old ones go, so a group never has fewer replicas than it had.  A leader that is to go,
or that should not lead, hands over first.  Groups that move at once catch up from the same records
of the log, which is read once for all of them; but only some do (`CHANGES_AT_ONCE`), so that each
is soon done.  The meta group comes before all others: it says what the plan is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from meterd.core.cluster.members import DRAINED, Members
from meterd.protocol.log_format import META_GROUP
from meterd.protocol.raft_messages import Configuration, node_of

# Partitions that get or lose replicas at once on the word of one leader.
CHANGES_AT_ONCE: Final = 16


class Led(NamedTuple):
    """What a leader knows of a group that it leads."""

    configuration: Configuration
    settled: bool  # that is committed, as is an op of this term; no transfer is under way
    caught_up: Collection[int]  # learners (and voters) that are there and have nearly all


class Change(NamedTuple):
    """Propose this configuration."""

    group: int
    configuration: Configuration


class HandOver(NamedTuple):
    """Let this member lead."""

    group: int
    member: int


def next_steps(members: Members, own: int, led: Mapping[int, Led]) -> list[Change | HandOver]:
    """Return what to do now in the groups that member `own` leads.

    Groups whose change waits for a learner or a commit count among those that move at once.
    """
    steps: list[Change | HandOver] = []
    absent = {one.member for one in members.present if not one.directory}
    present = {one.member for one in members.present}
    moving = 0
    for group in sorted(led, key=lambda group: (group != META_GROUP, group)):
        if group >= len(members.plan):
            continue
        target = members.configuration(group)
        if led[group].configuration == target:
            step: Change | HandOver | None = _lead(members, own, group, led[group])
        elif absent & ({*target.voters} - {*led[group].configuration.voters}):
            continue  # whose directory is not there yet
        elif moving < CHANGES_AT_ONCE:
            moving += group != META_GROUP
            step = _step(members, own, group, led[group], target, present)
        else:
            continue
        if step is not None:
            steps.append(step)
    return steps


def _step(
    members: Members, own: int, group: int, led: Led, target: Configuration, present: set[int]
) -> Change | HandOver | None:
    """Return the next step of a group on its way to `target`, or None to wait.

    A voter that is not `present`, whose directory is lost, goes just before its successor comes:
    with both of them one more of the living would have to agree to everything.
    """
    if not led.settled:
        return None
    now = led.configuration
    coming = [member for member in target.voters if member not in now.voters]
    learners = {*target.learners, *coming} - {*now.voters}
    if not learners <= set(now.learners):
        return Change(group, _configuration(now.voters, {*now.learners, *learners}))
    ready = [member for member in coming if member in led.caught_up]
    lost = [m for m in now.voters if m not in target.voters and m not in present and m != own]
    if lost and (ready or not coming):
        voters = tuple(member for member in now.voters if member != lost[0])
        return Change(group, _configuration(voters, now.learners))
    if ready:
        voters = (*now.voters, ready[0])
        return Change(group, _configuration(voters, {*now.learners} - {ready[0]}))
    if coming:
        return None
    leaving = [member for member in now.voters if member not in target.voters]
    others = [member for member in leaving if member != own]
    if others:
        gone = others[0]
        voters = tuple(member for member in now.voters if member != gone)
        stays = {gone} & {*target.learners}  # who goes on as a learner becomes one at once
        return Change(group, _configuration(voters, {*now.learners} | stays))
    if leaving:
        return HandOver(group, _successor(members, group, led, target))
    return Change(group, target)  # learners that are there no longer


def _configuration(voters: Iterable[int], learners: Iterable[int]) -> Configuration:
    return Configuration(tuple(sorted(voters)), tuple(sorted(learners)))


def _successor(members: Members, group: int, led: Led, target: Configuration) -> int:
    """Return who leads instead: whom the plan prefers, or else anybody who has all (0)."""
    preferred = members.nodes[members.plan[group].leader].member
    fit = preferred in target.voters and preferred in led.caught_up
    return preferred if fit else 0


def _lead(members: Members, own: int, group: int, led: Led) -> HandOver | None:
    """Hand over to whom the plan prefers, or away from a drained node."""
    preferred = members.nodes[members.plan[group].leader]
    if not led.settled or (preferred.member == own and preferred.state != DRAINED):
        return None
    if preferred.state != DRAINED and preferred.member in led.caught_up:
        return HandOver(group, preferred.member)
    here = members.nodes.get(node_of(own))
    if here is None or here.state != DRAINED:
        return None
    able = [
        member
        for member in led.configuration.voters
        if member in led.caught_up and members.nodes[node_of(member)].state != DRAINED
    ]
    return HandOver(group, able[0]) if able else None
