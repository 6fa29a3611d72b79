"""The usage actor: applies committed records and answers from memory.

It unpacks a record while the disk makes it durable, applies it when it is committed, and sends each
request its answer.  Questions about a current or previous period are answered here; the others go
to the query actor together with what it must know (`actors/questions/asking.py`), so no question
takes longer than about a millisecond here.

States: loading (checkpoint) → replaying (the log after it) → serving.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.actors.actor import BEAT_SECONDS, Actor
from meterd.actors.frames.bundle import bundle, unbundle
from meterd.actors.frames.durable_blocks import RECORD_FRAMES, durable_blocks
from meterd.actors.frames.leader_map import LeaderMap
from meterd.actors.frames.sockets import Frame
from meterd.actors.keeping.checkpoint_requests import CheckpointRequests
from meterd.actors.keeping.checkpoints import Checkpoints
from meterd.actors.keeping.cuts import Cuts
from meterd.actors.keeping.expiry_notices import ExpiryNotices
from meterd.actors.keeping.horizons import Horizons
from meterd.actors.keeping.identity_store import IdentityStore
from meterd.actors.keeping.leaders import Leaders
from meterd.actors.keeping.registry_file import RegistryFile
from meterd.actors.keeping.room import Room
from meterd.actors.log import replay
from meterd.actors.log.replay import Replay
from meterd.actors.machine.journal import timed
from meterd.actors.questions.asking import Asking
from meterd.actors.questions.reads import Reads, Waiting
from meterd.actors.requests.answering import Answers
from meterd.actors.requests.decided import Decided
from meterd.actors.requests.judging import Judging
from meterd.actors.requests.outcomes import (
    NO_REQUESTS,
    Origin,
    as_accepted,
    asked_of,
    parse_command_origin,
    parse_origin,
    refused_events,
    results,
)
from meterd.actors.requests.request_counts import RequestCounts
from meterd.actors.requests.split_answers import LOOK_SECONDS, SplitAnswers
from meterd.actors.requests.splitting import Splitting, command_proposal
from meterd.actors.starting import identity
from meterd.core.cluster.group_facts import GroupFacts
from meterd.core.kernels.tables import Capacity
from meterd.core.log.commit_queue import CommitQueue, Ready
from meterd.core.log.refused_rows import RefusedRows
from meterd.core.log.scan import Groups
from meterd.core.raft.events import NOT_LEADER
from meterd.core.state.applier import Applier
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from meterd.protocol.errors import MeterdError, NotLeader, Overloaded, error_body, exception_of
from meterd.protocol.log_format import Record
from meterd.protocol.result import encode_result

# A checkpoint is also due after so many records: small ones cost more to replay than their events.
CHECKPOINT_RECORDS = 20_000
# So many identities in memory become a run: 29 bytes each, twice.  Until it is made more find room,
# and beyond `RECENT_WAIT` everything waits for it.
RECENT_FLUSH = 2_000_000
RECENT_WAIT = 6_000_000
RECENT_MAX = 8_000_000
# How often to look whether a checkpoint that somebody waits for is durable.
SAVING_SECONDS = 0.01
# How soon to go on with what is done in turns.
BUSY_SECONDS = 0.001
# What a record counts as besides its events, and after how many to look whether something is due.
LOOK_RECORD, LOOK_EVENTS = 256, 4_096
# A turn ends after so long, whatever waits: between turns the supervisor hears of this actor.
TURN_SECONDS_MAX = 0.5
LAST_SECONDS = 0.2  # what was sent before this actor was told to stop is there by then
# How long ingest waits to hear whether a metric that it does not know is new.
FRESH_REGISTRY_SECONDS = 2.0
REGISTRY_KINDS = ("metric_put", "metric_delete", "retention_set")

# Who asked for a record: of events parsed, of a command as it came.
Asked = Any

logger = logging.getLogger(__name__)


class Usage(Actor):
    name = "usage"

    def open(self) -> None:
        directory = self.options.node.data_dir
        self.who = identity.read(directory)
        key = self.who.identity_key
        words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
        limits = self.options.limits
        self.state = StateMachine(
            words,
            Capacity(
                recent=RECENT_MAX,
                accounts=limits.accounts,
                series=limits.series,
                cells=limits.cells,
                members=limits.cells,
            ),
            self.who.beginning,
        )
        self.applier = Applier(self.state)
        self.applier.facts.begin(self.who.first_configurations)
        self._use_log(Groups(), replay.BEGINNING)
        self.answers = Answers(self)
        self._expiry = ExpiryNotices(self)
        self.leader_map = LeaderMap(self.options)
        self._splits = SplitAnswers(self)
        self.horizons = Horizons(self, Splitting(self, self.leader_map))
        self.reads = Reads(self)
        self._asking = Asking(self)
        self._judging = Judging(self)
        self._replay: Replay | None = None  # while the log is read
        self._replay_began = 0.0
        self._start_sequence: int | None = None  # the last record in the log when we began
        self._heard = False  # has replication said what is committed?
        self._leaders = Leaders(self)
        self._answered: list[RequestCounts] = []  # of this turn, to be counted
        self._decided = Decided(self.send)
        self._cuts = Cuts(self)
        self._identities = IdentityStore(directory, self.state, RECENT_FLUSH)
        self._checkpoints = Checkpoints(directory, self._identities)
        self._checkpoint_requests = CheckpointRequests(self)
        self._records_unsaved = self._events_unsaved = self._events_handed = 0
        self._unlooked = 0  # events, and records, since the last look whether something is due
        self._flushed_at = 0.0
        self._busy = False  # is there more to do, of a checkpoint or an eviction?
        self._members_told = -1  # their version
        self.serving = False
        self._disk_hard = False  # the disk is so full that only what makes room may write
        self._room = Room(self)
        self._registry_file = RegistryFile(directory)
        self._saved_at = time.monotonic()
        self._load()

    def _load(self) -> None:
        self.lifeline.say("status loading the checkpoint")
        with timed("checkpoint loaded"):
            self._checkpoints.load(self._restore)

    def _restore(self, state: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.state.restore(state, arrays)
        self.applier.refused = RefusedRows.from_map(state["refused"])
        self.applier.facts = GroupFacts.unpacked(state["log"])
        self.applier.facts.begin(self.who.first_configurations)
        self._use_log(Groups.unpacked(state["log"]), replay.Position(*state["position"]))

    def _use_log(self, groups: Groups, position: replay.Position) -> None:
        """Go on from where a checkpoint stands in the log."""
        self.queue: CommitQueue[Asked] = CommitQueue(groups, position, self._registry_version)

    def _registry_version(self) -> int:
        return self.state.registry.version

    @property
    def groups(self) -> Groups:
        """What is applied: of each group, and the last record before which nothing waits."""
        return self.queue.groups

    @property
    def position(self) -> replay.Position:
        """Where the oldest block begins of which something waits: a replay begins there."""
        return replay.Position(*self.queue.position)

    @property
    def read_end(self) -> replay.Position:
        """Up to where the log may be read: rows that wait before it count as refused."""
        return replay.Position(*self.queue.end)

    @property
    def refused(self) -> RefusedRows:
        return self.applier.refused

    @property
    def answers_questions(self) -> bool:
        return self.serving and not self._expiry.missing

    # Messages

    def handle(self, frames: list[bytes]) -> None:
        kind = frames[0]
        if kind == b"commit":
            self._add_blocks(frames[1:])
            self._go_on()
        elif kind == b"record":
            self._add_records(frames[1:])
            self._go_on()
        elif kind == b"committed":
            self._add_committed(frames[1:])
            self._go_on()
        elif kind == b"record_committed":
            end = 2 + RECORD_FRAMES * frames[1][0]
            self._add_records(frames[2:end])
            self._add_committed(frames[end:])
            self._go_on()
        elif kind == b"leaders":
            self.leader_map.take(frames)
            self._splits.led(self.leader_map.nodes.tolist())
            self._leaders.take(frames)
            self.send("query", [b"leaders", frames[2]])
            self._go_on()
        elif kind == b"requests":
            for rid, header, body in unbundle(frames[1:]):
                self._asking.on_request(rid, header, body)
        elif kind == b"read_ready":
            self.reads.on_ready(frames)
        elif kind == b"read_refused":
            self.reads.on_refused(frames)
        elif kind == b"ask_index":
            self.reads.on_ask_index(frames)
        elif kind == b"index":
            self.reads.on_index(frames)
        elif kind == b"fresh_registry":
            self._on_fresh_registry()
        elif kind == b"split":
            self._splits.on_split(frames)
        elif kind == b"outcome":
            self._splits.on_outcome(frames)
        elif kind == b"judge":
            self._judging.on_frame(frames[1])
        elif kind == b"replay":
            self._on_replay(frames)
        elif kind == b"refused":
            self._on_refused(msgpack.unpackb(frames[1]), frames[2])
        elif kind == b"segmented":
            self.refused.forget(int(frames[1]))
        elif kind == b"save":
            if self.serving:
                self._checkpoint_requests.ask()
        elif kind == b"disk":
            self._disk_hard = frames[1] == b"hard"
        elif kind == b"cut":
            self._cuts.ask(msgpack.unpackb(frames[1]))
        elif kind == b"hello":
            self._on_hello(frames[1].decode())

    def _add_records(self, frames: Sequence[Frame]) -> None:
        """Take records in the order of the log: (sequence, head, payload, origin) repeated."""
        for at in range(0, len(frames), RECORD_FRAMES):
            _, head, payload, origin = frames[at : at + RECORD_FRAMES]
            record = log_format.parse_frames(head, payload)
            asked = asked_of(record, origin)
            self._splits.on_record(asked, record.row_count)
            self._judging.on_record(record, asked)
            self.queue.add_record(record, asked)

    def _add_committed(self, frames: Sequence[Frame]) -> None:
        """Take blocks that are durable now, and up to where groups are committed."""
        packed, index, *blocks = frames
        self._add_blocks(blocks)
        groups = np.frombuffer(packed, np.uint16).astype(np.intp)
        if len(groups):
            self.queue.add_committed(groups, np.frombuffer(index, np.uint64))
            self._heard = True

    def _add_blocks(self, frames: Sequence[Frame]) -> None:
        """Take blocks that are durable now."""
        for records, end, committed in durable_blocks(frames):
            self.queue.add_commit(records, end, committed)
            self._heard |= committed

    def enough(self) -> bool:
        """Answer one block's requests before the next, so that their clients can go on."""
        late = time.monotonic() - self._flushed_at > TURN_SECONDS_MAX
        return late or not self.answers.empty or bool(self._answered)

    def flush(self) -> None:
        """Answer, then do what no client waits for."""
        self.answers.send()
        self._decided.tell(self.leader_map.alone)
        for counts in self._answered:
            counts.tell(self.telemetry)
        self._answered.clear()
        if self._unlooked >= LOOK_EVENTS:
            self._unlooked = 0
            self.maybe_save()
            self._leaders.tell_applied(time.monotonic())
        self._flushed_at = time.monotonic()

    # Start

    def _on_replay(self, frames: list[bytes]) -> None:
        """Replay what the log holds beyond the checkpoint, as it becomes committed."""
        self._replay_began = time.monotonic()
        self.lifeline.say("status replaying the log")
        last = msgpack.unpackb(frames[1], strict_map_key=False)["sequence"]
        self._start_sequence, self._replay = last, Replay(self, last, frames[2])
        self._go_on()

    def _go_on(self) -> None:
        """Apply what may be applied, first of what is replayed; serve when that is done."""
        if self._replay is None:
            self.apply_ready()
        elif self._replay.turn(self._heard):
            self._replay_read(self._replay)
            self._replay = None
        if not self.serving and self._replay is None:
            self._try_serving()

    def _replay_read(self, work: Replay) -> None:
        self._identities.settle(lambda: self.lifeline.say("status filling the filter of ids"))
        seconds = time.monotonic() - self._replay_began
        fields = {"events": work.events, "seconds": f"{seconds:.3f}"}
        logger.info("log replayed", extra={"fields": fields})
        self.telemetry.set("wal_recovery_duration_seconds", seconds)
        self.telemetry.set("wal_recovered_events", work.events)
        # Before this node serves: without the others it never may, and they wait for their place.
        self._announce_members()

    def _try_serving(self) -> None:
        """Serve when the log of the start is resolved, or all that this node has to answer for."""
        start = self._start_sequence
        if start is None or not self._leaders.known:
            return  # what expires is proposed before anybody may propose events
        if self.groups.sequence < start and not self._leaders.ready:
            return
        self.serving = True
        if self.state.registry.entries:
            # The end may have come before there was room for it.
            self._registry_file.save(self.state.registry)
        self.send("retention_sweeper", [b"hello", self.name.encode()])
        self._expiry.begin()
        self._announce_members()
        self._announce_registry([])
        self.answers.send()
        self.horizons.expire()
        self._announce_sealed_files()
        self.ready()

    def _on_hello(self, actor: str) -> None:
        """Another actor has started after us: tell it what it has missed."""
        if not self.serving:
            return
        if actor == "retention_sweeper":
            self.horizons.forget_told()
            self._expiry.forget_told()
            self._expiry.announce()
            self.horizons.tell()
            self._room.forget_waits()
            self._announce_sealed_files()
        elif actor == "query":
            self._asking.forget_registry()
        elif actor == "router":
            self._room.forget_full()
            self._members_told = -1
            self._announce_members()

    def _announce_registry(self, answers: list[Frame], kind: bytes = b"registry") -> None:
        """Give ingest the registry, and the answers that it may pass on once it has it."""
        packed = self.state.registry.to_bytes()
        self.send("ingest", [kind, packed, *bundle(answers)])

    def _announce_members(self) -> None:
        """Tell who belongs to the cluster, when that has changed."""
        version = self.state.members.version
        if version != self._members_told:
            self._members_told = version
            packed = self.state.members.to_bytes()
            for actor in ("router", "replication"):
                self.send(actor, [b"members", packed])

    def _on_fresh_registry(self) -> None:
        """Ingest has met a metric that it does not know: give it the registry as it is now."""

        def failed(error: MeterdError) -> None:
            self.send("ingest", [b"no_registry", msgpack.packb(error_body(error))])

        until = time.monotonic() + FRESH_REGISTRY_SECONDS
        waiting = Waiting(lambda: self._announce_registry([], b"fresh_registry"), failed)
        self.reads.when_fresh([log_format.META_GROUP], until, waiting)

    def _announce_sealed_files(self) -> None:
        """Announce all files of which everything is resolved and that have no index yet."""
        for number in self.refused.files():
            if number < self.position.file_number:
                self._announce_sealed(number)

    def _announce_sealed(self, file_number: int) -> None:
        bitmap, count = self.refused.packed(file_number)
        meta = msgpack.packb({"file_number": file_number, "row_count": count})
        self.send("retention_sweeper", [b"sealed", meta, bitmap])

    # Committed records

    def apply_ready(self) -> None:
        """Apply what is durable and committed."""
        before = self.queue.position[0]
        for ready in self.queue.ready():
            self.beat()
            self._apply(ready)
            self._judging.applied(ready.record)
        self.reads.applied()
        if self.serving:
            for number in range(before, self.queue.position[0]):
                if self.refused.rows(number):
                    self._announce_sealed(number)

    def _on_refused(self, why: dict[str, Any], origin: Frame) -> None:
        """Replication has taken nothing of a proposal: its clients send it again."""
        said = f"the replicas cannot take this now ({why['reason']})"
        error = NotLeader(said) if why["reason"] == NOT_LEADER else Overloaded(said)
        if why["kind"] == log_format.EVENTS:
            parsed = parse_origin(origin)
            reply = parsed.reply if parsed.wait is None else None
            asked = [(rid, number, "ingest") for rid, number, *_ in parsed.requests]
        else:
            reply, asked = parse_command_origin(origin)
        if reply is not None:
            self._splits.refused(reply, None if why["kind"] == log_format.EVENTS else error)
        self._decided.count += why["kind"] == log_format.EVENTS and reply is None
        for rid, request_id, kind in asked:
            if rid:
                self.answers.error(rid, request_id, kind, error)

    def note_waiting(self) -> None:
        """Have the bitmaps of refused rows say which rows of the durable log wait."""
        for ready in self.queue.waiting():
            self.applier.wait(ready)

    def _apply(self, ready: Ready[Asked]) -> None:
        """Apply what is ready of a record; when nothing is left answer its requests, if any."""
        record, origin = ready.record, ready.asked
        if ready.done:
            self._records_unsaved += 1
            self._events_unsaved += record.row_count
            self._unlooked += LOOK_RECORD + record.row_count
        if record.kind != log_format.EVENTS:
            result = self.applier.other(ready)
            if record.kind in log_format.COMMANDS and result is not None:
                self._after_command(record, result, origin)
            return
        refusals = None if origin is None else origin.refusals
        if refusals is not None:
            self._judging.before(record.sequence, refusals)
        outcome = self.applier.events(ready)
        if origin is None or outcome is None:
            return
        if refusals is not None:
            self._judging.record_done(origin, record, outcome)
        else:
            self.answer_events(origin, outcome, None, record)

    def answer_events(
        self, origin: Origin, outcome: Any, judged: Any, record: Record | None
    ) -> None:
        """Answer the requests of a record, or of a part of them; keep what was refused."""
        if outcome.any() or judged is not None:
            refused = refused_events(origin, outcome, judged, record)
            if refused:
                self.send("retention_sweeper", [b"refused_events", msgpack.packb(refused)])
        if origin.reply is not None:
            self._splits.decided(origin, outcome, judged)
        else:
            self.answer_requests(origin, outcome, judged)

    def answer_requests(self, origin: Origin, outcome: Any, judged: Any) -> None:
        """Answer requests all of whose events are decided, and note what became of these."""
        counts = RequestCounts(origin.began)
        for rid, request_id, accepts, result in results(origin, outcome, judged):
            counts.add(result, "async" if accepts else "sync", waited_for=bool(rid))
            if rid:
                told = as_accepted(result) if accepts else result
                self.answers.ingested(rid, request_id, encode_result(told))
        self._answered.append(counts)
        self._decided.count += 1

    def _after_command(self, record: Record, result: dict[str, Any], origin: Frame | None) -> None:
        if origin is None and not self.serving:
            return  # a replay
        if record.kind == log_format.EXPIRE and "error" not in result:
            # Who asked has set the retention, which the record before this one has applied.
            result = self.horizons.result()
        command_answers = Answers(self)
        reply, asked = parse_command_origin(NO_REQUESTS if origin is None else origin)
        for rid, request_id, kind in asked:
            if "error" in result:
                command_answers.error(rid, request_id, kind, exception_of(result["error"]))
            else:
                command_answers.result(rid, request_id, kind, result)
        if record.kind == log_format.META:
            self._registry_file.save(self.state.registry)
            self.horizons.tell()
            self._announce_members()
            self._announce_registry([*command_answers.take(), *self._splits.registry_moved()])
            if reply is not None:
                self._splits.command_done(reply, result)
        else:
            if record.kind == log_format.EXPIRE:
                self.horizons.tell()
            done = None if reply is None else partial(self._splits.command_done, reply, result)
            self._expiry.follow(command_answers.take(), done)

    def answer_commands(self, kind: str, answers: list[Frame]) -> None:
        """Let answers to commands go that other nodes have applied, when their promise holds."""
        if kind in REGISTRY_KINDS:
            self._announce_registry(answers)
        else:
            self._expiry.follow(answers)

    # Housekeeping

    def tick(self, now: float) -> float:
        self._splits.turn(now)
        self.reads.turn(now)
        self.answers.send()
        self._decided.tell(self.leader_map.alone)
        if not self.serving:
            return BEAT_SECONDS
        self.horizons.turn(now)
        self._expiry.turn()
        self._announce_members()
        self.maybe_save()
        self._checkpoint_requests.turn()
        self._cuts.answer()
        self._room.turn(self.state.fill(), self._checkpoints.waiting)
        self._leaders.tell_applied(now)
        if self._registry_file.unsaved:
            self._registry_file.save(self.state.registry)
        self.telemetry.keep("view_changes_total", self.applier.facts.changes_of_partitions)
        for name, count in self.state.counts().items():
            self.telemetry.set(f'state_entries{{kind="{name}"}}', count)
        if self._checkpoints.saved_at:
            moment = self._checkpoints.saved_at
            self.telemetry.set("checkpoint_last_success_timestamp_seconds", moment)
        if self._busy:
            return BUSY_SECONDS
        if len(self._splits) or len(self.reads):
            return LOOK_SECONDS
        return SAVING_SECONDS if self._checkpoint_requests.busy else BEAT_SECONDS

    def propose(
        self,
        kind: int,
        groups: NDArray[np.intp],
        command: dict[str, Any],
        origin: bytes = NO_REQUESTS,
    ) -> None:
        """Have a command ordered and logged in some groups."""
        version = self.state.registry.version
        meta, payload = command_proposal(kind, groups.tolist(), command, version)
        self.send("replication", [b"propose", msgpack.packb(meta), payload, origin])

    def note_leaders(self) -> None:
        """This node leads other groups now: their horizons may be behind."""
        if self.serving:
            self.horizons.expire()

    @property
    def led(self) -> NDArray[np.intp]:
        """Return the partitions that this node leads."""
        return self._leaders.led

    @property
    def first_needed(self) -> int:
        """The first log file that a start may need; both checkpoints lie behind those before it."""
        kept = self._checkpoints.previous
        return 0 if kept is None else int(kept["log"]["file_number"])

    def announce_expiry(self) -> None:
        """Tell the sweeper how far events have expired, and who is erased."""
        self._expiry.announce()

    def ask_checkpoint(self, rid: bytes = b"", request_id: int = 0) -> None:
        """Save a checkpoint now; the answer, if somebody waits, comes when it is durable."""
        self._checkpoint_requests.ask(rid, request_id)

    # Checkpoints

    def maybe_save(self) -> None:
        """Take over what was saved beside the loop, go on with that, and begin what is due."""
        self._hand_over()
        full = self.state.recent >= RECENT_WAIT  # in a replay nothing else slows down
        self._take_saved(wait=full)
        self._identities.step(time.monotonic(), not self._checkpoints.busy, wait=full)
        storage = self.options.storage
        late = time.monotonic() - self._saved_at >= storage.checkpoint_interval
        due = self._events_unsaved >= storage.checkpoint_events
        due = due or self._records_unsaved >= CHECKPOINT_RECORDS or late
        # One that found no room is due although nothing has come since: events are refused.
        unsaved = self._records_unsaved or self._checkpoints.waiting or self._expiry.saves_due
        due = due or self._checkpoints.waiting or self._expiry.saves_due > 0
        if self._disk_hard and self.serving:
            return  # the log has it all; once there is a little room it is done at once
        if due and unsaved and self.may_save:
            self.save()
            self._expiry.saved()

    def _take_saved(self, wait: bool) -> None:
        """Take over a checkpoint that was saved beside the loop."""
        failure = self._checkpoints.step(wait)
        if failure == "no room":
            self.telemetry.add("checkpoint_errors_total")
            self._checkpoint_requests.failed()
        elif failure == "spoiled":
            self._records_unsaved = CHECKPOINT_RECORDS  # so that another is due
            self._checkpoint_requests.spoiled()

    def _hand_over(self) -> None:
        """Do a turn of the checkpoint that is being saved, or else of an eviction."""
        if self._checkpoints.saving:
            events = self._events_unsaved - self._events_handed
            self._busy = self._checkpoints.turn(events)
            self._events_handed = self._events_unsaved
        else:
            self._busy = self.state.evict() is not None

    @property
    def may_save(self) -> bool:
        """May a checkpoint be begun?"""
        return not (self._checkpoints.busy or self._identities.busy)

    @property
    def saving(self) -> bool:
        """Is a checkpoint being saved?"""
        return self._checkpoints.busy

    @property
    def saved_at(self) -> float:
        """When the newest checkpoint became durable, in seconds since the epoch."""
        return self._checkpoints.saved_at

    def save(self) -> None:
        """Begin to save a checkpoint; none may be under way."""
        self.note_waiting()
        position = {
            "log": {
                "file_number": self.position.file_number,
                **self.groups.packed(),
                **self.applier.facts.packed(),
            },
            "position": list(self.position),
            "refused": self.refused.to_map(),
        }
        self._checkpoints.save(self.state, position)
        self._records_unsaved = self._events_unsaved = self._events_handed = 0
        self._saved_at = time.monotonic()
        self._checkpoint_requests.begun()
        self.telemetry.add("checkpoint_runs_total")

    @property
    def saved_sequence(self) -> int:
        """The last record that the newest durable checkpoint covers; -1 without one."""
        saved = self._checkpoints.saved
        return -1 if saved is None else saved["log"]["sequence"]

    def checkpoint_facts(self) -> dict[str, Any] | None:
        """Say what the newest durable checkpoint covers."""
        saved = self._checkpoints.saved
        if saved is None:
            return None
        return {
            "records": saved["log"]["sequence"],
            "events": saved["stored"],
            "file_number": saved["position"][0],
            "offset": saved["position"][1],
        }

    def drained(self) -> bool:
        """Who wrote has ended; nobody says any more what becomes of ops not yet committed."""
        return self.queue.empty or time.monotonic() > self.busy_at + LAST_SECONDS

    def close(self) -> None:
        """Save a last checkpoint, so that the next start has nothing to replay."""
        self.answers.send()
        if self.serving:
            self._take_saved(wait=True)
            self._identities.step(time.monotonic(), may_flush=False, wait=True)
            asked = self._records_unsaved or self._checkpoint_requests.busy
            if asked and not self._identities.busy:
                self.save()
                self._take_saved(wait=True)
            self._checkpoint_requests.turn()
        self._identities.finish()
