"""Clients: one operation after the other, each repeated with the same identity until it is done."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.core.raft.events import Proposal, Read, ReadReady, Refused
from meterd.protocol.raft_messages import node_of

if TYPE_CHECKING:
    from tests.sim.machine import Machine
    from tests.sim.world import World

EVENTS = 1
READ = 0.25


class Cause(NamedTuple):
    client: int
    serial: int
    attempt: int


class Client:
    """State of one client."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.random = Random(f"{seed}/client/{number}")
        self.serial = 0
        self.attempt = 0
        self.busy = False
        self.is_read = False
        self.group = 0
        self.size = 1
        self.floor = 0  # what had been seen when the operation began
        self.hint = 0
        self.stops = False


class Clients:
    """All clients; the machines report to it, the world calls it back."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.all = [Client(n, world.plan.seed) for n in range(world.plan.clients)]
        self.acked: list[tuple[int, tuple[int, int]]] = []
        self.attempted: set[tuple[int, int]] = set()
        self._reads: dict[int, list[tuple[Cause, int, bool]]] = {}  # machine*1000+group

    def start(self) -> None:
        for client in self.all:
            self._later(client, 5_000, self._begin, client)

    def stop(self) -> None:
        for client in self.all:
            client.stops = True

    @property
    def idle(self) -> bool:
        return not any(client.busy for client in self.all)

    def _later(self, client: Client, mean_us: int, *call: Any) -> None:
        self.world.after(int(client.random.random() * 2 * mean_us), None, *call)

    # One operation.

    def _begin(self, client: Client) -> None:
        if client.busy or client.stops:
            return
        self.begin(client, client.random.randrange(self.world.plan.groups))

    def begin(self, client: Client, group: int) -> None:
        client.busy = True
        client.serial += 1
        client.group = group
        client.is_read = client.random.random() < READ
        client.size = client.random.choice([1, 1, 1, 3])
        client.floor = self.world.checks.floor.get(group, 0)
        self._attempt(client, client.serial)

    def _attempt(self, client: Client, serial: int) -> None:
        if client.serial != serial or not client.busy:
            return
        client.attempt += 1
        machines = self.world.machines
        number = client.hint if client.hint in machines else client.random.choice(list(machines))
        client.hint = 0
        cause = Cause(client.number, serial, client.attempt)
        self._later(client, 500, self._arrive, client, machines[number], cause)
        timeout = self.world.paced(200 + client.random.random() * 500)
        self.world.after(timeout, None, self._timed_out, client, cause)

    def _arrive(self, client: Client, machine: Machine, cause: Cause) -> None:
        if machine.node is None or machine.paused_until > self.world.now:
            return
        if client.is_read:
            machine.request(client.group, Read(cause))
            return
        identities = [(client.number, cause.serial * 10 + at) for at in range(client.size)]
        self.attempted.update(identities)
        items = tuple([(EVENTS, 100, identity) for identity in identities])
        machine.request(client.group, Proposal(items, cause))

    def _timed_out(self, client: Client, cause: Cause) -> None:
        if client.busy and (client.serial, client.attempt) == cause[1:]:
            self._attempt(client, cause.serial)

    def _is_current(self, cause: Cause) -> Client | None:
        client = self.all[cause.client]
        return client if client.busy and client.serial == cause.serial else None

    def refused(self, machine: Machine, action: Refused) -> None:
        if not isinstance(action.cause, Cause):
            self.world.counts[f"refused {action.reason}"] += 1
            return
        client = self._is_current(action.cause)
        if client is not None and client.attempt == action.cause.attempt:
            client.hint = node_of(action.leader)
            wait = 1_000 if client.hint else 40_000
            self._later(client, wait, self._timed_out, client, action.cause)

    # Writes.

    def committed(self, machine: Machine, cause: Any, group: int, index: int) -> None:
        """The leader has applied an op of this proposal; the last one answers."""
        if not isinstance(cause, Cause):
            return
        client = self._is_current(cause)
        state = machine.states[group]
        identities = [(cause.client, cause.serial * 10 + at) for at in range(1)]
        if client is None or client.is_read:
            return
        identities = [(client.number, cause.serial * 10 + at) for at in range(client.size)]
        if not all(identity in state.identities for identity in identities):
            return  # others of the batch follow
        self.world.checks.acked(group, index)
        self.acked += [(group, identity) for identity in identities]
        client.hint = machine.number
        self._done(client, "write")

    def _done(self, client: Client, operation: str) -> None:
        client.busy = False
        self.world.cover(operation)
        self._later(client, int(self.world.plan.think_ms * 1000), self._begin, client)

    # Reads.

    def read_ready(self, machine: Machine, action: ReadReady) -> None:
        waiting = self._reads.setdefault(machine.number * 1000 + action.group, [])
        waiting.append((action.cause, action.index, action.by_lease))
        self.applied(machine, action.group)

    def applied(self, machine: Machine, group: int) -> None:
        """Compute the answers whose state is there; they leave a little later."""
        waiting = self._reads.get(machine.number * 1000 + group)
        if not waiting:
            return
        applied = machine.states[group].applied
        self._reads[machine.number * 1000 + group] = [w for w in waiting if w[1] > applied]
        for cause, index, by_lease in waiting:
            if index <= applied:
                delay = int(machine.random.random() * 3000)
                served = (machine.boot, cause, group, applied, by_lease)
                self.world.after(delay, machine, self.answer, machine, served)

    def answer(self, machine: Machine, served: tuple[int, Cause, int, int, bool]) -> None:
        """An answer is on its way out of a machine."""
        boot, cause, group, index, by_lease = served
        client = self._is_current(cause)
        if machine.node is None or machine.boot != boot:
            return
        late = by_lease and not may_answer(machine, group)
        if by_lease and not late:
            self.world.checks.lease(machine, group)
        if client is None:
            return
        if late:
            self._later(client, 1_000, self._attempt, client, cause.serial)
            return
        self.world.checks.read(group, client.floor, index)
        client.hint = machine.number
        self._done(client, "lease read" if by_lease else "round read")


def may_answer(machine: Machine, group: int) -> bool:
    """The second look at the lease, after the answer was computed."""
    assert machine.node is not None
    return machine.node.holds_lease(group, machine.clock())
