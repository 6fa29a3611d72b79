"""How long groups are without a leader when one dies: python -m tests.sim.failover [trials]

Three nodes, default timers, no other fault; one is killed at a random time.  A group serves again
when a survivor has committed the first op of its term.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from random import Random

from tests.sim.plan import Plan, draw
from tests.sim.world import World

GROUPS = 12
SPENT_MAX_MS = 5000


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


def times_ms(seed: int, fsync_us: int) -> list[float]:
    """Return for each group of the dead node how long it was without a leader that serves."""
    world = World(plan_of(seed, fsync_us))
    for machine in world.machines.values():
        machine.start()
    world.run(4_000_000 + Random(seed).randrange(500_000))
    victim = world.machines[1 + seed % 3]
    groups = [g for g in range(GROUPS) if victim.leads(g)]
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
        times = sorted([t for seed in range(trials) for t in times_ms(seed, fsync_us)])
        shown = {p: times[min(len(times) - 1, len(times) * p // 100)] for p in (50, 90, 99, 100)}
        text = ", ".join([f"p{p} {ms:.0f}" for p, ms in shown.items()])
        print(f"fsync {fsync_us / 1000} ms: {len(times)} groups of {trials} kills, ms: {text}")


if __name__ == "__main__":
    main()
