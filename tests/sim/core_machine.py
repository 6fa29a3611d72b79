"""One simulated node of the second layer: the product's engine, log, recovery, wire and state.

What the engine writes becomes records (`core/cluster/replicas.py`), the log's blocks go to a disk
in memory that crashes sector by sector (`tests/support/crash_disk.py`), a start reads them back
(`actors/log/wal_recovery.py`), and envelopes cross as bytes.  Beside the real log stands `disk`,
the first layer's image of it, folded from what the engine has written: each is held against the
other.
"""

from __future__ import annotations

import contextlib
from collections import deque
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np

from meterd.actors.log.wal_log import Entry, Log, block_count
from meterd.actors.log.wal_recovery import End, Owner, Recovery, Start
from meterd.actors.log.wal_spare import Spare
from meterd.core.cluster.proposals import Proposal
from meterd.core.cluster.replicas import Clock, Replicas, Step
from meterd.core.cluster.wire_check import check_envelope
from meterd.core.cluster.wire_envelopes import ready_to_send
from meterd.core.log.group_logs import GroupLogs, unpack
from meterd.core.log.op_places import OpPlace
from meterd.core.raft.events import (
    Commit,
    ReadOps,
    ReadReady,
    Restored,
    RoleChanged,
    SendSnapshot,
    StoreSnapshot,
    TakeSnapshot,
    Tick,
    WriteOps,
)
from meterd.core.raft.node import GoneBack, NodeEvent, Output, Received, Room
from meterd.core.raft.steady import NEVER
from meterd.protocol import log_format
from meterd.protocol.errors import DiskFull, RemoteProtocolError
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.raft_messages import Configuration, Envelope
from meterd.protocol.raft_wire import decode, encode
from tests.sim.checks import require
from tests.sim.core_history import NOW, Proposed
from tests.sim.core_reader import SimulatedOps
from tests.sim.core_usage import DIRECTORY, Asked, Saved, Usage
from tests.sim.disk import DiskGroup
from tests.sim.machine import CLUSTER, Machine, expanded
from tests.support.crash_disk import CrashDisk, Crashed

if TYPE_CHECKING:
    from tests.sim.core_world import CoreWorld

LOG_FILE_SIZE = 64 * 1024
CLUSTER_ID = CLUSTER.to_bytes(16, "little")
IDENTITY_KEY = bytes(range(16))
NOBODY = Configuration(())
FULL_RETRY_US = 300_000
# How often totals are held against the model's, of all times when something was applied.
LOOKED_AT = 0.03
# Calls of the disk that one block takes at most, when it begins a file.
CALLS = 12


class Heard(SimpleNamespace):
    """How far the engine has said that a group is committed."""

    applied: int


class Block(NamedTuple):
    """What one step of the engine wrote, and the records that it became."""

    number: int
    first: int  # sequences
    last: int
    writes: list[Any]


