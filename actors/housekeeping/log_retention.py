"""Deletes log files: those past the retention, and those that nothing needs any more.

What holds a file is decided in `core/log_holds.py`; here its facts are gathered and the files
deleted.  The usage actor tells the horizon and which files the kept checkpoints need (`retention`);
until it has, nothing goes.  A log file goes before its index, because an index without its file is
only litter, but a file without its index cannot be read.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.disk import sync_directory
from meterd.actors.housekeeping.pins import Pins
from meterd.actors.housekeeping.service import Service
from meterd.actors.log_files import index_name
from meterd.actors.members_file import save_members
from meterd.core import log_holds, retention
from meterd.core.log_holds import Facts, LogFile, Rules
from meterd.protocol.errors import Starting, StorageError
from meterd.protocol.index_format import IndexHeader
from meterd.protocol.log_format import full_name, number_of

if TYPE_CHECKING:
    from meterd.actors.housekeeping.indexes import Indexes
    from meterd.actors.retention_sweeper import RetentionSweeper

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
# How often to look while there are more log files than are wished for.
CROWDED_SECONDS = 60.0
STARTING_RETRY_MS = 200
NO_HORIZON = -(2**63)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assessment:
    """The full log files there are, and what holds each."""

    files: Sequence[LogFile]
    held: Mapping[int, tuple[str, ...]]
    headers: Mapping[int, IndexHeader]
    expired: Sequence[int]  # files all of whose events are past the retention

    @property
    def free(self) -> list[LogFile]:
        """The oldest files, which nothing holds."""
        return list(takewhile(lambda file: not self.held[file.number], self.files))

    def extent(self, files: Sequence[LogFile]) -> dict[str, Any]:
        """Return how much some files are; events are those that go for good with them."""
        expired = set(self.expired)
        gone = [file.number for file in files if file.number in expired]
        return {
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "events": sum(self.headers[number].stored_count for number in gone),
            "first": files[0].number if files else None,
            "last": files[-1].number if files else None,
        }

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes that each holder holds, alone or with others."""
        held = dict.fromkeys(log_holds.HOLDERS, 0)
        for file in self.files:
            for holder in self.held[file.number]:
                held[holder] += file.size
        return held

    def blocked(self) -> Counter[str]:
        """Return how many files past the retention each holder holds."""
        return Counter(holder for number in self.expired for holder in self.held[number])


