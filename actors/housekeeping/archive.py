"""Copies each full log file once to where it outlives the machine (section `archive`).

A job copies what waits, in the order of the files, and proves each copy (`archive_copy.py`); what
it has proved is durable (`archive_state.py`).  A failure is counted and tried again, later each
time, and files that are not archived are not deleted.  When too many wait, the option says whether
they are all kept (`stop`: the disk's limits will stop events) or the oldest given up (`gap`, which
stays an alarm until a full backup makes it harmless).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.actors.housekeeping.archive_copy import (
    ArchiveFailed,
    CommandCopier,
    Copier,
    StoreCopier,
    check_log_file,
)
from meterd.actors.housekeeping.archive_state import ArchiveState, Gap, name_prefix
from meterd.actors.housekeeping.jobs import Job, Task
from meterd.actors.housekeeping.log_holding import LogHolding
from meterd.actors.housekeeping.object_store import ObjectStore, open_store
from meterd.actors.housekeeping.service import Service
from meterd.actors.options import Archive as Options
from meterd.actors.starting import identity
from meterd.protocol.errors import DiskFull, DiskStop, Exists, MeterdError, NotFound
from meterd.protocol.log_format import full_name, number_of

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

LANE = KIND = "archive"
# After failures wait 1 s, 2 s, 4 s … but not longer than this.
RETRY_SECONDS_MAX = 300.0
# While the job runs, look so often what it has done.
LOOK_SECONDS = 0.2

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How one attempt ended."""

    number: int
    result: str
    seconds: float
    message: str = ""