class CoreMachine(Machine):
    """Alive while `node` is not None."""

    world: CoreWorld  # type: ignore[assignment]

    def __init__(self, world: CoreWorld, number: int, groups: dict[int, DiskGroup]) -> None:
        super().__init__(world, number, groups)  # type: ignore[arg-type]
        self.first = self._first_configurations(groups)
        self.files = CrashDisk()
        self.saved: Saved | None = None
        self.blocks: deque[Block] = deque()  # written and not durable, or not known to be
        self.in_flight = 0  # records of the block that is being written
        self.waiting_records: deque[Entry] = deque()

    def _first_configurations(self, groups: dict[int, DiskGroup]) -> list[Configuration]:
        """Return what `node.json` says of the members where the log begins."""
        first = [NOBODY] * GROUP_COUNT
        for number, image in groups.items():
            first[number] = image.base.configuration
        return first

    def now(self) -> Clock:
        return Clock(self.clock(), NOW + self.wall() * 1_000_000)

    # Life.

    def start(self) -> None:
        assert self.node is None
        self.boot += 1
        self.files.room = None if self.room else 0
        end = self._recovered()
        logs = GroupLogs(self.member, None, self.first) if end is None else end.logs
        sequence = logs.groups.sequence
        self._take_image(sequence)
        packed = msgpack.unpackb(msgpack.packb(logs.packed()), strict_map_key=False)
        starts = unpack(packed)
        self._compare(starts)
        self.world.checks.disk_read(self)
        self.replicas = Replicas(
            starts,
            self.now(),
            cluster=CLUSTER,
            member=self.member,
            boot=self.boot,
            sequence=sequence,
            leader_time=logs.groups.leader_time,
            random=Random(f"{self.world.plan.seed}/{self.number}/{self.boot}"),
            settings=self.settings,
            seeds=self.world.members(),
        )
        self.node = self.replicas.node
        self._leave_out_unused()
        self._watch()
        self.usage = Usage(
            self.saved, self._told, self.world.checks, self.world.history, self.first
        )
        self.usage.begin_replay(self.files, sequence)
        for number, image in self.disk.groups.items():
            self.ops[number] = {op.index: op for op in image.ops}
            self._begin_group(number, starts[number].index)
        self.reader = SimulatedOps(self.files)
        self.catching_up = self.reader.catching_up(self, OpPlace(self.log.file_number, 0))
        self._note_end()
        self.turn_at = 0
        self.told_applied = np.zeros(len(self.world.groups), np.int64)
        self._soon()
        self._take(self.replicas.tick(self.now()))

    def _leave_out_unused(self) -> None:
        """Groups of no members do nothing, and that at every step."""
        node = self.replicas.node
        for number in set(node.groups) - set(self.disk.groups):
            del node.groups[number]
            node._pulse.due[number] = NEVER
            node._aside.pop(number, None)

    def _recovered(self) -> End | None:
        """Open the log; a crash may come while it is repaired."""
        who = SimpleNamespace(
            member=self.member, beginning=SimpleNamespace(configurations=self.first)
        )
        owner = Owner(self.number, CLUSTER_ID, IDENTITY_KEY)
        start = None if self.saved is None else Start(self.saved.log["file_number"], self.saved.log)
        if self.random.random() < 0.1:
            self.files.calls_left = self.random.randrange(8)
        while True:
            try:
                end = Recovery(self.files, DIRECTORY, owner, start, lambda _: None, who).run()  # type: ignore[arg-type]
                spare = Spare(self.files, DIRECTORY, LOG_FILE_SIZE)
                self.log = Log(self.files, DIRECTORY, spare, owner, lambda: self.now().wall)
                self.log.open(end)
                self.files.calls_left = None
                return end
            except Crashed:
                self.world.counts["crash in recovery"] += 1
            except DiskFull:
                self.world.counts["no room at a start"] += 1
                self.files.room = None  # an operator makes room
            self.files = self.files.crashed(self.random)

    def _take_image(self, sequence: int) -> None:
        """See that nothing is lost that was durable, and have the image say what was found."""
        if self.blocks:
            require(sequence >= self.blocks[0].first - 1, "I12 durable and lost", sequence)
        while self.blocks and self.blocks[0].last <= sequence:
            self._image_block(self.blocks.popleft())
        whole = not self.blocks or sequence < self.blocks[0].first
        require(whole, "I12 a step of the engine is there in part", sequence, self.blocks)
        self.blocks.clear()
        require(sequence == self.last_imaged, "I12 records", sequence, self.last_imaged)
        self.disk.block = sequence

    def _image_block(self, block: Block) -> None:
        self.disk.write(block.number, block.writes)
        self.disk.syncing = len(self.disk.queue)
        self.disk.sync()
        self.last_imaged = block.last

    last_imaged = 0

    def _compare(self, starts: list[Any]) -> None:
        """I12, I16: recovery says of each group what was written of it."""
        for number, image in self.disk.groups.items():
            found = starts[number]
            promises = (found.term, found.vote, found.uncertain)
            expected = (image.term, image.vote, image.uncertain)
            require(promises == expected, "I16 promises", number, promises, expected)
            require(found.index <= image.last, "I12 the mark", number, found.index)
            if found.index:
                op = image.ops[found.index - 1]
                require((op.term, op.digest) == (found.mark_term, found.digest), "I12 mark", number)
            low_high = found.ops["digest"].tolist()
            ops = [
                (int(row["index"]), int(row["term"]), low | high << 64)
                for row, (low, high) in zip(found.ops, low_high, strict=True)
            ]
            kept = [(op.index, op.term, op.digest) for op in image.ops[found.index :]]
            require(ops == kept, "I12 ops", number, found.index, len(ops), len(kept))

    def _begin_group(self, number: int, index: int) -> None:
        """Begin where recovery says that a group is committed.

        That is what a checkpoint has applied or, of a group whose only voter this node is, all.
        """
        known = len(self.world.checks.canonical.get(number, ()))
        self.states[number] = Heard(applied=min(index, known))  # type: ignore[assignment]
        if index > known:
            group = self.replicas.node.groups[number]
            require(group.log.configuration.voters == (self.member,), "I12 the mark", number)
            self.world.checks.committed(self, group, index)
            self.states[number].applied = index

    def _watch(self) -> None:
        """See what the engine says before it becomes records."""
        self.outputs: deque[Output] = deque()
        step = self.replicas.node.step

        def watched(*arguments: Any) -> Output:
            output = step(*arguments)
            self.outputs.append(output)
            return output

        self.replicas.node.step = watched  # type: ignore[method-assign]

    def crash(self) -> None:
        if self.node is None:
            return
        self.node = None
        self.states = {}
        for image in self.disk.groups.values():
            image.damaged.clear()  # its bytes are right
        if self.in_flight:
            self.files.calls_left = self.random.randrange(CALLS)
            with contextlib.suppress(Crashed, DiskFull):
                self._append()
        self.files = self.files.crashed(self.random)
        self.in_flight = 0
        self.waiting_records.clear()
        self.crash_at_point = False
        self.world.clients.forget(self)

    def wipe(self, groups: dict[int, DiskGroup]) -> None:
        super().wipe(groups)
        self.first = self._first_configurations(groups)
        self.files, self.saved = CrashDisk(), None
        self.blocks.clear()
        self.last_imaged = 0

    # Steps.

    def step(self, event: NodeEvent) -> None:
        if self.node is None:
            return
        if isinstance(event, Received):
            self._receive(event.envelope)
        elif isinstance(event, Tick):
            self._take(self.replicas.tick(self.now()))
            self._idle()
        else:
            if isinstance(event, Room):
                self.files.room = None if event.room else 0
            self._take(self.replicas.step(event, self.now()))

    def _receive(self, frames: Any) -> None:
        try:
            found = check_envelope(decode(frames), self.replicas.digest_at)
        except RemoteProtocolError as error:
            require(frames in self.world.spoiled, "an envelope is refused", error)
            self.world.counts["spoiled envelope"] += 1
            return
        self._take(self.replicas.receive(found, self.now()))

    def _take(self, step: Step | None, releases: bool = False) -> None:
        """Carry out a step; a crash may come between any two things."""
        if step is None:
            return
        world = self.world
        world.steps += 1
        world.checks.releases = releases
        output = self.outputs.popleft()
        assert not self.outputs, "one event, one step"
        records, actions = expanded(output.records), expanded(output.actions)
        crash_after = -1
        if self.crash_at_point and self.random.random() < 0.05:
            crash_after = self.random.randrange(1 + len(step.envelopes) + len(actions))
        if records:
            world.checks.written(self, records)
            self._keep(records)
            sequences = [append.sequence for append in step.appends]
            self.blocks.append(Block(output.block, sequences[0], sequences[-1], records))
        for append in step.appends:
            entry = Entry(append.sequence, append.head, append.payload, append.commits)
            self.waiting_records.append(entry)
            record = log_format.parse_frames(append.head, bytes(append.payload))
            self.usage.inbox[0].append(("add_record", record, append.cause))
        self.begin_sync()
        for at, thing in enumerate([None, *step.envelopes, *actions]):
            if thing is not None and at <= len(step.envelopes):
                self._send(*thing)
            elif thing is not None:
                self._act(thing)
            if at == crash_after:
                world.crash(self)
            if self.node is None:
                return
        groups, index = step.committed
        if len(groups):
            fields = (groups.astype(np.intp), index.astype(np.uint64))
            self.usage.inbox[0].append(("add_committed", *fields))
        for refused in step.refused:
            world.clients.refused(self, refused)
        self._soon()
        world.checks.stepped(self)
        world.schedule_tick(self)

    def propose(self, proposal: Proposal, asked: Asked, contents: dict[int, Any]) -> Step:
        """Have a client's proposal ordered; contents: what each group's slice is to do."""
        step = self.replicas.propose(proposal, asked, self.now())
        for write in expanded(self.outputs[0].records):
            for op in write.ops if isinstance(write, WriteOps) else ():
                if op.kind == proposal.kind:
                    time = op.body.record.leader_time
                    proposed = Proposed(op.kind, time, contents[write.group])
                    self.world.history.propose(write.group, op.index, op.term, proposed)
        refused = [*step.refused]
        self._take(step._replace(refused=[]))
        return step._replace(refused=refused)

    def _act(self, action: Any) -> None:
        world = self.world
        if isinstance(action, Commit):
            if action.group in self.states:
                group = self.replicas.node.groups[action.group]
                world.checks.committed(self, group, action.index)
                self.states[action.group].applied = action.index
        elif isinstance(action, RoleChanged):
            if action.group in self.states:
                world.checks.role_changed(self, action)
        elif isinstance(action, ReadReady):
            world.clients.read_ready(self, action)
        elif isinstance(action, GoneBack):
            world.checks.gone_back(self, action)
        elif isinstance(action, ReadOps):
            self.catching_up.ask(action)
        elif isinstance(action, TakeSnapshot):
            world.counts["snapshot wished for"] += 1
        elif isinstance(action, SendSnapshot | StoreSnapshot | Restored):
            # The product has no snapshots yet; here they will be taken, sent and installed.
            raise AssertionError(f"nobody asks for snapshots yet: {action}")

    def _send(self, to: int, envelope: Envelope) -> None:
        self.world.checks.sent(self, to, envelope)
        now = self.catching_up.hold(envelope)
        self._transmit(now)

    def _transmit(self, envelope: Envelope) -> None:
        for ready in ready_to_send(envelope):
            frames = tuple([bytes(frame) for frame in encode(ready.envelope)])
            self.world.transmit(self, ready.envelope.target, frames)  # type: ignore[arg-type]

    # The log.

    def begin_sync(self) -> None:
        if self.in_flight or not self.waiting_records:
            return
        self.in_flight = block_count(self.waiting_records)
        delay = int(self.fsync_us * self.random.uniform(0.7, 1.6))
        self.world.after(delay, self, self.synced, self.boot)

    def _append(self) -> Any:
        entries = [self.waiting_records[at] for at in range(self.in_flight)]
        return self.log.append(entries)

    def synced(self, boot: int) -> None:
        if self.node is None or boot != self.boot:
            return
        try:
            durable = self._append()
        except DiskFull:
            self.world.counts["no room for a log file"] += 1
            self.world.after(FULL_RETRY_US, self, self.synced, self.boot)
            return
        commits = self.waiting_records[0].commits
        done = [self.waiting_records.popleft() for _ in range(self.in_flight)]
        self.in_flight = 0
        located = np.frombuffer(durable, np.uint64).reshape(-1, 4).tolist()
        place = [self.log.file_number, *self.log.place]
        self.usage.inbox[1].append(("add_commit", located, place, commits))
        sequence = located[-1][0]
        while self.blocks and self.blocks[0].last <= sequence:
            self._image_block(self.blocks.popleft())
        if commits:
            self._note_alone(done)
        self._note_end()
        self.begin_sync()
        self._soon()
        self._take(self.replicas.durable(sequence, self.now()), releases=True)

    def _note_alone(self, entries: list[Entry]) -> None:
        """These records say themselves that they are committed."""
        for entry in entries:
            record = log_format.parse_frames(entry.head, bytes(entry.payload))
            for one in record.slices:
                group = int(one["partition"])
                if group in self.states and not int(one["flags"]) & log_format.NOT_HERE:
                    self.world.checks.durable_alone(self, group, int(one["index"]))

    def _note_end(self) -> None:
        self.catching_up.durable(self.log.file_number, self.log.place.offset)

    def _idle(self) -> None:
        """What the log's actor does when it has nothing to write."""
        if self.node is None or self.in_flight or self.random.random() > 0.02:
            return
        with contextlib.suppress(DiskFull):
            if not self.log.protected:
                self.log.protect()
                self._note_end()

    # Ops that are only on disk.

    def ops_read(self, boot: int, asked: Any) -> None:
        if self.node is None or boot != self.boot:
            return
        self.reader.read_next(asked)
        taken = self.catching_up.take()
        self.world.counts["read from disk"] += len(taken.envelopes) + len(taken.events)
        for envelope in taken.envelopes:
            self._transmit(envelope)
        for event in taken.events:
            if self.node is not None:
                self._take(self.replicas.step(event, self.now()))

    # The state.

    def _soon(self) -> None:
        """Have usage take what has come, if anything has, a little later."""
        if self.turn_at > self.world.now or not (self.usage.reading or any(self.usage.inbox)):
            return
        self.turn_at = self.world.now + self.random.randint(20, 2_000)
        self.world.at(self.turn_at, self, self._turn, self.boot)

    def _turn(self, boot: int) -> None:
        if self.node is None or boot != self.boot:
            return
        usage, random = self.usage, self.random
        if usage.reading:
            usage.replay_some(random.choice([1, 3, 20]))
        usage.turn(random)
        if self.node is None:
            return
        self.world.clients.applied(self)
        if random.random() < LOOKED_AT:
            usage.check_state()
            self.world.counts["state looked at"] += 1
        if usage.reading:
            self._soon()
        if random.random() < 0.2:
            self._tell_applied()

    def _tell_applied(self) -> None:
        groups = np.array(self.world.groups, np.int64)
        index = self.usage.queue.groups.index[groups].astype(np.int64)
        if (index == self.told_applied).all():
            return
        self.told_applied = index
        self._take(self.replicas.applied(groups, index, self.now()))

    def _told(self, ready: Any, outcome: Any, judged: Any) -> None:
        self.world.clients.resolved(self, ready, outcome, judged)

    def applied(self, group: int) -> int:
        return self.usage.applied(group)

    def take_snapshot(self, boot: int, number: int) -> None:
        """Save a checkpoint; it is durable a little later."""
        if self.node is None or boot != self.boot:
            return
        saved = self.usage.save()
        delay = self.random.randint(1_000, 300_000)
        self.world.after(delay, self, self._saved, boot, saved)

    def _saved(self, boot: int, saved: Saved) -> None:
        if self.node is None or boot != self.boot:
            return
        if self.saved is None or saved.log["sequence"] >= self.saved.log["sequence"]:
            self.saved = saved
            self.world.cover("checkpoint")
