"""Merges small segments into large ones, in the background and when an operator asks.

What to merge decides `core/segments/compaction_plan.py`; a job does one merge after another, at the
lowest priority of the processor and within a limit of bytes a second; when many segments wait, both
rise with their number, so that it keeps up with whatever comes in.  A merge that ends early leaves
the parts as they were.  Merged parts are deleted by the retention, when nobody copies them any
more.

A usual run merges neighbours when there are enough; once a day, and when an operator asks, two are
enough, and a segment that holds rows of erased accounts is written again without them; an
aggressive one merges whatever fits.  Every merge leaves such rows out.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.actors.backups.reading import Pace
from meterd.actors.files import totals_files
from meterd.actors.files.mapped import JustDeleted
from meterd.actors.files.segment_files import Segment, SegmentFiles
from meterd.actors.housekeeping.disk_watch import limits_of, space_of
from meterd.actors.housekeeping.jobs import Job, Task
from meterd.actors.housekeeping.segment_merger import Merged, SegmentMerger
from meterd.actors.housekeeping.service import Service
from meterd.actors.housekeeping.urgency import nice_of, set_nice
from meterd.core.segments import compaction_plan
from meterd.core.segments.compaction_plan import Candidate, Effort, Rules
from meterd.core.segments.erased_runs import holds_erased
from meterd.core.state.erasures import Erasures
from meterd.protocol.errors import Corrupt, DiskFull, DiskStop
from meterd.protocol.segment_format import SegmentName

if TYPE_CHECKING:
    from meterd.actors.housekeeping.log_retention import LogRetention
    from meterd.actors.housekeeping.totals import Totals
    from meterd.actors.retention_sweeper import RetentionSweeper

KIND, LANE = "compact", "compaction"
LOWEST_PRIORITY = 19
# When more segments wait, merging takes more of the machine, the more the more wait.
BACKLOG_MAX = 32
# While a job runs, look so often what it has done.
LOOK_SECONDS = 0.2
# Segments that could not be merged are left alone for so long, unless an operator asks.
AVOID_SECONDS = 3_600.0
STEPS_A_SECOND = 10
# A merge takes as much space as its parts, and a little more for a worse fit.
ROOM_RATIO = 1.1
logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """What a job is to do."""

    effort: Effort
    erasures: Erasures | None
    avoided: frozenset[SegmentName]


class Compaction(Service):
    """See the module."""

    requests = ("compact", "compact_status")

    def __init__(self, sweeper: RetentionSweeper, retention: LogRetention, totals: Totals) -> None:
        super().__init__(sweeper)
        self._retention = retention
        self._totals = totals
        self._merger = SegmentMerger(self.directory)
        self._files = SegmentFiles(self.directory)  # for the job's thread
        self._merged: deque[Merged] = deque()  # from the job's thread
        self._failed: deque[Sequence[SegmentName]] = deque()  # from it, too
        self._avoid: dict[SegmentName, float] = {}  # until when, monotonic seconds
        self._efforts: dict[int, Effort] = {}  # of jobs that have not ended
        self._pending = 0  # segments that waited when they were counted last
        self._count_due = 0.0
        self._last: dict[str, Any] | None = None  # the job that ended last
        now = time.monotonic()
        self._thorough_due = now + sweeper.options.compaction.interval
        self.due = now + sweeper.options.compaction.merge_interval

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Raises DiskStop, Busy."""
        if kind == "compact_status":
            return self._status()
        effort = Effort.AGGRESSIVE if fields["aggressive"] else Effort.ASKED
        for job in self.sweeper.jobs.unfinished(KIND):
            if self._efforts[job.id] is effort:
                return {"job": job.to_map()}
        if not has_room(self.sweeper, 0):
            raise DiskStop("merging needs space beyond disk.stop_free")
        return {"job": self._start(effort, frozenset()).to_map()}

    def turn(self, now: float) -> None:
        """Begin a run when there is something to merge, or look how far one is."""
        options, telemetry = self.sweeper.options.compaction, self.sweeper.telemetry
        self._take_note(now)
        running = self.sweeper.jobs.active(KIND)
        telemetry.set("compaction_running", int(running is not None))
        telemetry.set("compaction_progress_ratio", running.task.progress if running else 0.0)
        if running is not None and now < self._count_due:
            self.due = now + LOOK_SECONDS
            return
        self._count_due = now + options.merge_interval
        self.due = now + (options.merge_interval if running is None else LOOK_SECONDS)
        self.sweeper.files.refresh()
        avoided = frozenset(name for name, until in self._avoid.items() if until > now)
        found = self._candidates(self.sweeper.files.segments, avoided)
        self._pending = compaction_plan.pending(found, self._rules())
        telemetry.set("compaction_pending_files", self._pending)
        if running is not None:
            return
        effort = Effort.ASKED if now >= self._thorough_due else Effort.USUAL
        if not options.enabled or self.sweeper.holds_still:
            return
        erased = False
        if now >= self._thorough_due:
            self._thorough_due = now + options.interval
            erased = bool(self._totals.erasures)  # segments made since may hold such rows, too
        parts = compaction_plan.next_merge(found, self._rules(), effort)
        if (parts or erased) and has_room(self.sweeper, sum(one.size for one in parts)):
            self._start(effort, avoided)

    def _rules(self) -> Rules:
        options = self.sweeper.options.compaction
        return Rules(options.min_files, options.target_file)

    def _candidates(
        self, files: SegmentFiles, avoided: frozenset[SegmentName] = frozenset()
    ) -> list[Candidate]:
        """Return the segments as the plan looks at them."""
        horizon = self._retention.horizon
        return [
            Candidate(
                one.name,
                one.size,
                one.header.ordinal_count,
                one.name not in avoided and not _is_past(one, horizon),
            )
            for one in files.chosen(1 << 62, totals_files.through(self.directory))
        ]

    def _take_note(self, now: float) -> None:
        """Tell and count what the job has done since the last look."""
        telemetry = self.sweeper.telemetry
        while self._merged:
            merged = self._merged.popleft()
            telemetry.add("compaction_files_merged_total", merged.parts)
            telemetry.add("compaction_bytes_read_total", merged.read)
            telemetry.add("compaction_bytes_written_total", merged.written)
            telemetry.add("compaction_events_left_out_total", merged.erased)
            self.sweeper.files.refresh()
            self.sweeper.send("query", [b"removed"])
        while self._failed:
            for name in self._failed.popleft():
                self._avoid[name] = now + AVOID_SECONDS
        self._avoid = {name: until for name, until in self._avoid.items() if until > now}

    # The job

    def _start(self, effort: Effort, avoided: frozenset[SegmentName]) -> Job:
        run = Run(effort, self._totals.erasures, avoided)
        job = self.sweeper.jobs.start(
            KIND, LANE, lambda task: self._work(task, run), self._ended, own_priority=True
        )
        self._efforts[job.id] = effort
        self.due = 0.0
        return job

    def _work(self, task: Task, run: Run) -> dict[str, Any]:
        """Do all merges that are due now, in the job's thread."""
        pending = self._pending
        set_nice(nice_of(pending, BACKLOG_MAX) if pending > BACKLOG_MAX else LOWEST_PRIORITY)
        self._files.refresh(os.listdir(self.directory))
        candidates = self._candidates(self._files, run.avoided)
        plan = compaction_plan.whole_plan(candidates, self._rules(), run.effort)
        if run.effort is not Effort.USUAL and run.erasures:
            plan += self._to_write_again(candidates, plan, run.erasures)
        total = sum(one.size for parts in plan for one in parts)
        before, made = 0, []
        for parts in plan:
            size = sum(one.size for one in parts)
            check_room(self.sweeper, size)
            pace = self._pace(task, before / total, size / total)
            try:
                made.append(self._merger.merge([one.name for one in parts], run.erasures, pace))
            except FileNotFoundError:
                break  # the retention was faster; the next run looks again
            except Corrupt:
                self._failed.append([one.name for one in parts])
                raise
            self._merged.append(made[-1])
            before += size
        return {
            "merges": len(made),
            "files_merged": sum(one.parts for one in made),
            "events": sum(one.rows for one in made),
            "events_left_out": sum(one.erased for one in made),
            "bytes_read": sum(one.read for one in made),
            "bytes_written": sum(one.written for one in made),
        }

    def _to_write_again(
        self,
        candidates: Sequence[Candidate],
        plan: Sequence[Sequence[Candidate]],
        erasures: Erasures,
    ) -> list[Sequence[Candidate]]:
        """Return segments, each alone, that no merge takes and that hold rows of erased accounts.

        Raises Corrupt.
        """
        taken = {one.name for parts in plan for one in parts}
        alone = {one.name: one for one in candidates if one.is_free and one.name not in taken}
        found: list[Sequence[Candidate]] = []
        for segment in self._files.complete():
            if segment.name not in alone:
                continue
            try:
                if holds_erased(self._files.open(segment), erasures):
                    found.append([alone[segment.name]])
            except JustDeleted:
                continue  # the retention was faster
            except Corrupt:
                self._failed.append([segment.name])
                raise
        return found

    def _pace(self, task: Task, before: float, share: float) -> Any:
        """Return what a merge, a share of the whole job, tells how far it is."""
        done = 0.0

        def step(size: int) -> None:
            task.advance(before + share * done)
            if self.sweeper.holds_still:
                raise DiskFull("the disk is full; merging would make it fuller")

        def limit() -> int:
            io_limit = self.sweeper.options.compaction.io_limit
            return io_limit * max(self._pending, BACKLOG_MAX) // BACKLOG_MAX

        limited = Pace(limit, step)

        def pace(now_done: float, moved: int) -> None:
            nonlocal done
            done = now_done
            while moved > 0:  # in steps so short that the job can be cancelled between them
                step_size = min(moved, limit() // STEPS_A_SECOND)
                limited.took(step_size)
                moved -= step_size

        return pace

    def _ended(self, job: Job) -> None:
        telemetry = self.sweeper.telemetry
        self._efforts.pop(job.id)
        self._last = job.to_map()
        self._take_note(time.monotonic())
        telemetry.add(f'compaction_runs_total{{result="{job.state}"}}')
        telemetry.observe("compaction_duration_seconds", time.monotonic() - job.began)
        if job.state == "done":
            telemetry.set("compaction_last_success_timestamp_seconds", time.time())
        elif job.error is not None:
            telemetry.add("compaction_errors_total")
            logger.error("segments cannot be merged: %s", job.error["message"])
        # A run that was cancelled or failed is not begun again at once.
        self.due = time.monotonic() + self.sweeper.options.compaction.merge_interval

    def _status(self) -> dict[str, Any]:
        self.sweeper.files.refresh()
        segments = self.sweeper.files.segments
        chosen, complete = segments.chosen(1 << 62), segments.complete()
        found = self._candidates(segments)
        running = self.sweeper.jobs.active(KIND)
        old = [one for one in complete if one not in chosen]
        return {
            "enabled": self.sweeper.options.compaction.enabled,
            "segments": len(chosen),
            "bytes": sum(one.size for one in chosen),
            "events": sum(one.header.row_count for one in chosen),
            "pending": compaction_plan.pending(found, self._rules()),
            "superseded": len(old),
            "superseded_bytes": sum(one.size for one in old),
            "avoided": len(self._avoid),
            "job": running.to_map() if running else None,
            "last": self._last,
            "next_run_seconds": round(max(0.0, self.due - time.monotonic()), 3),
        }


def _is_past(segment: Segment, horizon: int) -> bool:
    """Whether all of a segment has expired, so that it goes whole."""
    return segment.header.row_count > 0 and segment.header.max_timestamp < horizon


def room(sweeper: RetentionSweeper) -> int:
    """Return how many bytes may be written before events are refused.  Raises OSError."""
    space = space_of(sweeper.options.node.data_dir)
    return space.free - limits_of(sweeper.options.disk).stop_at(space.size)


def has_room(sweeper: RetentionSweeper, size: int) -> bool:
    """Whether segments of so many bytes can be merged without harm."""
    with suppress(OSError):
        return room(sweeper) >= ROOM_RATIO * size
    return False


def check_room(sweeper: RetentionSweeper, size: int) -> None:
    """Raises DiskFull when there is no room to merge segments of so many bytes."""
    if not has_room(sweeper, size):
        raise DiskFull(f"merging needs {int(ROOM_RATIO * size)} bytes beyond disk.stop_free")
