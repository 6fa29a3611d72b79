"""Writes the index beside each full log file, from the file and the bitmap of its rows not stored.

The usage actor keeps that bitmap until it is told that the index is there, and sends it again after
a start, so nothing is remembered here.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import lz4.block
import msgpack

from meterd.actors.housekeeping.service import NEVER, Service
from meterd.actors.indexing import Indexer
from meterd.protocol.errors import Corrupt, DiskFull

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

# An index that found no room is tried again after so long.
RETRY_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Indexes(Service):
    """See the module."""

    messages = (b"sealed",)

    def __init__(self, sweeper: RetentionSweeper) -> None:
        super().__init__(sweeper)
        self._indexer = Indexer(self.directory, sweeper.files.identity_key)
        self._waiting: dict[int, bytes] = {}  # full files without an index: bitmap
        self.due = NEVER

    def handle(self, frames: list[Any]) -> None:
        self._waiting[msgpack.unpackb(frames[1])["file_number"]] = frames[2]
        self._come_soon()

    def waits(self, number: int) -> bool:
        """Is a file about to get its index?"""
        return number in self._waiting

    def without_events(self, number: int) -> None:
        """Index a file that holds no event: nobody keeps a bitmap of its rows."""
        try:
            rows = self._indexer.count_rows(number)
        except Corrupt as corrupt:
            logger.error("no index can be made: %s", corrupt)
            return
        if rows == 0:
            self._waiting[number] = lz4.block.compress(b"")
            self._come_soon()

    def turn(self, now: float) -> None:
        """Write the index of the oldest full file that waits for one."""
        if self.sweeper.holds_still:
            self.due = now + RETRY_SECONDS
            return
        number = min(self._waiting)
        try:
            if self.sweeper.files.header(number) is None:
                self._write(number, lz4.block.decompress(self._waiting[number]))
        except DiskFull as full:
            logger.warning("no room for the index of log file %d: %s", number, full)
            self.due = now + RETRY_SECONDS
            return
        except Corrupt as corrupt:
            # Readers of the file say so too; the rest of the log is as good as before.
            logger.error("no index can be made: %s", corrupt)
        else:
            for actor in ("query", "usage"):
                self.sweeper.send(actor, [b"indexed", str(number).encode()])
        del self._waiting[number]
        self.due = 0.0 if self._waiting else NEVER

    def _come_soon(self) -> None:
        if self.due == NEVER:
            self.due = 0.0

    def _write(self, number: int, bitmap: bytes) -> None:
        began = time.monotonic()
        rows = self._indexer.write(number, bitmap)
        self.sweeper.telemetry.add("indexes_written_total")
        logger.debug(
            "wrote the index of log file %d: %d rows in %.3f s",
            number,
            rows,
            time.monotonic() - began,
        )
