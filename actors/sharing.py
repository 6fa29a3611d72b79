"""Decides which nodes take part in an answer about all accounts, for the usage actor.

A node answers for the partitions of which the plan gives it a replica.  Where that is not all, the
rest is asked of others: of the leaders for usage, because they answer at once; for a feed of few
nodes that have replicas, those first that come next by its cursor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meterd.core import feed_cursor, partition_sets
from meterd.core.members import VOTER, Members
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
    members, own = usage.state.members, usage.leader_map.own
    held = members.held(own)
    asked, cursor = fields["partitions"], fields["after"]
    if asked is not None:
        _check_held(asked, held)
        return asked, []
    if len(held) == PARTITION_COUNT:
        return EVERY_PARTITION, []
    if kind == "feed":
        parts = _for_feed(members, own, set(usage.leader_map.nodes.tolist()))
        turn = feed_cursor.parse(cursor).turn if feed_cursor.is_stable(cursor) else 0
        parts.sort(key=lambda part: (part[0] <= turn, part[0]))
    else:
        parts = _for_usage(members, held, usage.leader_map.nodes.tolist())
    mine = [one for part in parts if not part[1] for one in partition_sets.unpack(part[2])]
    mine = sorted(mine) if kind == "feed" else held
    fields["partitions"] = tuple(mine)
    return mine, parts


def _check_held(wanted: Sequence[int], held: Collection[int]) -> None:
    """Raise NotLeader for what is not here."""
    missing = sorted(set(wanted) - set(held))
    if missing:
        raise NotLeader(f"this node has no replica of partition {missing[0]}")


def _for_usage(members: Members, held: Collection[int], leaders: Sequence[int]) -> list[Part]:
    by_leader: dict[int, list[int]] = {}
    for partition in sorted(set(EVERY_PARTITION) - set(held)):
        by_leader.setdefault(leaders[partition], []).append(partition)
    if 0 in by_leader:
        raise NotLeader("no leader is known at the moment: one is being elected")
    return [_part(members, node, by_leader[node]) for node in sorted(by_leader)]


def _for_feed(members: Members, own: int, leading: set[int]) -> list[Part]:
    """Share partitions among this node and few others, those first that lead something."""
    voters = {one.node for one in members.present if one.state == VOTER and one.node != own}
    mine = members.held(own)
    shares: dict[int, list[int]] = {}
    left = sorted(set(EVERY_PARTITION) - set(mine))
    for able in (voters & leading, voters - leading):
        found, left = partition_sets.cover(left, {node: members.held(node) for node in able})
        shares |= found
    if left:
        raise NotLeader(f"no node that could be asked has a replica of partition {left[0]}")
    parts = [_part(members, node, shares[node]) for node in sorted(shares)]
    return [[own, "", partition_sets.pack(mine)], *parts] if mine else parts


def _part(members: Members, node: int, partitions: Sequence[int]) -> Part:
    return [node, _address(members, node), partition_sets.pack(partitions)]


def _address(members: Members, node: int) -> str:
    known: Mapping[int, Any] = {one.node: one for one in members.present}
    if node not in known:
        raise NotLeader(f"node {node}, which has a part of this, is no member any more")
    return str(known[node].client_address)
