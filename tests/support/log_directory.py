"""A data directory with log files made by `LogBuilder`, as the readers of the log see one.

Some files are full and have a segment, some are full and wait for theirs, the last one is active:
its file is longer than what has been written, as a preallocated one is.
"""

from __future__ import annotations

import os
from pathlib import Path

import lz4.block
import numpy as np

from meterd.actors.files.totals_files import Making, fold
from meterd.actors.housekeeping.segment_making import SegmentMaker
from meterd.actors.questions.log_files import LogFiles, Refused, View
from meterd.core.state.erasures import (
    Erasure,
    Erasures,
    erasure_command,
    erasure_of,
    none_erased,
)
from meterd.core.state.registry import Registry
from meterd.protocol.limits import I64_MIN
from meterd.protocol.log_format import ACTIVE_NAME, full_name
from meterd.protocol.segment_format import SUFFIXES, SegmentName
from tests.support.log_builder import IDENTITY_KEY, LogBuilder, LoggedEvent, Placed

PREALLOCATED = 1 << 17


class LogDirectory:
    """Events go in with `write`, a file ends with `seal`, `view` shows what there is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.builder = LogBuilder()
        self.refused: dict[int, set[int]] = {}
        self.waiting: dict[int, int] = {1: 0}  # files without a segment: rows in them
        self.files = LogFiles(str(path), IDENTITY_KEY)
        self.erasures = none_erased(self.files.identity_key)
        self._save_active()

    def write(
        self, events: list[LoggedEvent], refused: set[int] = frozenset(), absent: bool = False
    ) -> list[Placed]:
        """Append a block with one record; `refused` are positions in `events` not stored.

        absent: none is, because no group has taken its slice.
        """
        self.builder.absent = absent
        placed = self.builder.block([events])
        refused = set(range(len(events))) if absent else refused
        of_event = {id(place.event): place for place in placed}
        number = self.builder.file_number
        rows = {of_event[id(events[position])].row for position in refused}
        self.refused.setdefault(number, set()).update(rows)
        self.waiting[number] = self.builder.row
        self._save_active()
        return placed

    def seal(self, segmented: bool) -> int:
        """End the active file, with a segment or still without; return its number."""
        number = self.builder.file_number
        # As the WAL-writer does: whoever has it mapped sees it end.
        os.truncate(self.path / ACTIVE_NAME, len(self.builder.data))
        (self.path / ACTIVE_NAME).rename(self.path / full_name(number))
        if segmented:
            self.make_segment(number)
        self.builder.next_file()
        self.waiting[number + 1] = 0
        self._save_active()
        return number

    def erase(self, account: str, subtree: bool = False) -> None:
        """Erase what an account has until now, by an entry of its partition's log."""
        key = self.files.identity_key
        command, partition = erasure_command(key, account, subtree, str(len(self.erasures)))
        indexes = self.builder.indexes
        indexes[partition] = indexes.get(partition, 0) + 1
        erasure = erasure_of(command, partition, indexes[partition], 0)
        again = Erasure.from_list(erasure.to_list())
        self.erasures = Erasures((*self.erasures, again), key)

    def make_segment(self, number: int) -> None:
        """Make the segment of a full file."""
        maker = SegmentMaker(str(self.path), self.files.identity_key)
        maker.make(number, self.bitmap(number), self.waiting.pop(number), lambda done: None)

    def fold(self, numbers: list[int], registry: Registry, horizon: int) -> None:
        """Fold the oldest segments; the totals horizon lies at `horizon`."""
        for number in numbers:
            fold(str(self.path), SegmentName(number, number), registry, self.making(horizon))
        self.files.refresh()

    def making(self, horizon: int) -> Making:
        return Making(horizon, self.erasures)

    def remove(self, numbers: list[int]) -> None:
        """Remove log files and segments that were folded."""
        for number in numbers:
            (self.path / full_name(number)).unlink(missing_ok=True)
            for suffix in SUFFIXES:
                (self.path / SegmentName(number, number).file(suffix)).unlink()
        self.files.refresh()

    def delete(self, numbers: list[int], registry: Registry, horizon: int = I64_MIN) -> None:
        """Delete the oldest full files, as the retention sweeper does."""
        self.fold(numbers, registry, horizon)
        self.remove(numbers)

    def bitmap(self, number: int) -> bytes:
        """The rows of a file that were not stored, one bit each."""
        bits = np.zeros(self.waiting[number], np.uint8)
        bits[sorted(self.refused.get(number, ()))] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    def refused_of_waiting(self) -> Refused:
        """What the usage actor sends along with a question."""
        return {
            number: (lz4.block.compress(self.bitmap(number)), rows)
            for number, rows in self.waiting.items()
            if rows
        }

    def view(self) -> View:
        """The log as a question asked now sees it."""
        end = (self.builder.file_number, len(self.builder.data))
        return View(self.files, end, self.refused_of_waiting(), self.erasures)

    def _save_active(self) -> None:
        """Write the active file in place: readers have it mapped."""
        path = self.path / ACTIVE_NAME
        data = bytes(self.builder.data).ljust(PREALLOCATED, b"\0")
        if self.builder.row:
            with path.open("r+b") as file:
                file.write(data)
        else:
            temporary = self.path / "wal.spare"
            temporary.write_bytes(data)
            temporary.rename(path)


def finish(steps):
    """Run a generator of `actors/questions/reading.py` to its end; return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


class SealsMeanwhile:
    """The module `os`, with a writer beside it that is done with a file in the wrong moment.

    That is when somebody opens the active file: the one that had this name has another then.
    """

    def __init__(self, log: LogDirectory) -> None:
        self._log, self._number = log, log.builder.file_number

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open(self, path: str, flags: int) -> int:
        if path.endswith(ACTIVE_NAME) and self._log.builder.file_number == self._number:
            self._log.seal(segmented=False)
            self._log.write([LoggedEvent("acme", "later", 0, 1, 1)])
        return os.open(path, flags)
