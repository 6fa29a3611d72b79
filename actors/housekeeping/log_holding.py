"""Gathers what holds each full log file, and deletes files.

The rule is `core/housekeeping/log_holds.py`.  Others say their part: the usage actor which file the
kept checkpoints need, the replication actor which file a follower needs, the archive through which
file there are copies, segments what they cover, and the pins.  Until the usage actor has spoken,
everything is held.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from meterd.actors.files.disk import sync_directory
from meterd.actors.housekeeping.pins import Pins
from meterd.core.housekeeping import log_holds
from meterd.core.housekeeping.log_holds import Facts, LogFile, Rules
from meterd.protocol.log_format import full_name

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
# Those who should go on when too many log files are kept; the others are the operator's wishes.
WAITED_FOR = ("checkpoint", "archive", "replica", "pin")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assessment:
    """The full log files there are, and what holds each."""

    files: Sequence[LogFile]
    held: Mapping[int, tuple[str, ...]]
    expired: Collection[int]  # files all of whose events are past the retention

    @property
    def free(self) -> list[LogFile]:
        """The oldest files, which nothing holds."""
        return list(takewhile(lambda file: not self.held[file.number], self.files))

    def by_holder(self) -> dict[str, list[LogFile]]:
        """Return the files that each holder holds, alone or with others."""
        return {
            holder: [file for file in self.files if holder in self.held[file.number]]
            for holder in log_holds.HOLDERS
        }

    def blocked(self) -> dict[str, int]:
        """Return how many files past the retention each holder holds."""
        return dict(Counter(holder for number in self.expired for holder in self.held[number]))


class LogHolding:
    """See the module."""

    def __init__(self, sweeper: RetentionSweeper, pins: Pins) -> None:
        self._sweeper = sweeper
        self._directory = sweeper.options.node.data_dir
        self._pins = pins
        self._crowded_by: tuple[str, ...] = ()
        # The oldest file that one of the kept checkpoints needs.
        self.first_needed = 0
        # The oldest file that a follower may need; None: none is behind.  Until replication has
        # said so, within seconds, that may be any.
        self.replicas_from: int | None = 0 if sweeper.options.node.peers else None
        # Files whose events a complete segment holds too, and since when (UTC ns).
        self.covered: Callable[[], Mapping[int, int]] = dict
        # The newest file of which a copy is safe; None: there is no archive.
        self.archived_through: Callable[[], int | None] = lambda: None

    def assess(self, expired: Collection[int]) -> Assessment:
        """Look at all full log files."""
        files = [self._log_file(number) for number in self._sweeper.files.full_numbers]
        facts = Facts(
            now=time.time_ns(),
            first_needed=self.first_needed,
            covered=self.covered(),
            archived_through=self.archived_through(),
            replicas_from=self.replicas_from,
            pins=[pin.first_file for pin in self._pins.active],
            expired=expired,
        )
        found = Assessment(files, log_holds.holders(files, facts, self._rules()), expired)
        telemetry = self._sweeper.telemetry
        telemetry.set("wal_size_bytes", sum(file.size for file in files))
        for holder, held in found.by_holder().items():
            size = sum(file.size for file in held)
            telemetry.set(f'wal_held_bytes{{holder="{holder}"}}', size)
        return found

    def delete(self, files: Sequence[LogFile], expired: Collection[int]) -> None:
        """Delete log files, the oldest ones there are, and tell who has them open."""
        numbers = [file.number for file in files]
        for number in numbers:
            os.unlink(os.path.join(self._directory, full_name(number)))
        sync_directory(self._directory)
        self._sweeper.files.refresh()
        self._sweeper.send("query", [b"removed"])
        for number in numbers:
            reason = "expired" if number in expired else "covered"
            self._sweeper.telemetry.add(f'wal_segments_deleted_total{{reason="{reason}"}}')

    def is_crowded(self, assessment: Assessment, deleted: int) -> bool:
        """Are more files left than the operator wishes?  See that those who hold them go on."""
        kept = assessment.files[deleted:]
        crowded = len(kept) > self._sweeper.options.wal.max_segments
        holders: tuple[str, ...] = ()
        if crowded:
            oldest = assessment.held[kept[0].number]
            holders = tuple(holder for holder in oldest if holder in WAITED_FOR)
        if "checkpoint" in holders:
            self._sweeper.send("usage", [b"save"])
        if holders and holders != self._crowded_by:
            fields = {"files": len(kept), "held_by": ", ".join(holders)}
            logger.warning("more log files are kept than wished for", extra={"fields": fields})
        self._crowded_by = holders
        return crowded

    def _log_file(self, number: int) -> LogFile:
        found = os.stat(os.path.join(self._directory, full_name(number)))
        return LogFile(number, found.st_size, found.st_mtime_ns)

    def _rules(self) -> Rules:
        wal, storage = self._sweeper.options.wal, self._sweeper.options.storage
        return Rules(
            copy_grace=int(storage.copy_grace * SECOND_NS),
            keep=wal.retention_days * DAY_NS,
            files_max=wal.max_segments,
            files_min=wal.min_segments,
            replica_files_max=wal.replica_segments,
        )
