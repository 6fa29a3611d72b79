"""Clients of the second layer: batches of events, commands, and questions, repeated until answered.

A batch goes to any node, with accounts of several partitions.  What is `unknown` goes again, with
the same ids, to whoever is said to lead; a batch is done when every row has an answer.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from meterd.actors.requests.outcomes import results
from meterd.client.partitions import partition_of
from meterd.core.cluster.proposals import command
from meterd.core.questions.zones import UTC
from meterd.core.raft.events import Read, ReadReady, Refused
from meterd.core.staging import Stage
from meterd.core.state.registry import Registry
from meterd.protocol.columns import decode_events
from meterd.protocol.log_format import EVENTS, EXPIRE, META, META_GROUP, NOT_HERE
from meterd.protocol.raft_messages import node_of
from tests.sim.checks import require
from tests.sim.clients import Cause, Client, Clients
from tests.sim.core_history import CODE, FIRST_DAY, KEPT_DAY, NOW
from tests.sim.core_usage import KEY, Asked
from tests.support.periods import DAY
from tests.support.pipeline import origin_of, proposal_of

if TYPE_CHECKING:
    from tests.sim.core_machine import CoreMachine

PARTITIONS_MAX = 4
ACCOUNTS_PER_PARTITION = 4
SIZES = (5, 40, 120, 180)
METRIC = {"code": CODE, "aggregation": "sum", "decimals": 0, "period": "day"}
KINDS = ("events", "events", "events", "events", "events", "read", "read", "metric", "expire")
HOUR = DAY // 24


def accounts() -> dict[int, list[str]]:
    """Return some accounts of each of the first partitions."""
    found: dict[int, list[str]] = {number: [] for number in range(PARTITIONS_MAX)}
    number = 0
    while any(len(names) < ACCOUNTS_PER_PARTITION for names in found.values()):
        name = f"a{number}"
        some = found.get(partition_of(name), [])
        if len(some) < ACCOUNTS_PER_PARTITION:
            some.append(name)
        number += 1
    return found


ACCOUNTS = accounts()
PARTITION_OF = {name: number for number, names in ACCOUNTS.items() for name in names}


class Packer:
    """One stage for all nodes of a world: what ingest would do with a batch."""

    def __init__(self) -> None:
        self.stage = Stage(4_096, KEY)
        self._registry: Registry | None = None
        self._version = -1

    def use(self, registry: Registry) -> None:
        if self._registry is not registry or self._version != registry.version:
            self.stage.use(registry)
            self._registry, self._version = registry, registry.version

    def packed(self, events: list[dict[str, Any]]) -> tuple[Any, Any]:
        """Return a proposal of events, and its origin."""
        columns = decode_events(msgpack.packb({"events": events}), None)
        faults = self.stage.add(columns, 0)
        assert faults is not None, "batches are small"
        packed = self.stage.pack()
        origin = origin_of(packed, [(b"0", 0, columns.count, faults)])
        return proposal_of(packed, self.stage), origin


PACKER: list[Packer] = []  # made once a process: it reserves much memory


class Work(Client):
    """A client, and what it is about."""

    kind = ""
    account = ""
    body: dict[str, Any]

    def __init__(self, number: int, seed: int) -> None:
        super().__init__(number, seed)
        self.events: list[dict[str, Any]] = []
        self.statuses: list[str] = []
        self.asked_rows: list[int] = []  # of the present attempt
        self.known: list[dict[str, Any]] = []  # sent some time before
        self.counter = 0

    def draw_events(self, partitions: int) -> None:
        random = self.random
        self.events = []
        for _ in range(random.choice(SIZES)):
            drawn = random.random()
            if drawn < 0.08 and self.known:
                event = dict(random.choice(self.known))
                if drawn < 0.03:
                    event["value"] += 1
                self.events.append(event)
                continue
            self.counter += 1
            at = random.randrange(KEPT_DAY, NOW - 2 * HOUR)
            if drawn > 0.97:
                at = random.randrange(FIRST_DAY, KEPT_DAY)
            elif drawn > 0.96:
                at = NOW + 3 * DAY
            account = random.choice(ACCOUNTS[random.randrange(partitions)])
            event = {"account": account, "id": f"{self.number}-{self.counter}"}
            event |= {"metric": CODE, "timestamp": at}
            event["value"] = random.randint(-5, 100)
            if 0.90 < drawn < 0.91:
                event["metric"] = "nobody.knows"
            self.events.append(event)
        self.known = [*self.known, *self.events][-400:]
        self.statuses = ["unknown"] * len(self.events)


class CoreClients(Clients):
    """All clients; machines report to it."""

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self.all = [Work(n, world.plan.seed) for n in range(world.plan.clients)]  # type: ignore[misc]
        self.ready = False  # is the metric there?
        self.told: Counter[str] = Counter()  # rows, by what clients heard of them
        self._stored: set[tuple[str, str]] = set()
        self._waiting: dict[int, list[tuple[Cause, int, int, bool]]] = {}  # by machine
        self._metrics = 0
        if not PACKER:
            PACKER.append(Packer())
        self._packer = PACKER[0]
        self.world: Any = world

    def begin(self, client: Any, group: int) -> None:
        random = client.random
        client.busy = True
        client.serial += 1
        client.kind = random.choice(KINDS)
        client.group = group
        if not self.ready:
            client.kind = "metric" if client.number == 0 else "wait"
        if client.kind == "wait":
            client.busy = False
            self._later(client, 50_000, self._begin, client)
            return
        if client.kind == "events":
            client.draw_events(self.world.plan.groups)
        elif client.kind == "metric":
            client.group = META_GROUP
            definition = METRIC
            if self.ready:
                self._metrics += 1
                definition = METRIC | {"code": f"m{self._metrics % 20}"}
            client.body = {"op": "metric_put", "definition": definition}
            client.body |= {"transitions": UTC, "replace": False}
        elif client.kind == "expire":
            horizon = random.choice([FIRST_DAY, FIRST_DAY + DAY, KEPT_DAY])
            client.body = {"op": "expire", "horizon": horizon, "totals_horizon": horizon}
            client.body["future_ns"] = random.choice([DAY, 2 * DAY])
        elif client.kind == "read":
            if group == META_GROUP:
                client.group = group = 0
            client.account = random.choice(ACCOUNTS[group])
        client.is_read = client.kind == "read"
        client.floor = self.world.checks.floor.get(client.group, 0)
        self._attempt(client, client.serial)

    def _arrive(self, client: Any, machine: Any, cause: Cause) -> None:
        if machine.node is None or machine.paused_until > self.world.now:
            return
        if client.kind == "events":
            step = self._propose_events(client, machine, cause)
        elif client.kind == "read":
            machine.request(client.group, Read(cause))
            return
        else:
            step = self._propose_command(client, machine, cause)
        if step is not None and not step.appends:
            self._refused_by(client, cause, step.refused)

    def _propose_events(self, client: Work, machine: CoreMachine, cause: Cause) -> Any:
        registry = machine.usage.state.registry
        if not registry.versions(CODE):
            return None  # it is behind; the client comes again
        self._packer.use(registry)
        rows = [row for row, status in enumerate(client.statuses) if status == "unknown"]
        client.asked_rows = rows
        events = [client.events[row] for row in rows]
        contents: dict[int, list[dict[str, Any]]] = {}
        for event in events:
            if event["metric"] == CODE:
                contents.setdefault(PARTITION_OF[event["account"]], []).append(event)
        proposal, origin = self._packer.packed(events)
        if not contents:  # nothing but what is wrong with it: no record is needed for that
            for row in rows:
                client.statuses[row] = "rejected"
            self._done(client, "write")
            return None
        return machine.propose(proposal, Asked(cause, origin), contents)

    def _propose_command(self, client: Work, machine: CoreMachine, cause: Cause) -> Any:
        version = machine.usage.state.registry.version
        if client.kind == "metric":
            proposal = command(META, [META_GROUP], client.body, version)
            return machine.propose(proposal, Asked(cause, None), {META_GROUP: client.body})
        led = np.flatnonzero(machine.replicas.leaders == machine.number).tolist()
        groups = [group for group in led if group in self.world.groups and group != META_GROUP]
        proposal = command(EXPIRE, groups or [client.group % PARTITIONS_MAX], client.body, version)
        contents = dict.fromkeys(self.world.groups, client.body)
        return machine.propose(proposal, Asked(cause, None), contents)

    def _refused_by(self, client: Client, cause: Cause, refused: list[Refused]) -> None:
        if self._is_current(cause) is not client or client.attempt != cause.attempt:
            return
        self.world.counts[f"refused {refused[0].reason}"] += 1
        client.hint = node_of(refused[0].leader)
        wait = 1_000 if client.hint else 40_000
        self._later(client, wait, self._timed_out, client, cause)

    def refused(self, machine: Any, action: Refused) -> None:
        cause = action.cause
        if isinstance(cause, Asked):
            return  # of a part of a proposal: its record says so
        super().refused(machine, action)

    # Answers.

    def resolved(self, machine: CoreMachine, ready: Any, outcome: Any, judged: Any) -> None:
        """Nothing is left of a record that a client waits for."""
        cause, record = ready.asked.cause, ready.record
        client: Any = self._is_current(cause)
        current = client is not None and client.attempt == cause.attempt
        if record.kind != EVENTS:
            if not current:
                return
            if outcome.get("error", {}).get("code") == "not_leader":
                self._later(client, 20_000, self._timed_out, client, cause)
                return
            require("error" not in outcome, "a command fails", outcome)
            self.ready = True
            self._note_index(record)
            self._done(client, client.kind)
            return
        ((*_, result),) = results(ready.asked.origin, outcome, judged)
        require(result.received == sum(result[1:7]), "I17 counts of an answer", result)
        statuses = ["stored"] * result.received
        for row, status, reason in result.items:
            statuses[row] = status
            require(status != "rejected" or bool(reason), "a reason for what is rejected", row)
        if client is not None and current:
            self._take(client, machine, cause, statuses, record)

    def _take(
        self, client: Work, machine: CoreMachine, cause: Cause, statuses: list[str], record: Any
    ) -> None:
        history = self.world.history
        for row, status in zip(client.asked_rows, statuses, strict=True):
            client.statuses[row] = status
            self.told[status] += 1
            event = client.events[row]
            key = (event["account"], event["id"])
            if status == "stored":
                require(key not in self._stored, "I11 told to be stored twice", key)
                self._stored.add(key)
                group = history.groups[PARTITION_OF[event["account"]]]
                require(key in group.stored_at, "I11 acknowledged and not committed", key)
        self._note_index(record)
        left = [row for row, status in enumerate(client.statuses) if status == "unknown"]
        if left:
            group = PARTITION_OF[client.events[left[0]]["account"]]
            client.hint = int(machine.replicas.leaders[group]) if machine.node else 0
            self._later(client, 5_000, self._timed_out, client, cause)
            return
        client.hint = machine.number
        self.world.counts["events"] += len(client.events)
        self._done(client, "write")

    def _note_index(self, record: Any) -> None:
        """Who reads from now on sees this."""
        for one in record.slices:
            group, index = int(one["partition"]), int(one["index"])
            if int(one["flags"]) & NOT_HERE or group not in self.world.groups:
                continue
            canonical = self.world.checks.canonical.get(group, [])
            low, high = one["digest"].tolist()
            if index <= len(canonical) and canonical[index - 1][1] == low | high << 64:
                self.world.checks.acked(group, index)

    # Questions.

    def read_ready(self, machine: Any, action: ReadReady) -> None:
        waiting = self._waiting.setdefault(machine.number, [])
        waiting.append((action.cause, action.group, action.index, action.by_lease))
        self.applied(machine)

    def applied(self, machine: Any, group: int = 0) -> None:
        """Compute the answers whose state is there; they leave a little later."""
        waiting = self._waiting.get(machine.number)
        if not waiting:
            return
        self._waiting[machine.number] = [w for w in waiting if w[2] > machine.applied(w[1])]
        for cause, number, index, by_lease in waiting:
            applied = machine.applied(number)
            client: Any = self.all[cause.client]
            if index <= applied and client.serial == cause.serial:
                found = machine.usage.totals(client.account).get(client.account, (0, 0))
                expected = self.world.history.groups[number].total_at(client.account, applied)
                require(found == expected, "I14 an answer", client.account, found, expected)
                served = (machine.boot, cause, number, applied, by_lease)
                delay = int(machine.random.random() * 3000)
                self.world.after(delay, machine, self.answer, machine, served)

    def forget(self, machine: Any) -> None:
        """A machine has died, and with it what it was asked."""
        self._waiting.pop(machine.number, None)

    def acknowledged(self) -> set[tuple[str, str]]:
        return self._stored
