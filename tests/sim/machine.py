"""One simulated node: engine, disk, clock, and a state machine that counts identities once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import itemgetter
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from meterd.core.raft.events import (
    Accepted,
    Action,
    Commit,
    Compacted,
    Durable,
    Event,
    Moment,
    OpsGone,
    OpsRead,
    ReadOps,
    ReadReady,
    Refused,
    Restored,
    RoleChanged,
    SendSnapshot,
    SnapshotStored,
    StoreSnapshot,
    TakeSnapshot,
    Tick,
    Write,
    WriteOps,
    WriteRepair,
)
from meterd.core.raft.fast_node import FastNode
from meterd.core.raft.group import Group
from meterd.core.raft.node import GoneBack, Node, NodeEvent, Output, Received, Request, SnapshotRead
from meterd.core.raft.settings import Settings
from meterd.core.raft.slices import AcceptedSlices, CommitSlices, WriteSlices
from meterd.core.raft.state import LEADER
from meterd.protocol.raft_messages import NOOP, OPENS_TERM, UNKNOWN, Append, Op, member_id
from meterd.protocol.raft_slices import WORD, AckSlices, AppendSlices, Digests, Ints, words
from tests.sim.disk import Disk, DiskGroup

if TYPE_CHECKING:
    from tests.sim.world import World

CLUSTER = 7
SETTINGS = Settings(uncommitted_ops_max=200, append_ops_max=16, flights_max=4, reads_max=64)
FAST = replace(
    SETTINGS,
    beat_ms=50,
    suspicion_ms=300,
    rank_ms=80,
    jitter_ms=20,
    learner_ms=1000,
    pre_vote_retry_ms=40,
    election_ms=200,
    sticky_ms=250,
    check_quorum_ms=500,
    lease_ms=200,
    transfer_ms=300,
    retransmit_ms=100,
    snapshot_retry_ms=1000,
    repair_retry_ms=70,
    silent_ms=700,
)
NOOP_LIKE = 16
TICK = Tick()
# Types of what stands for many groups at once.
COLUMNS = {WriteSlices, CommitSlices, AcceptedSlices, AppendSlices, AckSlices}


def chain(before: int, term: int, index: int, kind: int, body: Any) -> int:
    """Ints and tuples of them hash alike in every process."""
    return hash((before, term, index, kind, body)) & WORD


def chain_many(before: Digests, term: Ints, index: Ints, kind: Ints, body: list[Any]) -> Digests:
    columns = zip(before[:, 0].tolist(), term.tolist(), index.tolist(), kind.tolist(), strict=True)
    digests = [chain(*row, body[k]) for k, row in enumerate(columns)]
    return np.array([words(digest) for digest in digests], np.uint64).reshape(-1, 2)


def expanded(things: Any) -> list[Any]:
    """Write columns as things of one group each, and put them in the order of the groups."""
    if not things or (len(things) == 1 and type(things[0]) not in COLUMNS):
        return things
    single: list[Any] = []
    for thing in things:
        single += thing.expanded() if hasattr(thing, "expanded") else [thing]
    return sorted(single, key=lambda thing: getattr(thing, "group", -1))


class StateMachine:
    """What one group's ops amount to."""

    __slots__ = ("applied", "duplicates", "identities", "view_changes")

    def __init__(self) -> None:
        self.applied = 0
        self.identities: dict[tuple[int, int], int] = {}  # identity -> index it was counted at
        self.duplicates = 0
        self.view_changes = 0

    def copy(self) -> StateMachine:
        other = StateMachine()
        other.applied, other.duplicates = self.applied, self.duplicates
        other.identities, other.view_changes = dict(self.identities), self.view_changes
        return other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateMachine) and self.identities == other.identities

    __hash__ = None  # type: ignore[assignment]

    def apply(self, op: Op) -> None:
        assert op.index == self.applied + 1, "ops are applied in order, each once"
        self.applied = op.index
        if op.kind < NOOP_LIKE:
            if op.body in self.identities:
                self.duplicates += 1
            else:
                self.identities[op.body] = op.index
        elif op.kind == NOOP and op.body == OPENS_TERM:
            self.view_changes += 1


