"""A node that is about to stop has others lead: nodes in simulated time, no fault but ours."""

from __future__ import annotations

import pytest

from meterd.core.cluster.members import first
from meterd.core.cluster.plan_keeper import PlanKeeper
from meterd.core.cluster.resigning import Resignation
from meterd.core.raft.events import TransferLeadership
from meterd.protocol.raft_messages import node_of
from tests.sim.failover import plan_of
from tests.sim.machine import Machine
from tests.sim.world import World

GROUPS = range(12)  # of failover.plan_of
TURN_MS = 20
# A clock so far from the others' that its node must not lead.
OFF_MS = 5_000


class Leaving:
    """Three nodes, and the resignation of one of them that leads something."""

    def __init__(self, seed: int) -> None:
        self.world = World(plan_of(seed, 300))
        for machine in self.world.machines.values():
            machine.start()
        self.run(5_000)
        self.number = max(self.world.machines, key=lambda number: len(self.led_by(number)))
        self.others = [number for number in self.world.machines if number != self.number]
        self.groups = self.led_by(self.number)
        self.resignation = Resignation()
        self.leaving = {self.one.member}
        self.asked = 0

    @property
    def one(self) -> Machine:
        return self.world.machines[self.number]

    def run(self, ms: int) -> None:
        self.world.run(self.world.now + ms * 1000)

    def led_by(self, number: int) -> list[int]:
        return [group for group in GROUPS if self.world.machines[number].leads(group)]

    def terms(self) -> dict[int, int]:
        """Return the newest term of each group."""
        nodes = [machine.node for machine in self.world.machines.values() if machine.node]
        return {group: max(node.view(group).term for node in nodes) for group in GROUPS}

    def resign(self, most_ms: int) -> int:
        """Ask until it is done; return how long that took."""
        began = self.world.now
        while True:
            assert self.one.node is not None
            requests = self.resignation.due(self.one.node, self.leaving, self.one.clock())
            for request in requests:
                assert isinstance(request.event, TransferLeadership)
                self.asked += 1
                self.one.step(request)
            passed = (self.world.now - began) // 1000
            if self.resignation.is_done or passed >= most_ms:
                return passed
            self.run(TURN_MS)


@pytest.fixture(params=range(4))
def leaving(request: pytest.FixtureRequest) -> Leaving:
    made = Leaving(request.param)
    assert made.groups
    return made


def test_all_groups_are_led_by_others_soon_and_each_changes_once(leaving: Leaving) -> None:
    terms = leaving.terms()
    # Before anybody could suspect that it is gone.
    assert leaving.resign(2_000) < leaving.one.node.settings.suspicion_ms  # type: ignore[union-attr]
    assert leaving.led_by(leaving.number) == []
    assert leaving.asked == len(leaving.groups)
    leaving.run(2_000)
    assert leaving.led_by(leaving.number) == []
    grown = {group: term - terms[group] for group, term in leaving.terms().items()}
    assert grown == {group: int(group in leaving.groups) for group in GROUPS}
    # What it led is shared by those who stay.
    shares = [len(set(leaving.led_by(other)) & set(leaving.groups)) for other in leaving.others]
    assert sum(shares) == len(leaving.groups)
    assert max(shares) - min(shares) <= 1 + len(leaving.groups) // 3


def test_who_stops_too_is_not_asked(leaving: Leaving) -> None:
    stays, goes = leaving.others
    leaving.leaving.add(leaving.world.machines[goes].member)
    before = leaving.led_by(goes)
    assert leaving.resign(2_000) < 2_000
    assert set(leaving.groups) <= set(leaving.led_by(stays))
    assert leaving.led_by(goes) == before


def test_when_all_stop_nobody_waits(leaving: Leaving) -> None:
    leaving.leaving |= {machine.member for machine in leaving.world.machines.values()}
    assert leaving.resign(2_000) == 0
    assert (leaving.asked, leaving.led_by(leaving.number)) == (0, leaving.groups)


def test_the_dead_are_not_asked(leaving: Leaving) -> None:
    stays, dead = leaving.others
    leaving.world.crash(leaving.world.machines[dead])
    leaving.run(4_000)
    groups = leaving.led_by(leaving.number)
    assert leaving.resign(2_000) < 2_000
    assert set(groups) <= set(leaving.led_by(stays))
    assert leaving.asked == len(groups)


def test_without_others_there_is_nothing_to_wait_for(leaving: Leaving) -> None:
    for other in leaving.others:
        leaving.world.crash(leaving.world.machines[other])
    leaving.run(1_000)  # nobody is heard; it has not stepped down yet
    assert leaving.led_by(leaving.number)
    assert leaving.resign(2_000) == 0


def test_who_does_not_take_over_is_followed_by_the_next(leaving: Leaving) -> None:
    """A node whose clock is off does not campaign: each transfer to it comes to nothing."""
    unfit, fit = leaving.others
    leaving.world.machines[unfit].wall_off_ms = OFF_MS
    leaving.run(2_000)  # it knows, and has handed over
    groups = leaving.led_by(leaving.number)
    assert leaving.resign(4_000) < 4_000
    assert set(groups) <= set(leaving.led_by(fit))
    assert leaving.asked > len(groups)


def test_it_is_given_nothing_while_it_stops(leaving: Leaving) -> None:
    """The plan wants its groups back, and the keepers of the others would hand them to it."""
    members = first((number, "", "") for number in (1, 2, 3))
    keepers = {number: PlanKeeper() for number in leaving.world.machines}

    def keep(ms: int) -> int:
        """Let the nodes carry the plan out; return how many groups were handed to it."""
        handed = 0
        for _ in range(ms // 100):
            leaving.run(100)
            for number, machine in leaving.world.machines.items():
                assert machine.node is not None
                for request in keepers[number].due(
                    machine.node, members, machine.clock(), leaving.leaving
                ):
                    assert isinstance(request.event, TransferLeadership)
                    handed += node_of(request.event.target) == leaving.number
                    machine.step(request)
        return handed

    leaving.resign(2_000)
    assert keep(5_000) == 0
    assert leaving.led_by(leaving.number) == []
    leaving.leaving.clear()  # it has come back, say
    assert keep(10_000) > 0
