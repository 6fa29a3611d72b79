"""When leaders go back to where the plan wants them: nodes in simulated time, no fault but ours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meterd.core.cluster.members import Members, first
from meterd.core.cluster.plan_keeper import (
    HAND_BACK_MAX_MS,
    HAND_BACK_MS,
    HAND_OVERS_AT_ONCE,
    PlanKeeper,
)
from meterd.core.raft.events import TransferLeadership
from tests.sim.failover import plan_of
from tests.sim.world import World

GROUPS = 12  # of failover.plan_of
TURN = 100_000  # µs
# From the moment when a node may lead: a look, a transfer, and beats in between.
SOON_MS = 3_000
# A clock so far from the others' that its node must not lead.
OFF_MS = 5_000


class Kept:
    """Three nodes, each with a keeper that is asked ten times a second."""

    def __init__(self, seed: int, fast: bool = False) -> None:
        self.world = World(replace(plan_of(seed, 300), fast=fast))
        self.members: Members = first((number, "", "") for number in (1, 2, 3))
        self.keepers: dict[int, PlanKeeper] = {}
        self.hand_overs = 0

    def start(self, number: int) -> None:
        self.world.machines[number].start()
        self.keepers[number] = PlanKeeper()

    def kill(self, number: int) -> None:
        self.world.crash(self.world.machines[number])

    def run(self, ms: int) -> None:
        until = self.world.now + ms * 1000
        while self.world.now < until:
            self.world.run(min(until, self.world.now + TURN))
            for number, machine in self.world.machines.items():
                if machine.node is None:
                    continue
                requests = self.keepers[number].due(machine.node, self.members, machine.clock())
                assert len(requests) <= HAND_OVERS_AT_ONCE
                for request in requests:
                    self.hand_overs += isinstance(request.event, TransferLeadership)
                    machine.step(request)

    def at_home(self, number: int) -> bool:
        """Does a node lead all that it is to lead?"""
        groups = [g for g in range(GROUPS) if self.members.plan[g].leader == number]
        return all(self.world.machines[number].leads(group) for group in groups)

    def ms_until_home(self, number: int, most: int) -> int:
        began = self.world.now
        while not self.at_home(number):
            self.run(TURN // 1000)
            passed = (self.world.now - began) // 1000
            assert passed <= most, f"node {number} does not lead its groups after {passed} ms"
        return (self.world.now - began) // 1000


@pytest.fixture(params=range(3))
def kept(request: pytest.FixtureRequest) -> Kept:
    """Give three nodes, each of which leads what it is to lead."""
    made = Kept(request.param)
    for number in (1, 2, 3):
        made.start(number)
    made.run(10_000)
    assert all(made.at_home(number) for number in (1, 2, 3))
    return made


def away(kept: Kept, number: int) -> None:
    """Kill a node; the others lead what it led; start it again."""
    kept.kill(number)
    kept.run(4_000)
    kept.start(number)


def test_a_node_that_was_away_leads_again_after_some_seconds(kept: Kept) -> None:
    away(kept, 1)
    assert kept.ms_until_home(1, HAND_BACK_MS + SOON_MS) >= HAND_BACK_MS


def test_who_starts_last_leads_its_groups_soon() -> None:
    late = Kept(1)
    late.start(2)
    late.start(3)
    late.run(5_000)
    late.start(1)
    late.ms_until_home(1, HAND_BACK_MS + SOON_MS)


def test_who_goes_up_and_down_waits_longer_each_time(kept: Kept) -> None:
    for times in range(3):
        away(kept, 1)
        wait = HAND_BACK_MS << times
        assert wait <= kept.ms_until_home(1, wait + SOON_MS)


def test_who_does_not_take_over_is_asked_less_and_less(kept: Kept) -> None:
    """A node whose clock is off does not campaign: each transfer only stops its group."""
    kept.world.machines[1].wall_off_ms = OFF_MS
    kept.run(10_000)  # it has handed over
    assert not any(kept.world.machines[1].leads(group) for group in range(GROUPS))
    kept.hand_overs = 0
    kept.run(2 * HAND_BACK_MAX_MS)
    asked_of_one_node = 5 * HAND_OVERS_AT_ONCE  # after 3, 6, 12, 24, 48 s
    assert 0 < kept.hand_overs <= 2 * asked_of_one_node
    kept.world.machines[1].wall_off_ms = 0
    kept.ms_until_home(1, HAND_BACK_MAX_MS + SOON_MS)


def test_a_node_that_is_drained_hands_over_to_the_living(kept: Kept) -> None:
    """The dead one lacked nothing worth speaking of, and was asked again and again."""
    kept.kill(2)
    kept.run(5_000)
    machine = kept.world.machines[1]
    led = [group for group in range(GROUPS) if machine.leads(group)]
    kept.members.apply({"op": "node_state", "node": 1, "state": "drained"})
    kept.hand_overs = 0
    kept.run(5_000)
    assert led and not any(machine.leads(group) for group in led)
    assert all(kept.world.machines[3].leads(group) for group in led)
    assert kept.hand_overs == len(led)


def test_a_plan_that_is_carried_out_need_not_be_looked_at_while_all_rests() -> None:
    """Only then: a node that lacks something, or that is to lead again, is work to come."""
    kept = Kept(1, fast=True)
    for number in (1, 2, 3):
        kept.start(number)
    kept.run(10_000)
    nodes = {number: kept.world.machines[number].node for number in (1, 2, 3)}
    rests = {number: node.rest for number, node in nodes.items()}
    assert None not in rests.values()
    assert all(keeper.is_settled for keeper in kept.keepers.values())
    kept.run(5_000)
    assert {number: node.rest for number, node in nodes.items()} == rests
    kept.kill(1)
    kept.run(2_000)
    assert all(nodes[number].rest != rests[number] for number in (2, 3))
    kept.start(1)
    kept.run(2_000)
    assert not all(kept.keepers[number].is_settled for number in (2, 3))
    kept.ms_until_home(1, HAND_BACK_MS + SOON_MS)
    kept.run(2_000)
    assert all(keeper.is_settled for keeper in kept.keepers.values())