class Archive(Service):
    """See the module."""

    requests = ("wal_archive",)

    def __init__(self, sweeper: RetentionSweeper, holding: LogHolding) -> None:
        super().__init__(sweeper)
        who = identity.read(self.directory)
        self._state = ArchiveState(self.directory, who.incarnation)
        self._prefix = name_prefix(self.directory, who)
        self._outcomes: deque[Outcome] = deque()  # from the job's thread, one a file
        self._failures = 0  # in a row
        self._last_failure: dict[str, Any] | None = None
        self._retry_at = 0.0  # monotonic seconds
        self._was_full = False
        holding.archived_through = self._through
        if not self._is_on:
            self._measure([])

    @property
    def _options(self) -> Options:
        return self.sweeper.options.archive

    @property
    def _target(self) -> str:
        return self._options.target or self._options.command

    @property
    def _is_on(self) -> bool:
        return bool(self._target)

    def _through(self) -> int | None:
        """Return the newest file that need not be kept for the archive; None without one."""
        if not self._is_on:
            return None
        return self._state.through if self._state.target == self._target else 0

    def turn(self, now: float) -> None:
        self._take_outcomes()
        self.due = now + self._options.check_interval
        if not self._is_on:
            self._measure([])
            return
        try:
            self._state.use(self._target)
            waiting = self._look()
        except DiskFull as full:
            logger.warning("no room for the archive's state: %s", full)
            return
        running = self.sweeper.jobs.active(KIND) is not None
        if waiting and not (running or self.sweeper.stopping) and now >= self._retry_at:
            self._start()
            running = True
        if running:
            self.due = now + LOOK_SECONDS

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Archive what waits now, however many attempts have failed.

        Raises NotFound, Busy, DiskStop.
        """
        if not self._is_on:
            raise NotFound("there is no archive: archive.target and archive.command are empty")
        self._retry_at = 0.0
        try:
            self._state.use(self._target)
        except DiskFull as full:
            raise DiskStop(f"no room for the archive's state: {full}") from full
        return {"job": (self.sweeper.jobs.active(KIND) or self._start()).to_map()}

    def close_gaps(self, first_file: int) -> None:
        """A full backup begins with this log file: gaps before it do no harm.  Raises DiskFull."""
        self._state.close_gaps(first_file)

    def status(self) -> dict[str, Any]:
        """Return what operators ask."""
        waiting = self._waiting() if self._is_on else []
        return {
            "target": self._target,
            "through": self._through(),
            "queue_files": len(waiting),
            "queue_bytes": sum(size for _, size in waiting),
            "gaps": [list(gap[:2]) for gap in self._state.gaps],
            "last_success": self._state.last_success,
            "last_failure": self._last_failure,
            "retry_seconds": round(max(0.0, self._retry_at - time.monotonic()), 3),
        }

    # The queue

    def _waiting(self) -> list[tuple[int, int]]:
        """Return number and size of the full files that are not archived, oldest first."""
        through = self._through() or 0
        numbers = sorted(filter(None, map(number_of, os.listdir(self.directory))))
        waiting = []
        for number in numbers:
            # In the job's thread one that is given up meanwhile may be deleted meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if number > through:
                    path = os.path.join(self.directory, full_name(number))
                    waiting.append((number, os.stat(path).st_size))
        return waiting

    def _look(self) -> list[tuple[int, int]]:
        """Return what waits, once gaps are noted and the queue is not longer than it may be."""
        waiting = self._waiting()
        if waiting and self._state.through and waiting[0][0] > self._state.through + 1:
            self._on_gap(self._state.give_up(waiting[0][0] - 1))
        size = sum(size for _, size in waiting)
        full = size > self._options.queue_max
        if full and not self._was_full:
            logger.warning(
                "too many log files wait for the archive",
                extra={"fields": {"files": len(waiting), "bytes": size}},
            )
        self._was_full = full
        if full and self._options.on_queue_full == "gap":
            while size > self._options.queue_max:
                last, freed = waiting.pop(0)
                size -= freed
            self._on_gap(self._state.give_up(last))
        self._measure(waiting)
        return waiting

    def _on_gap(self, gap: Gap) -> None:
        count = gap.last - gap.first + 1
        self.sweeper.telemetry.add('archive_segments_total{result="gap"}', count)
        logger.error(
            "the archive has a gap: log files %d to %d; make a full backup", gap.first, gap.last
        )

    def _measure(self, waiting: list[tuple[int, int]]) -> None:
        telemetry = self.sweeper.telemetry
        telemetry.set("archive_queue_segments", len(waiting))
        telemetry.set("archive_queue_bytes", sum(size for _, size in waiting))
        telemetry.set("archive_gap_active", int(self._is_on and bool(self._state.gaps)))
        telemetry.set("archive_queue_full", int(self._was_full))
        if self._state.last_success is not None:
            moment = self._state.last_success / 1_000_000_000
            telemetry.set("archive_last_success_timestamp_seconds", moment)

    # The job

    def _start(self) -> Job:
        options, target = self._options, self._target
        return self.sweeper.jobs.start(
            KIND, LANE, lambda task: self._archive(options, target, task), self._ended
        )

    def _archive(self, options: Options, target: str, task: Task) -> dict[str, Any]:
        """Copy what waits; runs in the job's thread."""
        files = size = 0
        copier = self._prepared(options)
        while self._state.target == target and (waiting := self._waiting()):
            number, file_size = waiting[0]
            total = 2 * (size + sum(size for _, size in waiting))
            self._copy(copier, number, Progress(task, 2 * size, total))
            files, size = files + 1, size + file_size
            task.advance(2 * size / total)
        return {"files": files, "bytes": size}

    def _prepared(self, options: Options) -> Copier:
        """Return what copies as the options say."""
        began = time.monotonic()
        if options.command:
            return CommandCopier(options.command, options.verify_command, options.timeout)
        try:
            store = open_store(options.target)
            self._tell_gaps(store)
        except MeterdError as error:
            seconds = time.monotonic() - began
            self._outcomes.append(Outcome(self._state.through + 1, "failed", seconds, str(error)))
            raise
        return StoreCopier(store, options.verify == "content")

    def _copy(self, copier: Copier, number: int, progress: Progress) -> None:
        """Copy one file; what became of it is told to the actor's loop."""
        began = time.monotonic()
        path = os.path.join(self.directory, full_name(number))
        try:
            check_log_file(path)
            result = copier.copy(path, f"{self._prefix}/{full_name(number)}", progress.add)
        except MeterdError as error:
            failed = error.result if isinstance(error, ArchiveFailed) else "failed"
            seconds = time.monotonic() - began
            self._outcomes.append(Outcome(number, failed, seconds, error.message))
            raise
        self._state.stored(number, time.time_ns())
        self._outcomes.append(Outcome(number, result, time.monotonic() - began))

    def _tell_gaps(self, store: ObjectStore) -> None:
        """Let the archive say itself what it lacks."""
        for gap in self._state.gaps:
            if not gap.told:
                name = f"{self._prefix}/gap-{gap.first:020d}-{gap.last:020d}"
                text = json.dumps({"first": gap.first, "last": gap.last, "time": time.time_ns()})
                with contextlib.suppress(Exists):
                    store.put(name, io.BytesIO(text.encode()))
                self._state.told(gap)

    def _take_outcomes(self) -> None:
        telemetry = self.sweeper.telemetry
        while self._outcomes:
            outcome = self._outcomes.popleft()
            telemetry.add(f'archive_segments_total{{result="{outcome.result}"}}')
            telemetry.observe("archive_duration_seconds", outcome.seconds)
            if outcome.message:
                self._last_failure = {
                    "time": time.time_ns(),
                    "number": outcome.number,
                    "result": outcome.result,
                    "message": outcome.message,
                }
                telemetry.set("archive_last_failure_timestamp_seconds", time.time())

    def _ended(self, job: Job) -> None:
        """The job has ended, in the actor's loop."""
        now = time.monotonic()
        if job.state == "done":
            self._failures, self._retry_at = 0, 0.0
        else:
            self._failures += 1
            delay = min(RETRY_SECONDS_MAX, 2.0 ** min(self._failures - 1, 20))
            self._retry_at = now + (RETRY_SECONDS_MAX if job.state == "cancelled" else delay)
        self.due = 0.0


class Progress:
    """How much of a job is done, in bytes copied and bytes read back."""

    def __init__(self, task: Task, done: int, total: int) -> None:
        self._task = task
        self._done = done
        self._total = total

    def add(self, size: int) -> None:
        """So many bytes more are done.  Raises Cancelled."""
        self._done += size
        self._task.advance(self._done / self._total if self._total else 0.0)
