"""Says how this node's groups are and what it knows of the other nodes: for operators, as values.

What it says of groups that another node leads is what that one has told: the truth is the leader's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from meterd.core.cluster.members import Members
from meterd.core.raft.node import Node
from meterd.core.raft.state import LEADER, ROLES
from meterd.core.raft.steady import View
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.raft_messages import NOBODY, incarnation_of, node_of


class Link(NamedTuple):
    """What the connections to a node say."""

    connected: bool
    in_flight: int  # messages that it has not said it has
    in_flight_bytes: int


class GroupSummary(NamedTuple):
    """A few numbers about all groups, for telemetry and health."""

    members: int  # groups of which this node has a replica
    leads: int  # partitions
    leaderless: int  # groups of those whose leader is not known
    unanswered: int  # and those whose leader is known, but has not answered this node lately
    term: int  # the highest
    lag_ops: dict[int, int]  # by peer's node: what it lacks of the groups led here
    view_changes: int


def group_summary(
    node: Node, view_changes: Sequence[int], now: int, views: Mapping[int, View] | None = None
) -> GroupSummary:
    """Return the numbers at monotonic ms `now`; cheap enough for every second.

    views: the engine's, if they are known already.
    """
    lag: dict[int, int] = {node_of(member): 0 for member in node.peers}
    answering = {member for member in node.peers if answers(node, member, now)}
    held = leads = leaderless = unanswered = term = 0
    for number, view in (node.views() if views is None else views).items():
        if node.member not in node.groups[number].log.configuration.members:
            continue
        held += 1
        leads += view.role == LEADER and number < PARTITION_COUNT
        if view.role != LEADER:
            leaderless += view.leader == NOBODY
            unanswered += view.leader not in (NOBODY, *answering)
        term = max(term, view.term)
        for member, match in view.matches.items():
            lag[node_of(member)] = lag.get(node_of(member), 0) + max(0, view.last - match)
    return GroupSummary(held, leads, leaderless, unanswered, term, lag, sum(view_changes))


def answers(node: Node, member: int, now: int) -> bool:
    """Has it answered a beat of this node lately?  Else it may be heard, but does not hear."""
    heard = node.clocks.heard(member, now)
    return heard is not None and heard[1] < node.settings.suspicion_ms


def report(
    own: int,
    node: Node,
    members: Members,
    links: Mapping[int, Link],
    applied: Sequence[int],
    view_changes: Sequence[int],
    now: int,
) -> dict[str, Any]:
    """Return what node `own` answers to `cluster_status`; `applied`, `view_changes`: by group."""
    views = node.views()
    known = members.nodes.get(own)
    return {
        "node": own,
        "incarnation": known.incarnation if known else incarnation_of(node.member) + 1,
        "members_version": members.version,
        "cluster_version": members.cluster_version,
        "standing_aside": node.is_aside,
        "members": [_member(members, views, one.node, own) for one in members.present],
        "peers": [
            _peer(node, members, links, views, peer, now)
            for peer in sorted(node.peers, key=node_of)
            if peer in _present(members, node)
        ],
        "groups": [
            {
                **_group(node, own, number, views[number]),
                "leader": _leader(views[number], own),
                "applied": applied[number],
                "view_changes": view_changes[number],
            }
            for number in sorted(views)
        ],
        "plan": [[list(seat.voters), seat.leader] for seat in members.plan],
    }


def _present(members: Members, node: Node) -> set[int]:
    """Return the members that are nodes now; others are what is left of lost directories."""
    known = {one.member for one in members.present}
    return known or {*node.peers}


def _leader(view: View, own: int) -> int | None:
    """Return the node that leads a group, or None when that is not known."""
    if view.role == LEADER:
        return own  # a single node may have any number
    return None if view.leader == NOBODY else node_of(view.leader)


def _member(members: Members, views: Mapping[int, View], number: int, own: int) -> dict[str, Any]:
    one = members.nodes[number]
    partitions = [view for group, view in views.items() if group < PARTITION_COUNT]
    return {
        "node": one.node,
        "incarnation": one.incarnation,
        "state": one.state,
        "peer_address": one.peer_address,
        "client_address": one.client_address,
        "joined": bool(one.directory),
        "leads": sum(_leader(view, own) == number for view in partitions),
        "planned": len(members.held(number)),
    }


def _peer(
    node: Node,
    members: Members,
    links: Mapping[int, Link],
    views: Mapping[int, View],
    peer: int,
    now: int,
) -> dict[str, Any]:
    number = node_of(peer)
    link = links.get(number, Link(False, 0, 0))
    heard = node.clocks.heard(peer, now)
    known = members.nodes.get(number)
    lags = {
        group: max(0, view.last - view.matches[peer])
        for group, view in views.items()
        if peer in view.matches
    }
    return {
        "node": number,
        "address": known.peer_address if known else "",
        "connected": link.connected,
        "heard_ms": None if heard is None else heard[1],
        "round_trip_ms": None if heard is None else heard[0],
        "clock_offset_ms": node.clocks.offset(peer, now),
        "in_flight": link.in_flight,
        "in_flight_bytes": link.in_flight_bytes,
        "lag_ops": sum(lags.values()),
        "lag_bytes": sum(node.size_behind(group, peer) for group, lag in lags.items() if lag),
        "lagging_groups": sum(lag > 0 for lag in lags.values()),
    }


def _group(node: Node, own: int, number: int, view: View) -> dict[str, Any]:
    group = node.groups[number]
    configuration = group.log.configuration
    if node.member in configuration.learners:
        role = "learner"
    elif node.member in configuration.voters:
        role = ROLES[view.role]
    else:
        role = "none"
    behind = max((view.last - match for match in view.matches.values()), default=0)
    names = {node.member: own}  # a single node may have any number
    return {
        "group": number,
        "role": role,
        "term": view.term,
        "commit": view.commit,
        "last": view.last,
        "lag": max(0, behind if view.role == LEADER else view.leader_commit - view.commit),
        "holes": len(group.log.holes),
        "voters": sorted(names.get(member, node_of(member)) for member in configuration.voters),
        "learners": [names.get(member, node_of(member)) for member in configuration.learners],
    }
