"""Worlds and runs of the second layer; plans, network, scheduling and faults are the first's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from meterd.core.raft.group import Group
from meterd.protocol.log_format import META_GROUP
from meterd.protocol.raft_messages import Configuration, Mark, member_id
from tests.sim.checks import Checks, require
from tests.sim.core_clients import PARTITION_OF, PARTITIONS_MAX, CoreClients
from tests.sim.core_history import History
from tests.sim.core_machine import CoreMachine
from tests.sim.core_nemesis import CoreNemesis
from tests.sim.core_usage import Usage, read_again
from tests.sim.disk import DiskGroup
from tests.sim.plan import FAULTS, Plan, draw, hurried
from tests.sim.runner import HEAL_US, Result, _described, carry_through
from tests.sim.world import Stuck, World

# A damaged log is refused by recovery: nodes repair only what rots while they run.
NOT_HERE_YET = ("lost_tail",)
# So many seeds begin with a node that is alone, and grow.
ALONE = 0.15
FAULTS_OF_CORE = tuple([kind for kind in FAULTS if kind not in NOT_HERE_YET])
SPOILED = 0.003
# Seconds: every seed meets a few crashes in them.
FAULT_MS = (3000, 4000, 6000)
# Clients are busier than in the first layer.
THINK = 0.45


class CoreChecks(Checks):
    """The first layer's rules, and what is committed is counted."""

    world: CoreWorld  # type: ignore[assignment]

    def committed(self, machine: Any, group: Group, index: int) -> None:
        number = group.group
        known = len(self.canonical.get(number, ()))
        super().committed(machine, group, index)
        for at in range(known + 1, len(self.canonical[number]) + 1):
            op = machine.ops[number][at]
            self.world.history.commit(number, at, op.term, op.kind, op.body)

    def durable_alone(self, machine: Any, number: int, index: int) -> None:
        """Ops are durable that were written while this node was the group's only voter.

        So they are committed, whoever is to vote from the next op on: who leads by the new members
        needs this node's vote.
        """
        canonical = self.canonical.setdefault(number, [])
        terms = self.commit_terms.setdefault(number, [])
        for at in range(len(canonical) + 1, index + 1):
            op = machine.ops[number][at]
            canonical.append((op.term, op.digest))
            terms.append(max(op.term, terms[-1] if terms else 0))
            self.world.history.commit(number, at, op.term, op.kind, op.body)

    def stepped(self, machine: Any) -> None:
        node = machine.node
        for number in self.world.groups:
            if node._steady.parked[number]:
                continue  # the fast path has it in columns
            group = node.groups[number]
            log = group.log
            holds = log.base.index <= group.applicable <= group.commit <= log.last
            holds = holds and group.durable <= log.last and group.verified <= log.last
            if not (holds and log.last_term <= group.term):
                require(False, "I7", _described(group))


class CoreWorld(World):
    """Everything there is in one run of the second layer."""

    machines: dict[int, CoreMachine]

    def __init__(self, plan: Plan) -> None:
        self.spoiled: set[Any] = set()  # envelopes of which a byte was changed on the way
        self._spoil = Random(f"{plan.seed}/spoil")
        super().__init__(plan)

    def made_groups(self) -> Sequence[int]:
        return [*range(self.plan.groups), META_GROUP]

    def made_observers(self) -> tuple[Any, Any]:
        voters = tuple([member_id(n, 0) for n in range(1, self.plan.voters + 1)])
        self.history = History(self.groups, voters)
        return CoreChecks(self), CoreClients(self)

    def fresh_groups(self, number: int) -> dict[int, DiskGroup]:
        """Everybody learns the meta group, and knows with whom logs begin: `node.json` says so."""
        voters = [member_id(n, 0) for n in range(1, self.plan.voters + 1)]
        spares = [member_id(self.plan.voters + n, 0) for n in range(1, self.plan.spares + 1)]
        groups = {}
        for group in self.groups:
            learners = tuple(spares) if group == META_GROUP else ()
            groups[group] = DiskGroup(Mark(0, 0, 0, Configuration(tuple(voters), learners)))
        return groups

    def empty_groups(self) -> dict[int, DiskGroup]:
        return self.fresh_groups(0)

    def made_machine(self, number: int) -> CoreMachine:
        return CoreMachine(self, number, self.fresh_groups(number))

    def transmit(self, source: Any, to: int, envelope: Any) -> None:
        """Carry frames; now and then one byte of them changes."""
        if self.plan.faults and self._spoil.random() < SPOILED:
            frames = list(envelope)
            at = self._spoil.randrange(len(frames))
            if frames[at]:
                changed = bytearray(frames[at])
                changed[self._spoil.randrange(len(changed))] ^= 1 << self._spoil.randrange(8)
                frames[at] = bytes(changed)
                envelope = tuple(frames)
                self.spoiled.add(envelope)
        super().transmit(source, to, envelope)


