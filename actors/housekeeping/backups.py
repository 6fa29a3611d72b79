"""Makes backups while the node serves, each a job; and holds all files for copies by other means.

How the backups were proved it is told by who does that, and shows it.

The job's thread reads files.  What only the usage actor knows it asks for through this service,
because a thread must not use the actor's sockets.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.backups.creating import Creation, CutFacts, Node
from meterd.actors.backups.reading import Memory
from meterd.actors.backups.shelf import Shelf
from meterd.actors.files.disk import atomic_write
from meterd.actors.housekeeping.jobs import Job, Task
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.actors.keeping import held_checkpoint
from meterd.actors.starting import identity
from meterd.protocol import checkpoint_format
from meterd.protocol.backup_manifest import BackupType, Manifest
from meterd.protocol.errors import BadRequest, Busy, DiskFull, Internal, MeterdError
from meterd.protocol.log_format import Damaged

if TYPE_CHECKING:
    from meterd.actors.housekeeping.pins import Pins
    from meterd.actors.retention_sweeper import RetentionSweeper

KIND = LANE = "backup"
HOLD = "backup-hold"
STATE_FILE = "last_backup.bin"
# While a backup runs, its thread's questions are passed on so often.
LOOK_SECONDS = 0.05
HOLD_LOOK_SECONDS = 10.0
# The usage actor may restart, and forget who asked.
ASK_AGAIN_SECONDS = 5.0
ANSWER_SECONDS_MAX = 600.0
# The lease of a backup's pin; it is taken again while the backup runs.
PIN_SECONDS = 3_600
PIN_AGAIN_SECONDS = 600.0
PIN_RETRY_SECONDS = 10.0
NS = 1_000_000_000

logger = logging.getLogger(__name__)


@dataclass
class Last:
    """What is known of the last backups; kept in `last_backup.bin`."""

    success: dict[str, int]  # type → UTC ns
    seconds: float = 0.0
    size: int = 0
    events: int = 0
    verified: dict[str, int] = field(default_factory=dict)  # level → UTC ns, when all was whole
    present: int | None = None  # when last verified
    broken: int | None = None
    drill: int | None = None  # UTC ns of the last that succeeded
    rto_ms: int | None = None
    rpo_ms: int | None = None


class Backups(Service):
    """See the module."""

    messages = (b"cut",)
    requests = ("backup_create", "backup_hold", "backup_release", "backup_report")

    def __init__(self, sweeper: RetentionSweeper, pins: Pins) -> None:
        super().__init__(sweeper)
        self._pins = pins
        self._memory = Memory()
        self._ids = count(1)
        self._outgoing: deque[tuple[int, bool]] = deque()
        self._boxes: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._pin_due = 0.0
        self._last = self._load()
        self._report()
        self.due = 0.0

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        if kind == "backup_create":
            return {"job": self._start(fields["to"], fields["type"]).to_map()}
        if kind == "backup_hold":
            expires = time.time_ns() + fields["seconds"] * NS
            held = self._pins.pin(HOLD, 0, expires)
            try:
                held_checkpoint.hold(self.directory)
            except OSError as error:
                raise Internal(f"the checkpoint cannot be held: {error}") from error
            self.due = 0.0
            return {"hold": held._asdict()}
        if kind == "backup_report":
            self._take_note(fields)
            return {}
        held_checkpoint.release(self.directory, held_checkpoint.PREFIX)
        return {"released": self._pins.unpin(HOLD) is not None}

    def handle(self, frames: list[Any]) -> None:
        facts = msgpack.unpackb(frames[1], strict_map_key=False)
        box = self._boxes.pop(facts["id"], None)
        if box is not None:  # else it was asked twice
            box.put(facts)

    def turn(self, now: float) -> None:
        """Pass on what the job's thread asks, and keep its pin."""
        while self._outgoing:
            request, save = self._outgoing.popleft()
            asked = {"id": request, "save": save}
            self.sweeper.send("usage", [b"cut", msgpack.packb(asked)])
        if self.sweeper.jobs.active(KIND) is None:
            self.due = self._look_at_hold(now)
            return
        if now >= self._pin_due:
            self._pin_due = now + self._pin_again()
        self.due = now + LOOK_SECONDS

    def _pin_again(self) -> float:
        """Make the lease last; return after how long to do so again."""
        try:
            self._pins.pin(KIND, 0, time.time_ns() + PIN_SECONDS * NS)
        except DiskFull as full:  # the lease that there is lasts for long
            logger.warning("the pin of the backup is made to last later: %s", full)
            return PIN_RETRY_SECONDS
        return PIN_AGAIN_SECONDS

    def _look_at_hold(self, now: float) -> float:
        """Let the held checkpoint go when the hold has ended; return when to look again."""
        if any(pin.name == HOLD for pin in self._pins.active):
            return now + HOLD_LOOK_SECONDS
        held_checkpoint.release(self.directory, held_checkpoint.PREFIX)
        return NEVER

    def _start(self, to: str, backup_type: BackupType) -> Job:
        """Begin a backup.  Raises BadRequest, Busy, DiskFull."""
        check_target(to, self.directory)
        # Before the job looks at the directory, so that nothing it finds can go.
        self._pins.pin(KIND, 0, time.time_ns() + PIN_SECONDS * NS)
        self.sweeper.telemetry.set("backup_last_attempt_timestamp_seconds", time.time())
        job = self.sweeper.jobs.start(
            KIND, LANE, lambda task: self._work(task, to, backup_type), self._ended
        )
        self.due = 0.0
        return job

    def _work(self, task: Task, to: str, backup_type: BackupType) -> dict[str, Any]:
        """Make a backup, in the job's thread."""
        node = Node(
            directory=self.directory,
            who=identity.read(self.directory),
            cut=lambda save: self._cut(task, save),
            advance=task.advance,
            limit=lambda: self.sweeper.options.backup.io_limit,
        )
        try:
            made = Creation(node, Shelf.at(to), backup_type, self._memory).run()
        except OSError as error:  # of the node's own files; the store has errors of its own
            raise Internal(f"a file of the node cannot be read: {error}") from error
        return summary(made, to)

    def _cut(self, task: Task, save: bool) -> CutFacts:
        """Ask the usage actor, and wait.  Raises Cancelled, Busy."""
        request, box = next(self._ids), queue.SimpleQueue[dict[str, Any]]()
        self._boxes[request] = box
        give_up = time.monotonic() + ANSWER_SECONDS_MAX
        ask_at = 0.0
        while time.monotonic() < give_up:
            if time.monotonic() >= ask_at:
                self._outgoing.append((request, save))
                ask_at = time.monotonic() + ASK_AGAIN_SECONDS
            try:
                return CutFacts.from_map(box.get(timeout=LOOK_SECONDS))
            except queue.Empty:
                task.advance(task.progress)
        raise Busy("the node did not say how far its log is applied")

    def _ended(self, job: Job) -> None:
        """Count a backup, and let files go."""
        if self.sweeper.jobs.active(KIND) is None:
            try:
                self._pins.unpin(KIND)
            except MeterdError as error:
                logger.warning("the pin of the backup stays until it ends by itself: %s", error)
        result = "ok" if job.state == "done" else job.state
        self.sweeper.telemetry.add(f'backup_runs_total{{result="{result}"}}')
        if job.result is None:
            return
        self._last.success[job.result["type"]] = time.time_ns()
        self._last.seconds = job.result["seconds"]
        self._last.size, self._last.events = job.result["size"], job.result["events"]
        self._save()

    def _take_note(self, said: dict[str, Any]) -> None:
        """Take note of a verification or a drill; a bad one leaves the time of the last good."""
        last = self._last
        if said["good"] and said["proof"] == "drill":
            last.drill = time.time_ns()
        elif said["good"]:
            last.verified[said["proof"]] = time.time_ns()
        for name in ("present", "broken", "rto_ms", "rpo_ms"):
            if said[name] is not None:
                setattr(last, name, said[name])
        self._save()

    def _save(self) -> None:
        """Show what is known, and keep it."""
        self._report()
        state = {"kind": "last_backup", **asdict(self._last)}
        try:
            path = os.path.join(self.directory, STATE_FILE)
            atomic_write(path, checkpoint_format.encode(state, {}))
        except MeterdError as error:
            logger.warning("%s cannot be written: %s", STATE_FILE, error)

    def _load(self) -> Last:
        try:
            raw = Path(self.directory, STATE_FILE).read_bytes()
            state = checkpoint_format.read_state(raw)
        except (FileNotFoundError, Damaged):  # it is for telemetry only
            return Last({})
        del state["kind"]
        return Last(**state)

    def _report(self) -> None:
        telemetry, last = self.sweeper.telemetry, self._last
        for backup_type, moment in last.success.items():
            name = f'backup_last_success_timestamp_seconds{{type="{backup_type}"}}'
            telemetry.set(name, moment / NS)
        if last.success:
            telemetry.set("backup_last_duration_seconds", last.seconds)
            telemetry.set("backup_last_bytes", last.size)
            telemetry.set("backup_last_events", last.events)
        for level, moment in last.verified.items():
            telemetry.set(f'backup_verified_timestamp_seconds{{level="{level}"}}', moment / NS)
        known = {
            "backups_present": (last.present, 1),
            "backups_broken": (last.broken, 1),
            "drill_last_success_timestamp_seconds": (last.drill, NS),
            "drill_rto_seconds": (last.rto_ms, 1_000),
            "drill_rpo_seconds": (last.rpo_ms, 1_000),
        }
        for name, (value, unit) in known.items():
            if value is not None:
                telemetry.set(name, value / unit)


def check_target(to: str, data_dir: str) -> None:
    """Make sure that backups may go there, and that a directory exists.  Raises BadRequest."""
    if to.startswith("s3://"):
        return
    path = to.removeprefix("file://")
    if not path.startswith("/"):
        raise BadRequest(f"to: {to!r} is neither s3://BUCKET/PREFIX nor a whole path")
    real, own = os.path.realpath(path), os.path.realpath(data_dir)
    if os.path.commonpath([real, own]) == own:
        raise BadRequest("to: a backup inside the data directory would be lost with it")
    try:
        os.makedirs(path, mode=0o750, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"to: cannot make {path}: {error.strerror}") from error


def summary(made: Manifest, to: str) -> dict[str, Any]:
    """Say what was made."""
    return {
        "name": made.name,
        "to": to,
        "type": made.type,
        "parent": made.parent,
        "position": str(made.cut.sequence),
        "cut_time": made.cut.taken,
        "events": made.events,
        "files": len(made.files),
        "size": made.size,
        "written": made.own_size,
        "seconds": round((made.finished - made.started) / NS, 3),
    }