class LogRetention(Service):
    """See the module."""

    messages = (b"retention",)
    requests = ("retention_show", "retention_run")

    def __init__(self, sweeper: RetentionSweeper, indexes: Indexes, pins: Pins) -> None:
        super().__init__(sweeper)
        self._indexes = indexes
        self._pins = pins
        self._told: dict[str, Any] | None = None  # by the usage actor
        self._crowded_by: tuple[str, ...] = ()
        # Files whose events a complete segment holds too, and since when (UTC ns).
        self.covered: Callable[[], Mapping[int, int]] = dict
        # The newest file of which a copy is safe; None: there is no archive.
        self.archived_through: Callable[[], int | None] = lambda: None
        self._remove_litter()

    def handle(self, frames: list[Any]) -> None:
        before, self._told = self._told, msgpack.unpackb(frames[1])
        if before is None or before["horizon"] != self._told["horizon"]:
            self.due = 0.0

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Raises Starting while the usage actor has not told what may go."""
        if self._told is None:
            raise Starting(retry_after_ms=STARTING_RETRY_MS)
        if kind == "retention_show":
            return self._show()
        return self._run(fields["dry_run"])

    def turn(self, now: float) -> None:
        assessment = self.assess()
        gone = self._sweep(assessment)
        if gone["files"]:
            logger.info("log files deleted", extra={"fields": gone})
        left = len(assessment.files) - gone["files"]
        self._on_crowd(assessment, left)
        interval = self.sweeper.options.retention.sweep_interval
        crowded = left > self.sweeper.options.wal.max_segments
        self.due = now + (min(interval, CROWDED_SECONDS) if crowded else interval)
        if gone["files"] == retention.FILES_PER_SWEEP_MAX:
            self.due = 0.0

    # What there is, and what holds it

    def assess(self) -> Assessment:
        """Look at all full log files."""
        files, told = self.sweeper.files, self._told
        files.refresh()
        headers = {}
        for number in files.full_numbers:
            header = files.header(number)
            if header is None and not self._indexes.waits(number):
                self._indexes.without_events(number)
                header = files.header(number)
            if header is not None:
                headers[number] = header
        newest = {number: header.max_timestamp for number, header in headers.items()}
        horizon = NO_HORIZON if told is None else told["horizon"]
        expired = retention.expired_files(files.full_numbers, newest, horizon)
        found = [self._log_file(number) for number in files.full_numbers]
        facts = Facts(
            now=time.time_ns(),
            first_needed=0 if told is None else told["first_needed"],
            covered=self.covered(),
            archived_through=self.archived_through(),
            pins=[pin.first_file for pin in self._pins.active],
            expired=expired,
        )
        assessment = Assessment(
            found, log_holds.holders(found, facts, self._rules()), headers, expired
        )
        self._measure(assessment)
        return assessment

    def _log_file(self, number: int) -> LogFile:
        found = os.stat(os.path.join(self.directory, full_name(number)))
        return LogFile(number, found.st_size, found.st_mtime_ns)

    def _rules(self) -> Rules:
        wal, storage = self.sweeper.options.wal, self.sweeper.options.storage
        return Rules(
            copy_grace=int(storage.copy_grace * SECOND_NS),
            keep=wal.retention_days * DAY_NS,
            files_max=wal.max_segments,
            files_min=wal.min_segments,
        )

    def _measure(self, assessment: Assessment) -> None:
        telemetry = self.sweeper.telemetry
        telemetry.set("wal_size_bytes", sum(file.size for file in assessment.files))
        for holder, size in assessment.held_bytes().items():
            telemetry.set(f'wal_held_bytes{{holder="{holder}"}}', size)
        stored = [header for header in assessment.headers.values() if header.stored_count]
        if stored:
            oldest = min(header.min_timestamp for header in stored)
            telemetry.set("retention_oldest_event_timestamp_seconds", oldest / SECOND_NS)

    def _on_crowd(self, assessment: Assessment, left: int) -> None:
        """More log files are kept than is wished for: see that those who hold them go on."""
        needed = ("checkpoint", "archive", "pin")
        holders: tuple[str, ...] = ()
        if assessment.files and left > self.sweeper.options.wal.max_segments:
            oldest = assessment.files[len(assessment.files) - left]
            holders = tuple(one for one in assessment.held[oldest.number] if one in needed)
        if "checkpoint" in holders:
            self.sweeper.send("usage", [b"save"])
        if holders != self._crowded_by:
            self._crowded_by = holders
            if holders:
                fields = {"files": left, "held_by": ", ".join(holders)}
                logger.warning("more log files are kept than wished for", extra={"fields": fields})

    # Deleting

    def _sweep(self, assessment: Assessment) -> dict[str, Any]:
        """Delete files that nothing holds; return what went: files, bytes, events, numbers.

        Nothing goes when what outlives the events cannot be kept.
        """
        telemetry = self.sweeper.telemetry
        files = assessment.free[: retention.FILES_PER_SWEEP_MAX]
        expired = [file.number for file in files if file.number in set(assessment.expired)]
        if expired and not self._keep_members(expired):
            files = []
        if files:
            self._unlink([file.number for file in files])
            self._count(files, set(expired))
        if files and expired:
            self.sweeper.send("usage", [b"save"])
        if self._told is not None:
            telemetry.add('retention_runs_total{result="ok"}')
            telemetry.set("retention_last_success_timestamp_seconds", time.time())
        return assessment.extent(files)

    def _unlink(self, numbers: list[int]) -> None:
        for number in numbers:
            os.unlink(os.path.join(self.directory, full_name(number)))
        sync_directory(self.directory)
        for number in numbers:
            Path(self.directory, index_name(number)).unlink(missing_ok=True)
        self.sweeper.files.refresh()
        self.sweeper.send("query", [b"removed", msgpack.packb({"files": numbers})])

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

    def _count(self, files: Sequence[LogFile], expired: set[int]) -> None:
        telemetry = self.sweeper.telemetry
        for file in files:
            if file.number in expired:
                telemetry.add("retention_segments_deleted_total")
                telemetry.add("retention_bytes_freed_total", file.size)
            reason = "expired" if file.number in expired else "covered"
            telemetry.add(f'wal_segments_deleted_total{{reason="{reason}"}}')

    def _remove_litter(self) -> None:
        """Delete indexes whose log file is gone: the node ended between the two."""
        names = set(os.listdir(self.directory))
        for name in names:
            log_name = name.removesuffix(".idx") + ".log"
            if name.endswith(".idx") and number_of(log_name) and log_name not in names:
                os.unlink(os.path.join(self.directory, name))

    # What operators ask

    def _show(self) -> dict[str, Any]:
        assessment = self.assess()
        assert self._told is not None
        expired = [file for file in assessment.files if file.number in set(assessment.expired)]
        stored = [header for header in assessment.headers.values() if header.stored_count]
        wait = self.due - time.monotonic()
        return {
            "days": self._told["days"],
            "origin": "command" if self._told["set"] else "option",
            "horizon": self._told["horizon"],
            "oldest_event": min((header.min_timestamp for header in stored), default=None),
            "files": len(assessment.files),
            "bytes": sum(file.size for file in assessment.files),
            "expired": assessment.extent(expired) | {"held": dict(assessment.blocked())},
            "next_run_seconds": round(max(0.0, wait), 3),
        }

    def _run(self, dry_run: bool) -> dict[str, Any]:
        assessment = self.assess()
        assert self._told is not None
        free = assessment.free
        gone = assessment.extent(free) if dry_run else self._sweep(assessment)
        if gone["files"] < len(free):
            self.due = 0.0  # the rest follows at once
        logger.info("retention run", extra={"fields": gone | {"dry_run": dry_run}})
        return {
            "dry_run": dry_run,
            "days": self._told["days"],
            "horizon": self._told["horizon"],
            **gone,
            "remaining": len(free) - gone["files"],
            "held": dict(assessment.blocked()),
        }
