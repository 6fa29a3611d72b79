"""Makes plans that spread replicas and leaders evenly over the nodes that may have them.

Only what has to move does: a fourth node gets 192 replicas, 64 of each of three others, and nothing
else moves; a node that goes leaves its own.  Leaders stay with their replicas where that is even.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from meterd.core.cluster.members import REPLICAS, VOTER, Members, Seat, meta_size
from meterd.core.cluster.spreading import Mask, spread
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.log_format import META_GROUP


def balanced_plan(members: Members) -> list[list[Any]]:
    """Return the moves, [group, voters, leader], that make the plan even.

    Afterwards no node that can vote has two replicas, or leads two partitions, more than another;
    all others have none.  No moves where that is so.
    """
    able = [one.node for one in members.present if one.state == VOTER]
    if not able:
        return []
    has, leads = _now(members, able)
    held = spread(has, np.ones_like(has), REPLICAS, leads)
    led = spread(leads & held, held, 1, np.zeros_like(held))
    seats = [
        Seat(tuple(np.array(able)[row].tolist()), able[int(leader.argmax())])
        for row, leader in zip(held, led, strict=True)
    ]
    seats.append(_meta_seat(members.plan[META_GROUP], able))
    return [
        [group, list(seat.voters), seat.leader]
        for group, seat in enumerate(seats)
        if seat != members.plan[group]
    ]


def stopped_at(voters: list[int], planned: list[int]) -> list[int]:
    """Return the voters that a group is to have when its move ends where it is.

    Half-way it has one more, or one less, than before and after: such a step is done first, or a
    majority of an even number would be needed for good.
    """
    size = min(len(planned), len(voters) | 1)
    order = [*sorted(voters, key=lambda node: node not in planned), *planned]
    return sorted([*dict.fromkeys(order)][:size])


def _now(members: Members, able: list[int]) -> tuple[Mask, Mask]:
    """Return which of the nodes has a replica of each partition by the plan, and which leads it."""
    has = np.zeros((PARTITION_COUNT, len(able)), np.bool_)
    leads = np.zeros_like(has)
    column = {node: place for place, node in enumerate(able)}
    for partition, seat in enumerate(members.plan[:PARTITION_COUNT]):
        has[partition, [column[node] for node in seat.voters if node in column]] = True
        if seat.leader in column:
            leads[partition, column[seat.leader]] = True
    return has, leads


def _meta_seat(seat: Seat, able: list[int]) -> Seat:
    """Return the seat of the meta group: those stay that can, the lowest numbers come."""
    order = sorted(able, key=lambda node: (node != seat.leader, node not in seat.voters, node))
    voters = order[: meta_size(len(able))]
    return Seat(tuple(sorted(voters)), voters[0])
