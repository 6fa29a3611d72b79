"""Deletes log files past the retention, after the usage actor has agreed (`remove`, `removed`).

Two checkpoints must lie behind a file.  The file goes before its index, because an index without
its file is only litter, but a file without its index cannot be read.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.disk import sync_directory
from meterd.actors.housekeeping.service import Service
from meterd.actors.log_files import index_name
from meterd.core import retention
from meterd.protocol.log_format import full_name, number_of

if TYPE_CHECKING:
    from meterd.actors.housekeeping.indexes import Indexes
    from meterd.actors.housekeeping.jobs import Job
    from meterd.actors.housekeeping.totals import Totals
    from meterd.actors.retention_sweeper import RetentionSweeper

logger = logging.getLogger(__name__)


class LogRetention(Service):
    """See the module."""

    messages = (b"removed",)

    def __init__(self, sweeper: RetentionSweeper, indexes: Indexes, totals: Totals) -> None:
        super().__init__(sweeper)
        self._indexes = indexes
        self._totals = totals
        self._remove_litter()

    def handle(self, frames: list[Any]) -> None:
        self._on_removed(msgpack.unpackb(frames[1])["files"])

    def turn(self, now: float) -> None:
        self._sweep()
        self.due = now + self.sweeper.options.retention.sweep_interval

    def _sweep(self) -> None:
        """Ask which of the files past the retention may go."""
        files = self.sweeper.files
        files.refresh()
        numbers = files.full_numbers
        newest = {}
        for number in numbers:
            header = files.header(number)
            if header is None and not self._indexes.waits(number):
                self._indexes.without_events(number)
                header = files.header(number)
            if header is not None:
                newest[number] = header.max_timestamp
        limit = retention.limit_of(time.time_ns(), self.sweeper.options.retention.days)
        expired = retention.expired_files(numbers, newest, limit)
        if expired:
            asked = {"files": expired, "newest": {str(n): newest[n] for n in expired}}
            self.sweeper.send("usage", [b"remove", msgpack.packb(asked)])
        else:
            self.sweeper.telemetry.add('retention_runs_total{result="ok"}')

    def _on_removed(self, numbers: list[int]) -> None:
        """Fold files that nobody needs any more, then delete them."""
        registry = self.sweeper.registry
        self.sweeper.telemetry.add('retention_runs_total{result="ok"}')
        # Without the registry nobody could say what the rows count for: then the files stay.
        if numbers and registry.read():
            self._totals.fold(
                sorted(numbers), registry.registry, lambda job: self._on_folded(job, numbers)
            )

    def _on_folded(self, job: Job, numbers: list[int]) -> None:
        if job.state == "done":
            self._delete(numbers)
        else:
            logger.error("no log file is deleted, because its totals could not be kept")

    def _delete(self, numbers: list[int]) -> None:
        """Delete files that were folded."""
        telemetry = self.sweeper.telemetry
        freed = 0
        for number in sorted(numbers):
            path = os.path.join(self.directory, full_name(number))
            freed += os.stat(path).st_size
            os.unlink(path)
        sync_directory(self.directory)
        for number in numbers:
            os.unlink(os.path.join(self.directory, index_name(number)))
        self.sweeper.send("query", [b"removed", msgpack.packb({"files": numbers})])
        logger.info(
            "deleted %d log files past the retention, %d to %d, %d bytes",
            len(numbers),
            min(numbers),
            max(numbers),
            freed,
        )
        telemetry.add("retention_segments_deleted_total", len(numbers))
        telemetry.add("retention_bytes_freed_total", freed)
        if len(numbers) == retention.FILES_PER_SWEEP_MAX:
            self.due = 0.0

    def _remove_litter(self) -> None:
        """Delete indexes whose log file is gone: the node ended between the two."""
        names = set(os.listdir(self.directory))
        for name in names:
            log_name = name.removesuffix(".idx") + ".log"
            if name.endswith(".idx") and number_of(log_name) and log_name not in names:
                os.unlink(os.path.join(self.directory, name))
