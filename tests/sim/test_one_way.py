"""Links that pass one way only: who leads, and what each node says of it, in simulated time."""

from __future__ import annotations

import pytest

from meterd.core.cluster.report import GroupSummary, group_summary
from tests.sim.failover import GROUPS, plan_of
from tests.sim.world import World

SETTLED_MS = 6_000


@pytest.fixture(params=range(3))
def world(request: pytest.FixtureRequest) -> World:
    """Give three nodes that lead four groups each, or so."""
    made = World(plan_of(request.param, 300))
    for machine in made.machines.values():
        machine.start()
    pass_by(made, SETTLED_MS)
    assert [whole(made, number) for number in made.machines] == [True] * 3
    assert sum(said(made, number).leads for number in made.machines) == GROUPS
    return made


def pass_by(world: World, ms: int) -> None:
    world.run(world.now + ms * 1000)


def said(world: World, number: int) -> GroupSummary:
    machine = world.machines[number]
    return group_summary(machine.node, [0] * GROUPS, machine.clock())


def whole(world: World, number: int) -> bool:
    one = said(world, number)
    return (one.leaderless, one.unanswered, one.members) == (0, 0, GROUPS)


def test_who_hears_nobody_leads_nothing_and_knows_no_leader(world: World) -> None:
    world.cut = {(2, 1), (3, 1)}
    pass_by(world, SETTLED_MS)
    assert (said(world, 1).leads, said(world, 1).leaderless) == (0, GROUPS)
    assert [whole(world, number) for number in (2, 3)] == [True, True]


def test_who_is_not_heard_leads_nothing_and_knows_that_leaders_do_not_answer(world: World) -> None:
    world.cut = {(1, 2), (1, 3)}
    pass_by(world, SETTLED_MS)
    one = said(world, 1)
    assert (one.leads, one.leaderless, one.unanswered) == (0, 0, GROUPS)
    assert [whole(world, number) for number in (2, 3)] == [True, True]


def test_one_link_less_changes_no_leader(world: World) -> None:
    before = {number: said(world, number) for number in world.machines}
    world.cut = {(1, 2)}
    pass_by(world, SETTLED_MS)
    after = {number: said(world, number) for number in world.machines}
    assert [after[n].leads for n in after] == [before[n].leads for n in before]
    assert [after[n].term for n in after] == [before[n].term for n in before]
    assert after[1].unanswered == after[2].leads and after[1].leaderless == 0
    assert after[2].leaderless == after[1].leads and after[2].unanswered == 0
    assert whole(world, 3)
    world.cut = set()
    pass_by(world, SETTLED_MS)
    assert [whole(world, number) for number in world.machines] == [True] * 3
