"""Deletes what is past the retention, and log files that nothing needs any more.

The usage actor tells the horizon and which log files the kept checkpoints need (`retention`);
until it has, nothing goes.  What else holds a log file is gathered in `log_holding.py`.

A segment's log files go before the segment, so that nobody makes it again, and its `.idx` goes
first of its files, because without it the others are only litter.  Before that its rows are folded
into a totals file (`totals.py`) by a job: the segment goes when that is done.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.files import totals_files
from meterd.actors.files.disk import sync_directory
from meterd.actors.files.segment_files import Segment
from meterd.actors.housekeeping.log_holding import SECOND_NS, Assessment, LogHolding
from meterd.actors.housekeeping.service import Service
from meterd.actors.starting import restored
from meterd.core.housekeeping import retention
from meterd.core.housekeeping.follower_files import NOBODY_BEHIND
from meterd.core.housekeeping.log_holds import LogFile
from meterd.core.housekeeping.retention import Kept
from meterd.protocol.errors import Starting

if TYPE_CHECKING:
    from meterd.actors.housekeeping.jobs import Job
    from meterd.actors.housekeeping.segments import Segments
    from meterd.actors.housekeeping.totals import Totals
    from meterd.actors.retention_sweeper import RetentionSweeper

# How often to look while there are more log files than are wished for.
CROWDED_SECONDS = 60.0
STARTING_RETRY_MS = 200
# A question that began before segments were merged may still read the parts.
QUESTION_SECONDS = 60.0
NO_HORIZON = -(2**63)
# The order in which the files of segments go.  Each step is durable before the next: an index that
# came back without the others would pass for damage.
DELETE_ORDER = ((".idx",), (".seg", ".props"))

logger = logging.getLogger(__name__)


class LogRetention(Service):
    """See the module."""

    messages = (b"retention", b"followers")
    requests = ("retention_show", "retention_run")

    def __init__(
        self, sweeper: RetentionSweeper, segments: Segments, holding: LogHolding, totals: Totals
    ) -> None:
        super().__init__(sweeper)
        self._totals = totals
        self._segments = segments
        self._holding = holding
        self._told: dict[str, Any] | None = None  # by the usage actor
        self._kept: list[Kept] = []  # the segments, when last looked; and the expired ones
        self._expired: list[Kept] = []
        holding.covered = self._covered

    def handle(self, frames: list[Any]) -> None:
        if frames[0] == b"followers":
            first = int.from_bytes(frames[1], "little")
            self._holding.replicas_from = None if first == NOBODY_BEHIND else first
            return
        before, self._told = self._told, msgpack.unpackb(frames[1])
        self._holding.first_needed = self._told["first_needed"]
        if before is None or before["horizon"] != self._told["horizon"]:
            self.due = 0.0

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Raises Starting while the usage actor has not told what may go."""
        if self._told is None:
            raise Starting(retry_after_ms=STARTING_RETRY_MS)
        if kind == "retention_show":
            return self._show(self._told)
        return self._run(self._told, fields["dry_run"])

    def turn(self, now: float) -> None:
        assessment = self.assess()
        gone = self._sweep(assessment)
        self._delete_superseded()
        if gone["files"] or gone["segments"]:
            logger.info("deleted log files and segments", extra={"fields": gone})
        crowded = self._holding.is_crowded(assessment, gone["files"])
        interval = self.sweeper.options.retention.sweep_interval
        self.due = now + (min(interval, CROWDED_SECONDS) if crowded else interval)
        if gone["files"] == retention.FILES_PER_SWEEP_MAX:
            self.due = 0.0

    def assess(self) -> Assessment:
        """Look at all full log files, and what holds each."""
        files = self.sweeper.files
        files.refresh()
        for number in files.waiting():
            if not self._segments.waits(number):
                self._segments.without_events(number)
        through = self._totals.through
        chosen = [*files.segments.chosen(through + 1), *files.segments.chosen(1 << 62, through)]
        self._kept = [_kept(one) for one in chosen]
        oldest = self._oldest_event()
        if oldest is not None:
            moment = oldest / SECOND_NS
            self.sweeper.telemetry.set("retention_oldest_event_timestamp_seconds", moment)
        self._expired = retention.expired_segments(self._kept, self.horizon, through)
        last = self._expired[-1].name.last if self._expired else 0
        return self._holding.assess([number for number in files.full_numbers if number <= last])

    @property
    def horizon(self) -> int:
        """Before which moment (UTC ns) events have expired."""
        return NO_HORIZON if self._told is None or self.held_until else int(self._told["horizon"])

    def _covered(self) -> dict[int, int]:
        """Return since when (UTC ns) each log file's events are in a segment too."""
        since: dict[int, int] = {}
        for one in self.sweeper.files.segments.complete():
            for number in range(one.name.first, one.name.last + 1):
                since[number] = min(one.made_at, since.get(number, one.made_at))
        return since

    def _oldest_event(self) -> int | None:
        segments = self.sweeper.files.segments.chosen(1 << 62)
        stored = [one.header.min_timestamp for one in segments if one.header.row_count]
        return min(stored, default=None)

    @property
    def held_until(self) -> int:
        """Until when (UTC ns) nothing expires, after a restore; 0: no such hold."""
        grace = self.sweeper.options.retention.grace_after_restore
        until = restored.held_until(self.directory, grace)
        return until if time.time_ns() < until else 0

    # Deleting

    def _sweep(self, assessment: Assessment) -> dict[str, Any]:
        """Delete files that nothing holds; return what went, and segments that will.

        Nothing goes when what outlives the events cannot be kept.
        """
        telemetry = self.sweeper.telemetry
        files = assessment.free[: retention.FILES_PER_SWEEP_MAX]
        dropped = self._droppable(assessment, files)
        if self._totals.is_folding:
            dropped = []  # they go when that is done
        elif dropped and not self._fold(dropped):
            files, dropped = [], []
        if files:
            self._holding.delete(files, assessment.expired)
        if self._told is not None:
            telemetry.add('retention_runs_total{result="ok"}')
            telemetry.set("retention_last_success_timestamp_seconds", time.time())
        return self._extent(files, dropped)

    def _droppable(self, assessment: Assessment, files: Sequence[LogFile]) -> list[Kept]:
        """Return the expired segments that nothing holds once these log files are gone."""
        going = {file.number for file in files}
        left = [file.number for file in assessment.files if file.number not in going]
        needed = 0 if self._told is None else self._told["first_needed"]
        pins = [pin.first_file for pin in self.sweeper.pins.active]
        return retention.droppable_segments(self._expired, needed, left, pins)

    def _parts_of(self, merged: Sequence[Kept]) -> list[Kept]:
        """Return what was merged into segments and is still there: it goes first, or it counted."""
        return [
            _kept(one)
            for one in self.sweeper.files.segments.complete()
            if any(two.name.supersedes(one.name) for two in merged)
        ]

    def delete_segments(self, segments: Iterable[Kept]) -> int:
        """Delete segments, durably; return how many bytes they held."""
        freed = 0
        names = [one.name for one in segments]
        for suffixes in DELETE_ORDER:
            for file in (name.file(suffix) for name in names for suffix in suffixes):
                path = os.path.join(self.directory, file)
                freed += os.stat(path).st_size
                os.unlink(path)
            sync_directory(self.directory)
        self.sweeper.files.refresh()
        self.sweeper.send("query", [b"removed"])
        return freed

    def _delete_superseded(self) -> None:
        """Delete segments that were merged, when nobody copies or asks them any more.

        Nor while some are folded: when one of them alone has been, the merged one stands for
        nothing, and the others are all there is of their events.
        """
        if self._totals.is_folding:
            return
        grace = self.sweeper.options.storage.copy_grace
        if self.sweeper.is_short_of_space:
            grace = 0.0
        since = time.time_ns() - int(max(grace, QUESTION_SECONDS) * SECOND_NS)
        pins = [pin.first_file for pin in self.sweeper.pins.active]
        kept = [_kept(one) for one in self.sweeper.files.segments.complete()]
        # One that was merged while a part of it was folded stands for nothing.  What was folded is
        # told by the names of totals files, also of those that are damaged.
        through = totals_files.through(self.directory)
        half_folded = [one for one in kept if one.name.first <= through < one.name.last]
        kept = [one for one in kept if one not in half_folded]
        superseded = retention.superseded_segments(kept, since, pins)
        if not pins:
            superseded += [one for one in half_folded if self._is_covered(through, one.name.last)]
        if superseded:
            self.delete_segments(superseded)

    def _is_covered(self, through: int, last: int) -> bool:
        """Do segments that begin behind log file `through` cover all up to `last`?"""
        reached = through
        for one in self.sweeper.files.segments.chosen(1 << 62, through):
            if one.name.first > reached + 1:
                break
            reached = one.name.last
        return reached >= last

    def _fold(self, segments: Sequence[Kept]) -> bool:
        """Begin to fold expired segments, which go then.  False: they and their log files stay."""
        registry = self.sweeper.registry
        # Without the registry nobody could say what the rows count for.
        return registry.read() and self._totals.fold(
            [one.name for one in segments], registry.registry, lambda job: self._folded(job)
        )

    def _folded(self, job: Job) -> None:
        """Segments were folded, or some: those covered by totals files go, if nothing holds them.

        Whether anything does is asked again, because the job has taken a while.
        """
        if job.state != "done":
            logger.error("segments past the retention stay: their totals could not be kept")
        assessment = self.assess()
        through = self._totals.through
        dropped = [one for one in self._droppable(assessment, []) if one.name.last <= through]
        if dropped:
            freed = self.delete_segments([*self._parts_of(dropped), *dropped])
            self.sweeper.telemetry.add("retention_segments_deleted_total", len(dropped))
            self.sweeper.telemetry.add("retention_bytes_freed_total", freed)
            self.sweeper.send("usage", [b"save"])
            fields = self._extent([], dropped) | {"freed": freed}
            logger.info("deleted segments past the retention", extra={"fields": fields})
            self.due = 0.0  # for what follows

    # What operators ask

    def _show(self, told: dict[str, Any]) -> dict[str, Any]:
        assessment = self.assess()
        expired = [file for file in assessment.files if file.number in assessment.expired]
        return {
            "days": told["days"],
            "origin": "command" if told["set"] else "option",
            "horizon": told["horizon"],
            "held_until": self.held_until or None,
            "clock": told.get("clock"),
            "oldest_event": self._oldest_event(),
            "files": len(assessment.files),
            "bytes": sum(file.size for file in assessment.files),
            "expired": self._extent(expired, self._expired) | {"held": assessment.blocked()},
            "next_run_seconds": round(max(0.0, self.due - time.monotonic()), 3),
        }

    def _run(self, told: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        assessment = self.assess()
        free = assessment.free
        would = self._extent(free, self._droppable(assessment, free))
        gone = would if dry_run else self._sweep(assessment)
        if gone["files"] < len(free):
            self.due = 0.0  # the rest follows at once
        logger.info("retention run", extra={"fields": gone | {"dry_run": dry_run}})
        return {
            "dry_run": dry_run,
            "days": told["days"],
            "horizon": told["horizon"],
            **gone,
            "remaining": len(free) - gone["files"],
            "held": assessment.blocked(),
        }

    def _extent(self, files: Sequence[LogFile], segments: Sequence[Kept]) -> dict[str, Any]:
        """Return how much some log files and segments are; events go for good with the latter."""
        return {
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "events": sum(one.rows for one in segments),
            "segments": len(segments),
            "first": files[0].number if files else None,
            "last": files[-1].number if files else None,
        }


def _kept(segment: Segment) -> Kept:
    header = segment.header
    return Kept(segment.name, header.max_timestamp, segment.made_at, header.row_count)
