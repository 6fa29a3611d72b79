"""Deletes what is past the retention, and log files that nothing needs any more.

The usage actor tells the horizon and which log files the kept checkpoints need (`retention`);
until it has, nothing goes.  What else holds a file is gathered in `log_holding.py`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors import restored
from meterd.actors.housekeeping.log_holding import SECOND_NS, Assessment, LogHolding
from meterd.actors.housekeeping.service import Service
from meterd.actors.members_file import save_members
from meterd.core import retention
from meterd.core.log_holds import LogFile
from meterd.protocol.errors import Starting, StorageError
from meterd.protocol.index_format import IndexHeader
from meterd.protocol.log_format import number_of

if TYPE_CHECKING:
    from meterd.actors.housekeeping.indexes import Indexes
    from meterd.actors.retention_sweeper import RetentionSweeper

# How often to look while there are more log files than are wished for.
CROWDED_SECONDS = 60.0
STARTING_RETRY_MS = 200
NO_HORIZON = -(2**63)

logger = logging.getLogger(__name__)


class LogRetention(Service):
    """See the module."""

    messages = (b"retention",)
    requests = ("retention_show", "retention_run")

    def __init__(self, sweeper: RetentionSweeper, indexes: Indexes, holding: LogHolding) -> None:
        super().__init__(sweeper)
        self._indexes = indexes
        self._holding = holding
        self._told: dict[str, Any] | None = None  # by the usage actor
        self._headers: Mapping[int, IndexHeader] = {}  # of the full files, when last looked
        self._remove_litter()

    def handle(self, frames: list[Any]) -> None:
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
        if gone["files"]:
            logger.info("log files deleted", extra={"fields": gone})
        crowded = self._holding.is_crowded(assessment, gone["files"])
        interval = self.sweeper.options.retention.sweep_interval
        self.due = now + (min(interval, CROWDED_SECONDS) if crowded else interval)
        if gone["files"] == retention.FILES_PER_SWEEP_MAX:
            self.due = 0.0

    def assess(self) -> Assessment:
        """Look at all full log files, and what holds each."""
        files = self.sweeper.files
        files.refresh()
        headers = {}
        for number in files.full_numbers:
            header = files.header(number)
            if header is None and not self._indexes.waits(number):
                self._indexes.without_events(number)
                header = files.header(number)
            if header is not None:
                headers[number] = header
        self._headers = headers
        oldest = self._oldest_event()
        if oldest is not None:
            moment = oldest / SECOND_NS
            self.sweeper.telemetry.set("retention_oldest_event_timestamp_seconds", moment)
        newest = {number: header.max_timestamp for number, header in headers.items()}
        horizon = NO_HORIZON if self._told is None or self.held_until else self._told["horizon"]
        return self._holding.assess(retention.expired_files(files.full_numbers, newest, horizon))

    def _oldest_event(self) -> int | None:
        stored = [header for header in self._headers.values() if header.stored_count]
        return min((header.min_timestamp for header in stored), default=None)

    @property
    def held_until(self) -> int:
        """Until when (UTC ns) nothing expires, after a restore; 0: no such hold."""
        grace = self.sweeper.options.retention.grace_after_restore
        until = restored.held_until(self.directory, grace)
        return until if time.time_ns() < until else 0

    # Deleting

    def _sweep(self, assessment: Assessment) -> dict[str, Any]:
        """Delete files that nothing holds; return what went.

        Nothing goes when what outlives the events cannot be kept.
        """
        telemetry = self.sweeper.telemetry
        files = assessment.free[: retention.FILES_PER_SWEEP_MAX]
        expired = [file for file in files if file.number in assessment.expired]
        if expired and not self._keep_members([file.number for file in expired]):
            files, expired = [], []
        if files:
            self._holding.delete(files, assessment.expired)
        if expired:
            telemetry.add("retention_segments_deleted_total", len(expired))
            telemetry.add("retention_bytes_freed_total", sum(file.size for file in expired))
            self.sweeper.send("usage", [b"save"])
        if self._told is not None:
            telemetry.add('retention_runs_total{result="ok"}')
            telemetry.set("retention_last_success_timestamp_seconds", time.time())
        return self._extent(files, assessment)

    def _keep_members(self, numbers: list[int]) -> bool:
        """Keep what expired files say about members.  False: they must stay."""
        registry = self.sweeper.registry
        # Without the registry nobody could say which rows add members: then the files stay.
        if not registry.read():
            return False
        try:
            save_members(self.directory, self.sweeper.files, registry.registry, numbers)
        except StorageError as error:
            logger.error("no log file is deleted, because members cannot be kept: %s", error)
            return False
        return True

    def _remove_litter(self) -> None:
        """Delete indexes whose log file is gone: the node ended between the two."""
        names = set(os.listdir(self.directory))
        for name in names:
            log_name = name.removesuffix(".idx") + ".log"
            if name.endswith(".idx") and number_of(log_name) and log_name not in names:
                os.unlink(os.path.join(self.directory, name))

    # What operators ask

    def _show(self, told: dict[str, Any]) -> dict[str, Any]:
        assessment = self.assess()
        expired = [file for file in assessment.files if file.number in assessment.expired]
        return {
            "days": told["days"],
            "origin": "command" if told["set"] else "option",
            "horizon": told["horizon"],
            "held_until": self.held_until or None,
            "oldest_event": self._oldest_event(),
            "files": len(assessment.files),
            "bytes": sum(file.size for file in assessment.files),
            "expired": self._extent(expired, assessment) | {"held": assessment.blocked()},
            "next_run_seconds": round(max(0.0, self.due - time.monotonic()), 3),
        }

    def _run(self, told: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        assessment = self.assess()
        free = assessment.free
        gone = self._extent(free, assessment) if dry_run else self._sweep(assessment)
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

    def _extent(self, files: Sequence[LogFile], assessment: Assessment) -> dict[str, Any]:
        """Return how much some files are; events are those that go for good with them."""
        gone = [file.number for file in files if file.number in assessment.expired]
        return {
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "events": sum(self._headers[number].stored_count for number in gone),
            "first": files[0].number if files else None,
            "last": files[-1].number if files else None,
        }