def draw_core(seed: int) -> Plan:
    """Return the plan of a seed of the second layer."""
    plan, random = draw(seed), Random(f"{seed}/core")
    faults = [kind for kind in plan.faults if kind not in NOT_HERE_YET]
    if random.random() < ALONE:
        plan = replace(plan, voters=1, spares=2, rates=[*plan.rates, 1.0][:3])
        plan.operations = sorted({*plan.operations, "membership"})
        # What its only node has forgotten nobody knows.
        faults = [kind for kind in faults if kind not in ("wipe", "damage")]
    if plan.faults and not {"crash", "crash_all", "crash_point"} & set(faults):
        faults.append("crash")
    return replace(
        plan,
        faults=faults,
        operations=sorted({*plan.operations, "snapshot"}),
        groups=random.randint(1, PARTITIONS_MAX),
        clients=random.choice([2, 3, 4]),
        fault_ms=random.choice(FAULT_MS),
        spread=False,
        fast=True,
    )


def run_core(seed: int, *, trace: bool = False, dropped: frozenset[int] = frozenset()) -> Result:
    """Run one seed; a broken rule is a result, not an exception."""
    plan = hurried(draw_core(seed))
    plan = replace(plan, think_ms=plan.think_ms * THINK, dropped=dropped)
    return run_core_plan(plan, trace=trace)


def run_core_plan(plan: Plan, *, trace: bool = False) -> Result:
    world = CoreWorld(plan)
    if trace:
        world.trace = []
    nemesis = CoreNemesis(world)
    result = Result(plan.seed)
    carry_through(world, nemesis, result, lambda: _play(world, nemesis, result))
    for group in world.history.groups.values():
        world.counts["leader change"] += group.view_changes[-1][1]
    return result


def _play(world: CoreWorld, nemesis: CoreNemesis, result: Result) -> None:
    for machine in world.machines.values():
        machine.start()
    world.clients.start()
    nemesis.start()
    world.run(world.plan.fault_ms * 1000)
    nemesis.heal()
    world.clients.stop()
    healed_at = world.now
    world.run(healed_at + HEAL_US, lambda: world.clients.idle)
    if not world.clients.idle:
        raise Stuck(f"after {HEAL_US // 1000} ms of peace: {_situation(world)}")
    result.healed_us = world.now - healed_at
    for group in world.groups:  # what is new is served, too
        for client in world.clients.all:
            world.clients.begin(client, group)
        world.run(world.now + HEAL_US, lambda: world.clients.idle)
        if not world.clients.idle:
            raise Stuck(f"nothing new is served: {_situation(world)}")
    world.run(world.now + HEAL_US, lambda: all_equal(world))
    if not all_equal(world):
        raise Stuck(f"replicas are not equal: {_situation(world)}")
    check_end(world)


def all_equal(world: CoreWorld) -> bool:
    """Whether every group has a leader, and every member that lives has applied what it has."""
    for number in world.groups:
        leaders = [m for m in world.machines.values() if m.leads(number)]
        if len(leaders) != 1:
            return False
        group = leaders[0].live(number)
        if group.commit != group.log.last:
            return False
        for machine in world.machines.values():
            counted = machine.member in group.log.configuration.members
            if machine.node is None or not counted:
                continue
            if machine.usage.reading or machine.applied(number) != group.commit:
                return False
    return True


def check_end(world: CoreWorld) -> None:
    """I11, I12, I13, I15, I18: what all have is what was committed, and reads back as it is."""
    history = world.history
    for account, identity in world.clients.acknowledged():
        known = history.groups[PARTITION_OF[account]].stored_at
        require((account, identity) in known, "I11 acknowledged and lost", account, identity)
    for machine in world.machines.values():
        if machine.node is None:
            continue
        machine.usage.check_state()
        _check_again(world, machine)


def _check_again(world: CoreWorld, machine: CoreMachine) -> None:
    """Checkpoint and log, and the log alone, give the state that is there."""
    usage = machine.usage
    led = [machine.live(group).log.last == machine.applied(group) for group in world.groups]
    if machine.blocks or not all(led):
        return  # something is written that is not committed, in groups it is no member of any more
    last = machine.last_imaged
    expected = _facts_of(usage)
    for saved in {id(one): one for one in (machine.saved, None)}.values():
        again = read_again(saved, machine.files, last, world.checks, world.history, machine.first)
        found = _facts_of(again)
        require(found == expected, "I13 the log read again", saved is None, found, expected)
        for group in world.groups:
            require(again.applied(group) == machine.applied(group), "I13 applied", group)
        world.counts["logs read again"] += 1


def _facts_of(usage: Usage) -> list[Any]:
    """Return what must be the same whatever way a state has come about."""
    state, refused = usage.state, usage.applier.refused.to_map()
    return [usage.totals(), state.counts(), state.horizons.packed(), refused]


def _situation(world: CoreWorld) -> str:
    lines = [
        f"client {client.number}: {client.kind} group {client.group} {client.statuses}"
        for client in world.clients.all
        if client.busy
    ]
    for machine in world.machines.values():
        if machine.node is None:
            lines.append(f"{machine.number}: dead")
            continue
        for group in world.groups:
            text = _described(machine.live(group))
            applied, reading = machine.applied(group), machine.usage.reading
            lines.append(f"{machine.number}/{group}: {text} applied {applied} reading {reading}")
    return "\n  ".join(["", *lines])
