"""Makes a segment of each full log file, from the file and the bitmap of its rows not stored.

The usage actor keeps that bitmap until it is told that the segment is there, and sends it again
after a start, so nothing is remembered here.  A job makes one segment after another, at the lowest
priority of the processor while few files wait: nobody misses a segment that comes later, for a
file without one is read as it is.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import lz4.block
import msgpack

from meterd.actors.housekeeping.jobs import Job, Task
from meterd.actors.housekeeping.segment_making import SegmentMaker
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.actors.housekeeping.urgency import nice_of, set_nice, take_idle_time_only
from meterd.protocol import segment_format
from meterd.protocol.errors import Corrupt, DiskFull

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

# A segment that found no room is tried again after so long.
RETRY_SECONDS = 10.0
# When more log files wait, segments no longer leave all processors to others, the less the more
# wait.  (A question about what has just come reads the log files that wait.)
BACKLOG_MAX = 32
# Memory for making segments is kept so long for the next one.
REST_SECONDS = 10.0
LANE = "segments"

logger = logging.getLogger(__name__)


class Segments(Service):
    """See the module."""

    messages = (b"sealed",)

    def __init__(self, sweeper: RetentionSweeper) -> None:
        super().__init__(sweeper)
        self._maker = SegmentMaker(self.directory, sweeper.files.identity_key)
        self._waiting: dict[int, tuple[bytes, int]] = {}  # bitmap (LZ4 block), rows
        self._remove_litter()
        self.due = NEVER

    def handle(self, frames: list[Any]) -> None:
        meta = msgpack.unpackb(frames[1])
        self._waiting[meta["file_number"]] = (frames[2], meta["row_count"])
        self._come_soon()

    def waits(self, number: int) -> bool:
        """Is a log file about to get its segment?"""
        return number in self._waiting

    def without_events(self, number: int) -> None:
        """Have a segment made of a file that holds no event: nobody announces it."""
        try:
            rows = self._maker.count_rows(number)
        except Corrupt as corrupt:
            logger.error("no segment can be made: %s", corrupt)
            return
        if rows == 0:
            self._waiting[number] = (lz4.block.compress(b""), 0)
            self._come_soon()

    def turn(self, now: float) -> None:
        """Begin with the oldest full file that waits, if no other is in work."""
        self.due = NEVER
        self.sweeper.telemetry.set("segments_waiting", len(self._waiting))
        if self.sweeper.holds_still:
            self.due = now + RETRY_SECONDS
            return
        if self.sweeper.jobs.active("segment") is not None:
            return
        if not self._waiting:
            self._maker.rest()
            return
        number = min(self._waiting)
        files = self.sweeper.files
        files.refresh()
        if number not in files.waiting():
            self._finish(number)
            return
        packed, row_count = self._waiting[number]
        waiting = len(self._waiting)

        def work(task: Task) -> dict[str, Any]:
            if waiting > BACKLOG_MAX:
                set_nice(nice_of(waiting, BACKLOG_MAX))
            else:
                take_idle_time_only()
            bitmap = lz4.block.decompress(packed)
            header = self._maker.make(number, bitmap, row_count, task.advance)
            return {"file_number": number, "rows": header.row_count}

        self.sweeper.jobs.start(
            "segment", LANE, work, lambda job: self._ended(job, number, now), own_priority=True
        )

    def _ended(self, job: Job, number: int, now: float) -> None:
        """A segment was made, or could not be."""
        if job.state == "done":
            self.sweeper.telemetry.add("segments_made_total")
            self._finish(number)
        elif job.state == "cancelled" or (job.error and job.error["code"] == DiskFull.code):
            self.due = now + RETRY_SECONDS
        elif job.error is not None:
            # Readers of the file say so too; the rest of the log is as good as before.
            logger.error("no segment can be made of log file %d", number)
            del self._waiting[number]
            self._come_soon()

    def _finish(self, number: int) -> None:
        """Tell those who need it that a segment is there, and go on."""
        for actor in ("query", "usage"):
            self.sweeper.send(actor, [b"segmented", str(number).encode()])
        self._waiting.pop(number, None)
        self.sweeper.files.refresh()
        self._come_soon()

    def _come_soon(self) -> None:
        self.due = 0.0 if self._waiting else time.monotonic() + REST_SECONDS

    def _remove_litter(self) -> None:
        """Delete what a crash has left of a segment that was being made or deleted."""
        names = set(os.listdir(self.directory))
        for name in names:
            whole = name.removesuffix(".tmp")
            parsed = segment_format.parse_name(whole)
            if parsed and (whole != name or parsed[0].file(".idx") not in names):
                os.unlink(os.path.join(self.directory, name))
