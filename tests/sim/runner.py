"""One seed from beginning to end: faults, then healing and a deadline; and what came of it."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from meterd.core.raft.group import Group
from meterd.core.raft.state import ROLES
from meterd.protocol.errors import MeterdError
from tests.sim.checks import require
from tests.sim.nemesis import Nemesis
from tests.sim.plan import Plan, draw, hurried
from tests.sim.world import Stuck, World

# After the faults: a leader for every group, everything proposed committed, replicas equal.
HEAL_US = 12_000_000
# Of the time that a plan has for its faults, which come so much sooner.
SHARE = 0.6


@dataclass
class Result:
    """What one seed did."""

    seed: int
    failure: str = ""
    steps: int = 0
    cpu_seconds: float = 0.0
    healed_us: int = 0  # how long after the faults until all was well
    counts: Counter[str] = field(default_factory=Counter)
    coverage: Counter[tuple[str, str]] = field(default_factory=Counter)
    acts: list[tuple[int, str]] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    recorded: list[Any] = field(default_factory=list)


def run_seed(seed: int, *, trace: bool = False, dropped: frozenset[int] = frozenset()) -> Result:
    """Run one seed; a broken rule is a result, not an exception."""
    plan = replace(hurried(draw(seed), SHARE), rarity=SHARE, dropped=dropped)
    return run_plan(plan, trace=trace)


def run_fast(seed: int, *, trace: bool = False, dropped: frozenset[int] = frozenset()) -> Result:
    """Run one seed on nodes with the fast path, with more groups and ops for many at once."""
    plan = replace(hurried(draw(seed), SHARE), rarity=SHARE, dropped=dropped)
    plan = replace(plan, fast=True, groups=6, spread=True)
    return run_plan(plan, trace=trace)


def run_plan(plan: Plan, *, trace: bool = False) -> Result:
    world = World(plan)
    if trace:
        world.trace = []
    nemesis = Nemesis(world)
    result = Result(plan.seed)
    carry_through(world, nemesis, result, lambda: _play(world, nemesis, result))
    result.recorded = world.recorded or []
    return result


def carry_through(world: World, nemesis: Nemesis, result: Result, play: Callable[[], None]) -> None:
    """Play a seed to its end or first failure, and note what has happened."""
    try:
        play()
    except (
        AssertionError,
        AttributeError,
        LookupError,
        MeterdError,
        TypeError,
        ValueError,
    ) as error:
        kind = type(error).__name__
        result.failure = f"{kind}: {error}"
        if kind not in ("Violation", "Stuck"):
            result.failure += "\n" + traceback.format_exc()
    result.steps = world.steps
    result.counts, result.coverage = world.counts, world.coverage
    result.acts, result.trace = nemesis.done, world.trace or []


def _play(world: World, nemesis: Nemesis, result: Result) -> None:
    for machine in world.machines.values():
        machine.start()
    world.clients.start()
    if world.plan.spread:
        world.after(100_000, None, nemesis.spread)
    nemesis.start()
    world.run(world.plan.fault_ms * 1000)
    nemesis.heal()
    world.clients.stop()
    healed_at = world.now
    deadline = healed_at + HEAL_US
    world.run(deadline, lambda: world.clients.idle)
    if not world.clients.idle:
        raise Stuck(f"after {HEAL_US // 1000} ms of peace: {_situation(world)}")
    result.healed_us = world.now - healed_at
    for group in range(world.plan.groups):  # what is new is served, too
        for client in world.clients.all:
            world.clients.begin(client, group)
        world.run(world.now + HEAL_US, lambda: world.clients.idle)
        if not world.clients.idle:
            raise Stuck(f"nothing new is served: {_situation(world)}")
    world.run(world.now + HEAL_US, lambda: all_equal(world))
    if not all_equal(world):
        raise Stuck(f"replicas are not equal: {_situation(world)}")
    _check_totals(world)


def all_equal(world: World) -> bool:
    """Whether every group has a leader, and every member that lives has what it has."""
    for number in range(world.plan.groups):
        leaders = [m for m in world.machines.values() if m.leads(number)]
        if len(leaders) != 1 or leaders[0].node is None:
            return False
        group = leaders[0].live(number)
        if group.commit != group.log.last:
            return False
        for machine in world.machines.values():
            counted = machine.member in group.log.configuration.members
            if machine.node is None or not counted:
                continue
            if machine.states[number].applied != group.commit:
                return False
    return True


def _check_totals(world: World) -> None:
    """I11, I15, I18: all that was acknowledged is there once, nothing is invented."""
    for number in range(world.plan.groups):
        leader = next(m for m in world.machines.values() if m.leads(number))
        assert leader.node is not None
        model = leader.states[number]
        members = leader.node.groups[number].log.configuration.members
        for machine in world.machines.values():
            if machine.node is None or machine.member not in members:
                continue
            state = machine.states[number]
            require(state.identities == model.identities, "I11 replicas agree", number)
            require(state.view_changes == model.view_changes, "I18 view changes", number)
        for group, identity in world.clients.acked:
            if group == number:
                require(identity in model.identities, "I11 acknowledged and lost", identity)
        for identity in model.identities:
            require(identity in world.clients.attempted, "I15 invented", identity)


def _situation(world: World) -> str:
    lines = []
    for machine in world.machines.values():
        if machine.node is None:
            lines.append(f"{machine.number}: dead")
            continue
        for group in machine.node.groups.values():
            lines.append(f"{machine.number}/{group.group}: {_described(machine.live(group.group))}")
    return "\n  ".join(["", *lines])


def _described(group: Group) -> str:
    log = group.log
    text = (
        f"{ROLES[group.role]} term {group.term} leader {group.leader} last {log.last}"
        f" commit {group.commit} durable {group.durable} holes {log.holes}"
        f" uncertain {group.uncertain} {log.configuration}"
    )
    known = [(m, p.state, p.match, p.next, p.room) for m, p in group.progress.items()]
    return f"{text} progress {known}" if known else text


def shrink(seed: int, run: Callable[..., Result] = run_seed, attempts_max: int = 400) -> Result:
    """Leave out faults and operations as long as the same seed still fails."""
    best = run(seed)
    dropped: frozenset[int] = frozenset()
    attempts = 0
    size = max(1, len(best.acts) // 2)
    while size and best.failure and attempts < attempts_max:
        smaller = False
        for start in range(0, len(best.acts), size):
            some = frozenset(number for number, _ in best.acts[start : start + size])
            result = run(seed, dropped=dropped | some)
            attempts += 1
            if result.failure:
                best, dropped, smaller = result, dropped | some, True
                break
        if not smaller:
            size //= 2
    return run(seed, dropped=dropped, trace=True)
