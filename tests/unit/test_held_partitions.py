"""What is dropped goes by the partitions that a node holds, and by no others."""

from __future__ import annotations

from typing import Any

import numpy as np

from meterd.core.cluster.held_partitions import QUIET_SECONDS, HeldPartitions
from meterd.core.cluster.members import Members, Seat, first
from meterd.core.kernels.tables import DAY_NS
from meterd.core.state.horizons import BEGINNING, Horizons
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.raft_messages import Configuration, member_id

OWN = 1
MEMBER = member_id(OWN, 0)


def beginning() -> tuple[Members, dict[int, Configuration]]:
    members = first((n, f"h{n}:8001", f"h{n}:7001") for n in range(1, 6))
    return members, {group: members.configuration(group) for group in range(PARTITION_COUNT)}


def look(held: HeldPartitions, members: Members, now_in: Any, applied: Any, now: float) -> set[int]:
    found = held.look(MEMBER, members, now_in, applied, now)
    return set(np.flatnonzero(found).tolist())


def test_what_never_came_is_not_held():
    members, now_in = beginning()
    applied = np.zeros(GROUP_COUNT, np.uint64)
    mine = set(members.held(OWN))
    assert 0 < len(mine) < PARTITION_COUNT
    assert look(HeldPartitions(), members, now_in, applied, 0.0) == mine


def test_what_is_to_come_and_what_is_about_to_go_is_held():
    members, now_in = beginning()
    applied = np.zeros(GROUP_COUNT, np.uint64)
    coming = next(g for g in range(PARTITION_COUNT) if g not in members.held(OWN))
    going = members.held(OWN)[0]
    members.plan[coming], members.plan[going] = Seat((1, 2, 3), 2), Seat((2, 3, 4), 2)
    found = look(HeldPartitions(), members, now_in, applied, 0.0)
    assert {coming, going} <= found


def test_what_has_left_is_held_until_nothing_has_come_for_long():
    members, now_in = beginning()
    applied, held = np.zeros(GROUP_COUNT, np.uint64), HeldPartitions()
    left = members.held(OWN)[0]
    applied[left] = 7
    members.plan[left] = Seat((2, 3, 4), 2)
    now_in[left] = Configuration((member_id(2, 0), member_id(3, 0), member_id(4, 0)))
    assert left in look(held, members, now_in, applied, 100.0)
    assert left in look(held, members, now_in, applied, 99.0 + QUIET_SECONDS)
    applied[left] = 8
    assert left in look(held, members, now_in, applied, 100.0 + QUIET_SECONDS)
    assert left not in look(held, members, now_in, applied, 100.0 + 2 * QUIET_SECONDS)


def test_the_least_is_of_what_is_held():
    horizons = Horizons()
    command = {"horizon": 40 * DAY_NS, "totals_horizon": 30 * DAY_NS, "future_ns": DAY_NS}
    mine = np.arange(10)
    horizons.move(mine, command)
    assert (horizons.events, horizons.totals) == (BEGINNING, BEGINNING)
    held = np.zeros(PARTITION_COUNT, np.bool_)
    held[mine] = True
    horizons.hold(held)
    assert (horizons.events, horizons.totals) == (40 * DAY_NS, 30 * DAY_NS)
    assert not horizons.alike  # what is judged by goes by each partition's own
    held[200] = True
    horizons.hold(held)
    assert horizons.events == BEGINNING
    horizons.hold(np.zeros(PARTITION_COUNT, np.bool_))
    assert horizons.events == BEGINNING
