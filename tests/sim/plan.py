"""What one seed draws before it begins.  Swarm testing: every seed has its own mix of faults."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

# Kinds of fault, each with the mean time between two of them when a seed has it, in ms.
FAULTS = {
    "crash": 1800,
    "crash_all": 6000,
    "pause": 1800,
    "partition": 2200,
    "isolate": 2200,
    "one_way": 2000,
    "bad_link": 1500,
    "clog": 2200,
    "loss": 2500,
    "slow_disk": 2200,
    "full_disk": 3000,
    "damage": 2500,
    "lost_tail": 4000,
    "wipe": 5000,
    "drift": 4000,
    "clock_jump": 4000,
    "crash_point": 1200,
}
# Operations, likewise.
OPERATIONS = {
    "transfer": 1500,
    "membership": 900,
    "snapshot": 700,
    "forget": 500,
}
MEAN_MS = FAULTS | OPERATIONS
# Of what it is with the product's timers.
FAST = 1 / 3
FIRST_ELECTION_MS = 500
# Of the time, for a seed without faults: it only shows that all is well then.
QUIET = 0.4
# Timers fire up to so late.
LATE_US = 4000


@dataclass
class Plan:
    """Everything about a run that is not drawn while it runs."""

    seed: int
    voters: int
    spares: int
    groups: int
    clients: int
    fault_ms: int  # the first phase; then all faults end
    delay_us: int
    spike: float
    loss: float
    duplication: float
    fsync_us: int
    rates: list[float]
    fast_timers: bool  # elections in a third of the time: more of them in a run
    spread: bool  # a load of ops for many groups at once
    keeps_quorum_only: bool  # after the faults a minority stays dead
    faults: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    # The fast path (the same seed must do the same with and without it), and what it did.
    fast: bool = False
    records_steps: bool = False
    # What faults take, and clients wait for an answer, of their usual time.
    pace: float = 1.0
    rarity: float = 1.0  # of the usual time between two faults, or operations
    # A tick that is set is not set anew for a time that is less than this earlier.
    tick_slack_us: int = 0
    think_ms: float = 15  # between two requests of a client
    spread_ms: float = 12  # between two loads for many groups
    # Faults left out, by their number: how a failure is shrunk.
    dropped: frozenset[int] = frozenset()


def hurried(plan: Plan, share: float = 1.0) -> Plan:
    """Return a plan with a share of the faults, and not much time in which nothing new happens.

    Where elections take a third of the time, faults come three times as fast and last a third;
    where they do not, clients are slower.
    """
    plan = replace(plan, tick_slack_us=LATE_US)
    if not plan.faults:
        share *= QUIET
    if not plan.fast_timers:
        return replace(plan, fault_ms=int(plan.fault_ms * share), think_ms=30, spread_ms=36)
    fault_ms = FIRST_ELECTION_MS + int(plan.fault_ms * share * FAST)
    return replace(plan, fault_ms=fault_ms, pace=FAST, think_ms=5)


def draw(seed: int) -> Plan:
    """Return the plan of a seed, with faults at the pace of the product's timers."""
    random = Random(seed)
    faults = [kind for kind in FAULTS if random.random() < 0.4]
    if random.random() < 0.05:
        faults = []
    if "wipe" in faults:
        # One copy lost for good is the most that a group of three stands.
        faults = [kind for kind in faults if kind not in ("damage", "lost_tail")]
    if "lost_tail" in faults and "damage" not in faults:
        faults.append("damage")
    operations = [kind for kind in OPERATIONS if random.random() < 0.6]
    quiet = not faults
    drift = 0.02 if "drift" in faults else 0.0
    voters = random.choice([3, 3, 3, 5])
    spares = random.choice([0, 1, 2])
    return Plan(
        seed=seed,
        voters=voters,
        spares=spares,
        groups=random.choice([1, 1, 2, 3]),
        clients=random.choice([2, 3, 4]),
        fault_ms=random.choice([4000, 7000, 10000]),
        delay_us=random.choice([200, 1000, 5000, 30_000]),
        spike=0.0 if quiet else random.choice([0.0, 0.002, 0.01]),
        loss=0.0 if quiet else random.choice([0.0, 0.0, 0.01, 0.05]),
        duplication=0.0 if quiet else random.choice([0.0, 0.02, 0.3]),
        fsync_us=random.choice([300, 2000, 10000, 40000]),
        rates=[1 + random.uniform(-drift, drift) for _ in range(voters + spares)],
        fast_timers=random.random() < 0.6,
        spread=random.random() < 0.4,
        keeps_quorum_only=not quiet and random.random() < 0.3,
        faults=faults,
        operations=operations,
    )


def with_lost_votes(seed: int, **fields: Any) -> Plan:
    """Return a plan whose only fault is that one machine of three loses its last block.

    Often there was a vote in that.
    """
    plan = replace(draw(seed), voters=3, spares=0, rates=[1.0] * 3, groups=1)
    plan = replace(plan, faults=["lost_tail"], operations=[], rarity=0.2, loss=0, spike=0)
    return hurried(replace(plan, **fields))
