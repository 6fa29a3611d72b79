"""Faults and operations, each at its own random times.

Every thing that is done has a number; `plan.dropped` leaves some out, which is how a failing seed
is shrunk.  One machine, the *fragile* one, may lose what was durable; no other ever does.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from meterd.core.raft.events import Damaged, Forgotten, ProposeChange, TransferLeadership
from meterd.core.raft.node import ProposeSlices, Room
from meterd.protocol.raft_messages import Configuration, node_of
from meterd.protocol.raft_slices import SliceOps
from tests.sim.clients import EVENTS

if TYPE_CHECKING:
    from tests.sim.disk import DiskGroup
    from tests.sim.machine import Machine
    from tests.sim.world import World

from tests.sim.plan import MEAN_MS

# How long a leader is cut off at most, for another machine to vote; how often that is looked at;
# how long whom it has voted for is cut off then.
VOTE_MS = 2500
LOOK_US = 300
AWAY_MS = 800


class Nemesis:
    """Acts until the end of the first phase, then heals."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(f"{world.plan.seed}/nemesis")
        self.count = 0
        self.spread_random = Random(f"{world.plan.seed}/spread")
        self.spread_count = 0
        self.fragile = self.random.randint(1, world.plan.voters)
        self.damaged = False
        self.ended = False
        self.done: list[tuple[int, str]] = []

    def start(self) -> None:
        plan = self.world.plan
        for kind in [*plan.faults, *plan.operations]:
            self._next(kind)

    def _next(self, kind: str) -> None:
        mean_ms = MEAN_MS[kind] * self.world.plan.rarity
        delay = self.world.paced(self.random.expovariate(1 / mean_ms)) + 1000
        self.world.after(delay, None, self._act, kind)

    def _act(self, kind: str) -> None:
        if self.ended:
            return
        self.count += 1
        # Its own generator: what one act draws does not depend on whether others are left out.
        random = Random(f"{self.world.plan.seed}/{self.count}")
        if self.count not in self.world.plan.dropped:
            self.done.append((self.count, kind))
            act: Callable[[Random], None] = getattr(self, f"_{kind}")
            act(random)
        self._next(kind)

    def spread(self) -> None:
        """One op for each of many groups, of which the machine may not lead all."""
        if self.ended:
            return
        random, world = self.spread_random, self.world
        leading = [
            m for m in world.machines.values() if any(map(m.leads, range(world.plan.groups)))
        ]
        machine = random.choice(leading or list(world.machines.values()))
        groups = [g for g in range(world.plan.groups) if machine.leads(g) or random.random() < 0.1]
        if groups and machine.node is not None and machine.paused_until <= world.now:
            self.spread_count += 1
            bodies = [(1000 + g, self.spread_count) for g in groups]
            world.clients.attempted.update(bodies)
            none = np.zeros(len(groups), np.int64)
            digest = np.zeros((len(groups), 2), np.uint64)
            numbers = np.array(groups, np.int64)
            ops = SliceOps(numbers, none, none, digest, none + EVENTS, none + 100, bodies)
            machine.step(ProposeSlices(ops, [None] * len(groups)))
        delay_ms = random.expovariate(1 / world.plan.spread_ms)
        world.after(int(delay_ms * 1000), None, self.spread)

    def _later(self, delay_ms: float, call: Callable[[], None]) -> None:
        self.world.after(self.world.paced(delay_ms), None, call)

    def _any(self, random: Random) -> Machine:
        return random.choice(list(self.world.machines.values()))

    def _leader_or_any(self, random: Random) -> Machine:
        leaders = [m for m in self.world.machines.values() if m.leads(0)]
        return random.choice(leaders) if leaders and random.random() < 0.5 else self._any(random)

    def _restart(self, machine: Machine) -> None:
        if machine.node is None:
            machine.start()

    # Processes.

    def _crash(self, random: Random) -> None:
        machine = self._leader_or_any(random)
        self.world.mark("crash", 500)
        self.world.crash(machine)
        self._later(random.choice([20, 200, 1500]), lambda: self._restart(machine))

    def _crash_all(self, random: Random) -> None:
        self.world.mark("crash_all", 500)
        for machine in self.world.machines.values():
            self.world.crash(machine)
            self._later(random.uniform(10, 600), lambda m=machine: self._restart(m))  # type: ignore[misc]

    def _crash_point(self, random: Random) -> None:
        """Die between two effects of one of the next steps."""
        machine = self._leader_or_any(random)
        machine.crash_at_point = True
        self.world.mark("crash_point", 700)
        self._later(random.uniform(300, 900), lambda: self._restart(machine))

    def _pause(self, random: Random) -> None:
        machine = self._leader_or_any(random)
        pause = random.choice([50, 700, 1200, 3000]) * random.uniform(0.7, 1.3)
        self.world.tell(f"pause {machine.number} for {self.world.paced(pause) // 1000} ms")
        self.world.mark("pause", pause)
        machine.paused_until = self.world.now + self.world.paced(pause)

    # Network.

    def _cut(self, random: Random, links: list[tuple[int, int]], what: str) -> None:
        world = self.world
        world.tell(f"{what}: cut {links}")
        duration = random.choice([300, 1200, 3000])
        world.mark(what, duration)
        world.cut.update(links)
        self._later(duration, lambda: world.cut.difference_update(links))

    def _partition(self, random: Random) -> None:
        numbers = list(self.world.machines)
        side = set(random.sample(numbers, random.randint(1, len(numbers) - 1)))
        links = [(a, b) for a in numbers for b in numbers if (a in side) != (b in side)]
        self._cut(random, links, "partition")

    def _isolate(self, random: Random) -> None:
        one = self._leader_or_any(random).number
        links = [(one, n) for n in self.world.machines] + [(n, one) for n in self.world.machines]
        self._cut(random, links, "isolate")

    def _one_way(self, random: Random) -> None:
        numbers = list(self.world.machines)
        one = self._leader_or_any(random).number
        if random.random() < 0.5:
            links = [(one, random.choice(numbers))]
        elif random.random() < 0.5:
            links = [(one, n) for n in numbers]
        else:
            links = [(n, one) for n in numbers]
        self._cut(random, links, "one_way")

    def _bad_link(self, random: Random) -> None:
        """Two nodes do not reach each other; everybody else does."""
        one = self._leader_or_any(random).number
        other = random.choice([n for n in self.world.machines if n != one])
        self._cut(random, [(one, other), (other, one)], "bad_link")

    def _clog(self, random: Random) -> None:
        """A link delivers nothing for a while, then everything at once."""
        numbers = list(self.world.machines)
        duration = random.choice([300, 1200, 3000])
        self.world.mark("clog", duration)
        for _ in range(random.choice([1, 2, 6])):
            link = (random.choice(numbers), random.choice(numbers))
            self.world.clogged[link] = self.world.now + self.world.paced(duration)

    def _loss(self, random: Random) -> None:
        world = self.world
        world.mark("loss", 1000)
        world.loss_extra = random.choice([0.1, 0.3])

        def end() -> None:
            world.loss_extra = 0.0

        self._later(1000, end)

    # Disks.

    def _slow_disk(self, random: Random) -> None:
        machine = self._leader_or_any(random)
        duration = random.choice([500, 2000])
        self.world.mark("slow_disk", duration)
        machine.fsync_us = self.world.paced(random.choice([50, 200, 900]))

        def end() -> None:
            machine.fsync_us = self.world.plan.fsync_us

        self._later(duration, end)

    def _full_disk(self, random: Random) -> None:
        machine = self._leader_or_any(random)
        self.world.mark("full_disk", 1000)
        self._set_room(machine, False)
        self._later(random.choice([500, 2500]), lambda: self._set_room(machine, True))

    def _set_room(self, machine: Machine, room: bool) -> None:
        machine.room = room
        machine.step(Room(room))

    def _damage(self, random: Random) -> None:
        """A record of the fragile machine rots: it is seen at once, or at the next start."""
        machine = self.world.machines[self.fragile]
        self.damaged = True
        self.world.mark("damage", 500)
        if random.random() < 0.6:
            self.world.crash(machine)
            self._later(random.choice([20, 500]), lambda: self._restart(machine))
        for _ in range(random.choice([1, 1, 3])):
            found = machine.disk.damage(random)
            if found is not None:
                self.world.tell(f"damage of {machine.number}: group, index {found}")
            if found is not None and machine.node is not None:
                machine.request(found[0], Damaged(found[1]))

    def _lost_tail(self, random: Random) -> None:
        """The last block of the fragile machine is unreadable at its next start."""
        self.damaged = True
        delay_ms = random.choice([20, 500])
        leaders = [m for m in self.world.machines.values() if m.leads(0)]
        if leaders and leaders[0].number != self.fragile and random.random() < 0.7:
            self._lose_vote(leaders[0].number)
        else:
            self._lose_tail(delay_ms)

    def _lose_tail(self, delay_ms: int) -> None:
        machine = self.world.machines[self.fragile]
        self.world.mark("lost_tail", 500)
        self.world.crash(machine)
        self.world.counts["promises lost"] += machine.disk.lose_tail()
        self._later(delay_ms, lambda: self._restart(machine))

    def _lose_vote(self, leader: int) -> None:
        """The fragile machine votes, and loses that block; it hears the leader of before again.

        Whom it voted for is heard by nobody for a while.
        """
        world, disk = self.world, self.world.machines[self.fragile].disk
        links = self._links_of(leader)
        world.tell(f"cut off {leader}, until {self.fragile} votes")
        world.cut.update(links)
        until = world.now + world.paced(VOTE_MS)

        def look() -> None:
            voted_for = node_of(disk.voted_in_last_block(0))
            found = voted_for not in (0, self.fragile, leader)
            if not found and world.now < until and not self.ended:
                world.after(LOOK_US, None, look)
                return
            world.cut.difference_update(links)
            if found and not self.ended:
                away = self._links_of(voted_for)
                world.cut.update(away)
                self._later(AWAY_MS, lambda: world.cut.difference_update(away))
                self._lose_tail(1)

        look()

    def _links_of(self, one: int) -> list[tuple[int, int]]:
        others = [n for n in self.world.machines if n != one]
        return [(one, n) for n in others] + [(n, one) for n in others]

    def _wipe(self, random: Random) -> None:
        """A disk is lost for good; its node comes back as a new incarnation."""
        machine = self._any(random)
        if self._has_dead_member():
            return
        self.world.tell(f"wipe {machine.number}")
        self.world.mark("wipe", 2000)
        self.world.crash(machine)
        machine.wipe(self.world.empty_groups())
        self._later(random.choice([20, 500]), lambda: self._restart(machine))

    def _has_dead_member(self) -> bool:
        """Whether somebody may still count a member whose disk is gone."""
        present = set(self.world.members())
        for machine in self.world.machines.values():
            for image in machine.disk.groups.values():
                configurations = [image.base.configuration]
                configurations += [
                    op.body for op in image.ops if isinstance(op.body, Configuration)
                ]
                if any(not set(c.members) <= present for c in configurations[-2:]):
                    return True
        return False

    # Clocks.

    def _drift(self, random: Random) -> None:
        """Rates differ from the beginning (plan.rates); here only ticks come late."""
        machine = self._any(random)
        self.world.mark("drift", 5000)
        machine.tick_at += random.randint(0, 100_000)

    def _clock_jump(self, random: Random) -> None:
        machine = self._any(random)
        self.world.mark("clock_jump", 1000)
        machine.wall_off_ms = random.choice([0, 100, -3_600_000, 2000])

    # Operations.

    def _transfer(self, random: Random) -> None:
        group = random.choice(self.world.groups)
        machine = self._leading(group)
        if machine is None or machine.node is None:
            return
        members = machine.node.groups[group].log.configuration.members
        target = random.choice([0, random.choice(members)])
        self.world.cover("transfer")
        machine.request(group, TransferLeadership(target))

    def _leading(self, group: int) -> Machine | None:
        leaders = [m for m in self.world.machines.values() if m.leads(group)]
        awake = [m for m in leaders if m.paused_until <= self.world.now]
        return awake[-1] if awake else None

    def _snapshot(self, random: Random) -> None:
        """Every machine may forget the log before its state."""
        machine = self._any(random)
        group = random.choice(self.world.groups)
        if machine.node is None or machine.paused_until > self.world.now:
            return
        self.world.cover("snapshot")
        machine.take_snapshot(machine.boot, group)

    def _forget(self, random: Random) -> None:
        """Memory is short: what is applied is read from disk from now on."""
        machine = self._any(random)
        if machine.node is not None and machine.paused_until <= self.world.now:
            for group, state in machine.states.items():
                machine.request(group, Forgotten(max(0, state.applied - random.choice([0, 5]))))

    def _membership(self, random: Random) -> None:
        group = random.choice(self.world.groups)
        machine = self._leading(group)
        if machine is None or machine.node is None:
            return
        old = machine.node.groups[group].log.configuration
        new = self.next_configuration(random, old, machine.member)
        if new is not None and new != old:
            self.world.cover("membership")
            self.world.tell(f"group {group}: {old} -> {new}")
            machine.request(group, ProposeChange(new, "change"))

    def next_configuration(
        self, random: Random, old: Configuration, leader: int
    ) -> Configuration | None:
        """Mend what is broken (a dead member, too few voters), else change anything."""
        present = self.world.members()
        dead_learners = [m for m in old.learners if m not in present]
        dead_voters = [m for m in old.voters if m not in present]
        strangers = [m for m in present if m not in old.members]
        voters, learners = set(old.voters), set(old.learners)
        if dead_learners:
            learners.discard(dead_learners[0])
        elif dead_voters and (len(old.voters) > 3 or not strangers + list(old.learners)):
            voters.discard(dead_voters[0])
        elif learners and random.random() < 0.6:
            promoted = random.choice(sorted(learners))
            learners.discard(promoted)
            voters.add(promoted)
        elif strangers and random.random() < 0.7:
            learners.add(random.choice(strangers))
        elif len(old.voters) > 2:
            gone = dead_voters or [m for m in old.voters if m != leader]
            if len(old.voters) > 3 or not self.world.plan.faults:
                voters.discard(random.choice(gone))
        return Configuration(tuple(sorted(voters)), tuple(sorted(learners)))

    # The second phase.

    def heal(self) -> None:
        """End all faults; perhaps a minority stays dead for ever."""
        self.ended = True
        world = self.world
        world.cut.clear()
        world.clogged.clear()
        world.loss_extra = 0.0
        world.plan.spike = world.plan.loss = 0.0
        dead = self._minority() if world.plan.keeps_quorum_only and not self.damaged else set()
        world.tell(f"heal; dead for ever: {sorted(dead)}")
        for number, machine in world.machines.items():
            machine.paused_until = min(machine.paused_until, world.now)
            machine.fsync_us = min(world.plan.fsync_us, 10_000)
            machine.wall_off_ms = 0
            machine.crash_at_point = False
            if number in dead:
                world.crash(machine)
                machine.paused_until = 0
            elif machine.node is None:
                machine.start()
            if not machine.room:
                self._set_room(machine, True)

    def _minority(self) -> set[int]:
        """Choose machines that no configuration in use needs."""
        world = self.world
        numbers = list(world.machines)
        self.random.shuffle(numbers)
        dead: set[int] = set()
        for number in numbers:
            left = {m.member for n, m in world.machines.items() if n not in dead | {number}}
            if self._suffices(left):
                dead.add(number)
        return dead

    def _suffices(self, members: set[int]) -> bool:
        """Whether these are a majority of every configuration in some log, or on its way there."""
        world = self.world
        images = [image for m in world.machines.values() for image in m.disk.groups.values()]
        found = [configuration for image in images for configuration in _configurations(image)]
        for group in world.groups:
            found += world.checks.undecided(group)
        for configuration in found:
            alive = len(members & set(configuration.voters))
            if configuration.voters and alive < configuration.quorum:
                return False
        return True


def _configurations(image: DiskGroup) -> list[Configuration]:
    later = [op.body for op in image.ops if isinstance(op.body, Configuration)]
    return [image.base.configuration, *later]