class Machine:
    """Alive while `node` is not None.  All time here is global µs; the engine sees its own."""

    def __init__(self, world: World, number: int, groups: dict[int, DiskGroup]) -> None:
        self.world = world
        self.number = number
        self.incarnation = 0
        self.disk = Disk(groups)
        self.boot = 0
        self.node: Node | None = None
        self.states: dict[int, StateMachine] = {}
        self.ops: dict[int, dict[int, Op]] = {}  # what was written, by group and index
        self.waiting: dict[tuple[int, int], tuple[int, Any]] = {}  # group, index -> term, cause
        self.rate = world.plan.rates[number - 1]
        self.settings = FAST if world.plan.fast_timers else SETTINGS
        self.wall_off_ms = 0
        self.fsync_us = world.plan.fsync_us
        self.room = True
        self.paused_until = 0
        self.crash_at_point = False
        self.tick_at = 0
        self.random = Random(f"{world.plan.seed}/{number}")
        self.clock_base = self.random.randrange(10**9)

    @property
    def member(self) -> int:
        return member_id(self.number, self.incarnation)

    @property
    def alive(self) -> bool:
        return self.node is not None

    def clock(self) -> int:
        """The machine's monotonic clock, ms."""
        return self.clock_base + int(self.world.now * self.rate) // 1000

    def wall(self) -> int:
        return self.world.now // 1000 + self.wall_off_ms

    def global_time(self, clock_ms: int) -> int:
        """When the machine's clock shows that."""
        return int((clock_ms - self.clock_base) * 1000 / self.rate) + 1

    # Life.

    def start(self) -> None:
        assert self.node is None
        self.boot += 1
        moment = Moment(self.clock(), self.disk.block + 1)
        moment.room = self.room
        self.world.checks.disk_read(self)
        groups = []
        self.states = {}
        for number, image in self.disk.groups.items():
            groups.append(
                Group(
                    number,
                    self.member,
                    image.recovered(),
                    moment,
                    settings=self.settings,
                    random=Random(f"{self.world.plan.seed}/{self.number}/{number}/{self.boot}"),
                    chain=chain,
                )
            )
            self.ops[number] = {op.index: op for op in image.ops}
            base = image.base.index
            kept = self.disk.snapshots.get((number, base))
            self.states[number] = kept[1].copy() if kept else StateMachine()
            assert self.states[number].applied == base
        make = partial(FastNode, chain_many=chain_many) if self.world.plan.fast else Node
        self.node = make(
            cluster=CLUSTER,
            member=self.member,
            boot=self.boot,
            moment=moment,
            groups=groups,
            seeds=self.world.members(),
            settings=self.settings,
        )
        self.world.schedule_tick(self)

    def crash(self) -> None:
        if self.node is None:
            return
        self.node = None
        self.waiting.clear()
        self.states = {}
        self.disk.crash(self.random)
        self.crash_at_point = False

    def wipe(self, groups: dict[int, DiskGroup]) -> None:
        """The disk is lost; the node comes back as a new incarnation that knows nothing."""
        assert self.node is None
        self.incarnation += 1
        self.disk = Disk(groups)

    # Steps.

    def step(self, event: NodeEvent) -> None:
        node = self.node
        if node is None:
            return
        world = self.world
        if type(event) is Received:
            event = Received(self._filled_in(event.envelope))
        output = node.step(self.clock(), self.wall(), event)
        world.steps += 1
        world.checks.releases = type(event) is Durable
        idle = not (output.block or output.envelopes or output.actions)
        if not idle or self.crash_at_point or world.recorded is not None:
            self._perform(output)
        if self.node is not None:
            world.checks.stepped(self)
            world.schedule_tick(self)

    def deliver(self, envelope: Any) -> None:
        """An envelope arrives."""
        if self.node is None:
            return
        if self.world.trace is not None:
            self.world.tell(f"deliver {self.number} {envelope}", mark="")
        self.step(Received(envelope))

    def _filled_in(self, envelope: Any) -> Any:
        """Say of ops whose sender does not know what came before whether they follow mine."""
        messages = tuple([self._follows(message) for message in envelope.messages])
        return envelope._replace(messages=messages)

    def _follows(self, message: Any) -> Any:
        if type(message) is not Append or message.prev_term != UNKNOWN or not message.ops:
            return message
        assert self.node is not None
        own, first = self.node.digest_at(message.group, message.prev_index), message.ops[0]
        if own is None or chain(own, first.term, first[0], first.kind, first.body) != first.digest:
            return message
        self.world.counts["follows"] += 1
        return message._replace(prev_digest=own)

    def tick(self, boot: int) -> None:
        """It is time, unless an earlier tick was set, or a later one."""
        if self.boot == boot and self.world.now >= self.tick_at:
            self.tick_at = 0
            self.step(TICK)

    def request(self, group: int, event: Event) -> None:
        self.step(Request(group, event))

    def _perform(self, output: Output) -> None:
        """Carry out an output; a crash may come between any two things."""
        records, actions = expanded(output.records), expanded(output.actions)
        envelopes = output.envelopes
        if len(envelopes) > 1:
            envelopes = sorted(envelopes, key=itemgetter(0))
        if self.world.recorded is not None:
            said = [(to, list(expanded(envelope.messages))) for to, envelope in envelopes]
            self.world.recorded.append((self.world.now, self.number, records, said, actions))
        crash_after = -1
        if self.crash_at_point and self.random.random() < 0.05:
            count = 1 + len(envelopes) + len(actions)
            crash_after = self.random.randrange(count)
        if records:
            self.world.checks.written(self, records)
            self._keep(records)
            self.disk.write(output.block, records)
            self.begin_sync()
        if crash_after == 0:
            self.world.crash(self)
            return
        at = 0
        for to, envelope in envelopes:
            self.world.checks.sent(self, to, envelope)
            self.world.transmit(self, to, envelope)
            at += 1
            if at == crash_after:
                self.world.crash(self)
                return
        for action in actions:
            self._act(action)
            if self.node is None:
                return
            at += 1
            if at == crash_after:
                self.world.crash(self)
                return

    def _keep(self, records: list[Write]) -> None:
        for record in records:
            if isinstance(record, (WriteOps, WriteRepair)):
                ops = self.ops[record.group]
                for op in record.ops:
                    ops[op.index] = op

    def begin_sync(self) -> None:
        disk = self.disk
        if disk.syncing or not disk.queue:
            return
        disk.syncing = len(disk.queue)
        delay = int(self.fsync_us * self.random.uniform(0.7, 1.6))
        self.world.after(delay, self, self.synced, self.boot)

    def synced(self, boot: int) -> None:
        if self.node is None or boot != self.boot:
            return
        block = self.disk.sync()
        self.begin_sync()
        self.step(Durable(block))

    def _act(self, action: Action | GoneBack) -> None:
        world = self.world
        if isinstance(action, Commit):
            self._apply(action)
        elif isinstance(action, RoleChanged):
            world.checks.role_changed(self, action)
        elif isinstance(action, Accepted):
            for at in range(action.op_count if action.cause is not None else 0):
                self.waiting[action.group, action.first_index + at] = (action.term, action.cause)
            if action.first_index + action.op_count - 1 <= self.states[action.group].applied:
                self._answer(action.group, action.first_index)
        elif isinstance(action, Refused):
            world.clients.refused(self, action)
        elif isinstance(action, ReadReady):
            world.clients.read_ready(self, action)
        elif isinstance(action, Restored):
            self._restore(action)
        elif isinstance(action, StoreSnapshot):
            delay = int(self.random.randint(2_000, 150_000) * world.plan.pace)
            world.after(delay, self, self.stored, self.boot, action)
        elif isinstance(action, SendSnapshot):
            delay = int(self.random.randint(2_000, 60_000) * world.plan.pace)
            world.after(delay, self, self.snapshot_read, self.boot, action)
        elif isinstance(action, ReadOps):
            delay = self.random.randint(100, 3_000)
            world.after(delay, self, self.ops_read, self.boot, action)
        elif isinstance(action, TakeSnapshot):
            delay = int(self.random.randint(1_000, 100_000) * world.plan.pace)
            world.after(delay, self, self.take_snapshot, self.boot, action.group)
        elif isinstance(action, GoneBack):
            world.checks.gone_back(self, action)

    def _apply(self, action: Commit) -> None:
        assert self.node is not None
        group = self.node.groups[action.group]
        state = self.states[action.group]
        self.world.checks.committed(self, group, action.index)
        for index in range(state.applied + 1, action.index + 1):
            state.apply(self.ops[action.group][index])
            if (action.group, index) in self.waiting:
                self._answer(action.group, index)
        self.world.clients.applied(self, action.group)

    def _answer(self, number: int, index: int) -> None:
        term, cause = self.waiting.pop((number, index))
        if self.ops[number][index].term == term:
            self.world.clients.committed(self, cause, number, index)

    def _restore(self, action: Restored) -> None:
        self.states[action.group] = self.disk.snapshots[action.group, action.mark.index][1].copy()
        self.world.checks.restored(self, action)
        self.world.cover("install")

    def stored(self, boot: int, action: StoreSnapshot) -> None:
        if self.node is None or boot != self.boot:
            return
        self.disk.snapshots[action.group, action.mark.index] = (action.mark, action.body)
        self.request(action.group, SnapshotStored(action.mark))

    def snapshot_read(self, boot: int, action: SendSnapshot) -> None:
        if self.node is None or boot != self.boot:
            return
        newest = max([i for group, i in self.disk.snapshots if group == action.group], default=0)
        if newest >= self.node.groups[action.group].log.floor and newest:
            mark, body = self.disk.snapshots[action.group, newest]
            self.step(SnapshotRead(action.group, action.to, action.term, mark, body))

    def ops_read(self, boot: int, action: ReadOps) -> None:
        if self.node is None or boot != self.boot:
            return
        found = self.disk.groups[action.group].read(action.first, action.last)
        if self.random.random() < 0.05:  # it cannot be opened just now
            self.request(action.group, OpsGone(action.to, action.term, action.first))
        elif found is None:
            self.take_snapshot(boot, action.group)  # damaged: it is not needed then
        else:
            self.world.counts["read from disk"] += 1
            if self.random.random() < 0.3:
                found = (UNKNOWN, 0, found[2])  # that file is gone
            self.request(action.group, OpsRead(action.to, action.term, *found))

    def take_snapshot(self, boot: int, number: int) -> None:
        """Keep the state of a group; its log may begin there."""
        if self.node is None or boot != self.boot:
            return
        state, log = self.states[number], self.live(number).log
        if state.applied > log.floor and state.applied >= log.base.index:
            mark = log.mark(state.applied)
            self.disk.snapshots[number, state.applied] = (mark, state.copy())
            self.request(number, Compacted(mark))

    def live(self, number: int) -> Group:
        """Return a group as it is now, off the fast path."""
        assert self.node is not None
        return self.node._live(number)

    def leads(self, number: int) -> bool:
        return self.node is not None and self.node.groups[number].role == LEADER
