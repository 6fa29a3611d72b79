"""How long groups are without a leader when one goes: python -m tests.sim.failover [trials]

Three nodes, default timers, no other fault; one is killed at a random time, or has others lead as a
node does that is stopped.  A group serves again when another node has committed the first op of
its term; of a node that is stopped it serves until it is asked to hand over.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from random import Random
from typing import Any

from meterd.core.cluster.resigning import Resignation
from tests.sim.plan import Plan, draw
from tests.sim.world import World

GROUPS = 12
SPENT_MAX_MS = 5000
TURN_US = 20_000  # how often a node that is stopped looks what has become of its groups


def plan_of(seed: int, fsync_us: int) -> Plan:
    return replace(
        draw(seed),
        voters=3,
        spares=0,
        groups=GROUPS,
        clients=1,
        delay_us=200,
        spike=0.0,
        loss=0.0,
        duplication=0.0,
        fsync_us=fsync_us,
        rates=[1.0, 1.0, 1.0],
        fast_timers=False,
        spread=False,
        faults=[],
        operations=[],
    )


def begun(seed: int, fsync_us: int) -> tuple[World, Any, list[int]]:
    """Return a world in which all is well, one of its machines, and the groups that it leads."""
    world = World(plan_of(seed, fsync_us))
    for machine in world.machines.values():
        machine.start()
    world.run(4_000_000 + Random(seed).randrange(500_000))
    victim = world.machines[1 + seed % 3]
    return world, victim, [g for g in range(GROUPS) if victim.leads(g)]


def stop_times_ms(seed: int, fsync_us: int) -> list[float]:
    """As `times_ms`, of a node that is stopped."""
    world, victim, groups = begun(seed, fsync_us)
    resignation, asked_at, times = Resignation(), dict.fromkeys(groups, world.now), {}
    give_up, due = world.now + 1000 * SPENT_MAX_MS, world.now
    while len(times) < len(groups) and world.now < give_up:
        if world.now >= due:
            due = world.now + TURN_US
            for request in resignation.due(victim.node, {victim.member}, victim.clock()):
                victim.step(request)
                asked_at[request.group] = world.now
        world.run(world.now + 500)
        for group in groups:
            others = [m for m in world.machines.values() if m is not victim]
            if group not in times and any(serves(m, group) for m in others):
                times[group] = (world.now - asked_at[group]) / 1000
    return [times.get(group, float(SPENT_MAX_MS)) for group in groups]


def times_ms(seed: int, fsync_us: int) -> list[float]:
    """Return for each group of the dead node how long it was without a leader that serves."""
    world, victim, groups = begun(seed, fsync_us)
    killed_at = world.now
    world.crash(victim)
    times: dict[int, float] = {}
    while len(times) < len(groups) and world.now < killed_at + 1000 * SPENT_MAX_MS:
        world.run(world.now + 2_000)
        for group in groups:
            if group not in times and any(serves(m, group) for m in world.machines.values()):
                times[group] = (world.now - killed_at) / 1000
    return [times.get(group, float(SPENT_MAX_MS)) for group in groups]


def serves(machine: object, group: int) -> bool:
    node = getattr(machine, "node", None)
    if node is None or not machine.leads(group):  # type: ignore[attr-defined]
        return False
    one = node.groups[group]
    return bool(one.commit >= one.term_start)


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for fsync_us in (300, 10_000, 40_000):
        for what, times_of in (("kills", times_ms), ("stops", stop_times_ms)):
            times = sorted([t for seed in range(trials) for t in times_of(seed, fsync_us)])
            places = {p: min(len(times) - 1, len(times) * p // 100) for p in (50, 90, 99, 100)}
            text = ", ".join([f"p{p} {times[place]:.0f}" for p, place in places.items()])
            print(f"fsync {fsync_us / 1000} ms: {len(times)} groups of {trials} {what}, ms: {text}")


if __name__ == "__main__":
    main()
