"""Time, network and scheduling: one heap of things that will happen, in global µs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random
from typing import Any

from meterd.protocol.raft_messages import Configuration, Envelope, Mark, member_id, node_of
from tests.sim.checks import Checks
from tests.sim.clients import Clients
from tests.sim.disk import NOTHING, DiskGroup
from tests.sim.machine import Machine
from tests.sim.plan import LATE_US, Plan

# A fault counts as active for an operation that ends so long after it (coverage).
AFTER_EFFECT_MS = 2000
# Messages that breed messages are a bug; ordinary runs have a few hundred and some 5 000 steps.
UNDER_WAY_MAX = 20_000
STEPS_MAX = 400_000


class Stuck(AssertionError):
    """Faults have ended and the cluster does not get on."""


class World:
    """Everything there is in one run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 0
        self.steps = 0
        self.random = Random(f"{plan.seed}/world")
        self._net = Random(f"{plan.seed}/net")
        # When, number, whose it is (a pause of the machine delays it), what to call with what.
        self._heap: list[tuple[int, int, Machine | None, Callable[..., Any], Any]] = []
        self._counter = 0
        self.trace: list[str] | None = None
        self.recorded: list[Any] | None = [] if plan.records_steps else None
        self.cut: set[tuple[int, int]] = set()
        self.clogged: dict[tuple[int, int], int] = {}  # link -> until
        self.loss_extra = 0.0
        self.active: dict[str, int] = {}  # kind of fault -> until
        self.coverage: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[str] = Counter()
        self.groups: Sequence[int] = self.made_groups()
        self.checks, self.clients = self.made_observers()
        self.machines: dict[int, Any] = {}
        nodes = range(1, plan.voters + plan.spares + 1)
        for number in nodes:
            self.machines[number] = self.made_machine(number)

    # What the second layer makes otherwise.

    def made_groups(self) -> Sequence[int]:
        return range(self.plan.groups)

    def made_observers(self) -> tuple[Any, Any]:
        return Checks(self), Clients(self)

    def made_machine(self, number: int) -> Any:
        return Machine(self, number, self.fresh_groups(number))

    def fresh_groups(self, number: int) -> dict[int, DiskGroup]:
        """Voters begin with the first configuration, all others with nothing."""
        plan = self.plan
        voters = tuple(member_id(n, 0) for n in range(1, plan.voters + 1))
        mark = Mark(0, 0, 0, Configuration(voters)) if number <= plan.voters else NOTHING
        return {group: DiskGroup(mark) for group in self.groups}

    def empty_groups(self) -> dict[int, DiskGroup]:
        return {group: DiskGroup(NOTHING) for group in self.groups}

    def members(self) -> list[int]:
        return [machine.member for machine in self.machines.values()]

    # Scheduling.

    def at(
        self, time: int, machine: Machine | None, call: Callable[..., Any], *arguments: Any
    ) -> None:
        self._counter += 1
        heappush(self._heap, (time, self._counter, machine, call, arguments))

    def after(
        self, delay: int, machine: Machine | None, call: Callable[..., Any], *arguments: Any
    ) -> None:
        self._counter += 1
        heappush(self._heap, (self.now + delay, self._counter, machine, call, arguments))

    def schedule_tick(self, machine: Machine) -> None:
        """Have a machine tick at its deadline, a little late as on a busy processor."""
        assert machine.node is not None
        now = self.now
        due = machine.global_time(machine.node.deadline)
        if due < now + 1000:
            due = now + 1000
        if now < machine.tick_at <= due + self.plan.tick_slack_us:
            return
        late = int(self._net.random() * LATE_US)
        machine.tick_at = due + late
        self._counter += 1
        entry = (due + late, self._counter, machine, machine.tick, (machine.boot,))
        heappush(self._heap, entry)

    def paced(self, ms: float) -> int:
        """Return so many ms of a usual run in µs of this one."""
        return int(ms * self.plan.pace * 1000)

    def run(self, until: int, stop: Any = None) -> None:
        """Let things happen until a time, or until `stop()` says so."""
        heap = self._heap
        since = 0
        while heap and heap[0][0] <= until:
            time, _, machine, call, arguments = heappop(heap)
            if time > self.now:
                self.now = time
            if machine is not None and machine.paused_until > self.now:
                self.at(machine.paused_until, machine, call, *arguments)
                continue
            call(*arguments)
            if len(heap) > UNDER_WAY_MAX or self.steps > STEPS_MAX:
                raise Stuck(f"a storm: {len(heap)} under way after {self.steps} steps")
            since += 1
            if stop is not None and since >= 20:
                since = 0
                if stop():
                    return
        self.now = max(self.now, until)

    def tell(self, text: str, mark: str = "*** ") -> None:
        """Note a fault or an operation for the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.now / 1000:10.3f} {mark}{text}")

    # Network.

    def transmit(self, source: Machine, to: int, envelope: Envelope) -> None:
        """Lose, delay, double or deliver an envelope."""
        target = self.machines.get(node_of(to))
        if target is None:
            return
        link = (source.number, target.number)
        plan, random = self.plan, self._net.random
        if link in self.cut or random() < plan.loss + self.loss_extra:
            self.counts["lost"] += 1
            return
        copies = 2 if plan.duplication and random() < plan.duplication else 1
        for _ in range(copies):
            delay = 50 + int(plan.delay_us * (0.3 + random() * 1.4))
            if plan.spike and random() < plan.spike:
                delay += int(random() * 2_500_000)
            time = self.now + delay
            if self.clogged and self.clogged.get(link, 0) > time:
                time = self.clogged[link] + int(random() * 3000)  # all at once, late
            self._counter += 1
            heappush(self._heap, (time, self._counter, target, target.deliver, (envelope,)))

    # Faults that machines and the nemesis share.

    def crash(self, machine: Machine) -> None:
        """Kill a machine; somebody starts it again."""
        if machine.node is None:
            return
        self.tell(f"crash {machine.number}")
        self.counts["crash"] += 1
        machine.crash()

    def mark(self, kind: str, for_ms: float = 0) -> None:
        """A fault is active for so long (of a usual run), and its effects a little longer."""
        self.counts[kind] += 1
        until = self.now + self.paced(for_ms + AFTER_EFFECT_MS)
        self.active[kind] = max(until, self.active.get(kind, 0))

    def cover(self, operation: str) -> None:
        """An operation has come to its end while these faults were active."""
        self.counts[operation] += 1
        for kind, until in self.active.items():
            if until > self.now:
                self.coverage[kind, operation] += 1
