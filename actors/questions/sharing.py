"""Decides which nodes take part in an answer about all accounts, for the usage actor.

A node answers for what it leads, and for partitions of which it has a replica that counts: by the
plan and by their configuration as it is applied here.  (The plan alone says what is to be: a
replica that is on its way would keep the question waiting.)  The rest is asked of the leaders, who
have it for certain and answer at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meterd.core.cluster.group_facts import ALONE
from meterd.core.cluster.members import Members
from meterd.core.questions import feed_cursor, partition_sets
from meterd.protocol.errors import NotLeader
from meterd.protocol.limits import PARTITION_COUNT

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

EVERY_PARTITION = range(PARTITION_COUNT)
# Node, address (empty: this node), partitions as bytes.
Part = list[Any]


def share(usage: Usage, kind: str, fields: dict[str, Any]) -> tuple[Sequence[int], list[Part]]:
    """Return the partitions that this node answers for, ascending, and the parts of a joined
    answer: of other nodes, for a feed this node's own among them; none when all is here.

    `fields` say afterwards which partitions are this node's.  Raises MeterdError.
    """
    own, turn = usage.leader_map.own, 0
    held = _held(usage)
    asked, cursor = fields["partitions"], fields["after"]
    if asked is not None:
        _check_held(asked, held)
        return asked, []
    if len(held) == PARTITION_COUNT:
        return EVERY_PARTITION, []
    fields["partitions"] = tuple(held)
    parts = _of_leaders(usage, held)
    if kind == "feed":
        parts += [[own, "", partition_sets.pack(held)]] if held else []
        turn = feed_cursor.parse(cursor).turn if feed_cursor.is_stable(cursor) else 0
    return held, sorted(parts, key=lambda part: (part[0] <= turn, part[0]))


def _held(usage: Usage) -> list[int]:
    """Return the partitions that this node answers for, ascending."""
    plan, own = usage.state.members.plan, usage.leader_map.own
    now, leaders = usage.applier.facts.configurations, usage.leader_map.nodes.tolist()
    return [
        group
        for group in EVERY_PARTITION
        if leaders[group] == own
        or (own in plan[group].voters and usage.who.member in now.get(group, ALONE).voters)
    ]


def _check_held(wanted: Sequence[int], held: Collection[int]) -> None:
    """Raise NotLeader for what is not here."""
    missing = sorted(set(wanted) - set(held))
    if missing:
        raise NotLeader(f"this node has no replica of partition {missing[0]}")


def _of_leaders(usage: Usage, held: Collection[int]) -> list[Part]:
    leaders = usage.leader_map.nodes.tolist()
    by_leader: dict[int, list[int]] = {}
    for partition in sorted(set(EVERY_PARTITION) - set(held)):
        by_leader.setdefault(leaders[partition], []).append(partition)
    if 0 in by_leader:
        raise NotLeader("no leader is known at the moment: one is being elected")
    return [_part(usage.state.members, node, by_leader[node]) for node in by_leader]


def _part(members: Members, node: int, partitions: Sequence[int]) -> Part:
    return [node, _address(members, node), partition_sets.pack(partitions)]


def _address(members: Members, node: int) -> str:
    known: Mapping[int, Any] = {one.node: one for one in members.present}
    if node not in known:
        raise NotLeader(f"node {node}, which has a part of this, is no member any more")
    return str(known[node].client_address)
