"""Opens what a question reads: segments, and log files that none covers yet.

A log file that no segment covers, the active one above all, gets an index in memory, which grows as
far as a question may look.  What is mapped stays open in bounded numbers; what the headers of
segments say about time is remembered for all, so that a question touches only segments that can
hold something.

The bytes of a segment never change, nor do a log file's up to the offset a question names, so
nothing is locked: files may be sealed, covered or deleted under our feet.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass

import lz4.block
import numpy as np
from numpy.typing import NDArray

from meterd.actors.files.mapped import JustDeleted, map_descriptor
from meterd.actors.files.segment_files import Segment, SegmentFiles
from meterd.actors.files.totals_files import TotalsFiles
from meterd.actors.log.opened_log import open_log
from meterd.core.frozen import frozen
from meterd.core.kernels.gather import LogRows
from meterd.core.log.index import KeyRange, OpenIndex, Rows
from meterd.core.log.order import LogOrders
from meterd.core.questions.totals_file import TotalsFile
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.erasures import Erasures, none_erased
from meterd.protocol.errors import Internal
from meterd.protocol.log_format import full_name, number_of

# Indexes in memory, 20 bytes a row each: the active file, and full ones that wait for their
# segment.  When more wait, a question that needs them all indexes them one after another again.
OPEN_INDEXES_MAX = 4

Refused = dict[int, tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the log: what a segment covers, or one log file."""

    first: int  # numbers of log files, both included
    last: int
    segment: Segment | None = None

    def may_hold(self, start: int, end: int) -> bool:
        """Whether a row between start and end may be in it."""
        if self.segment is None:
            return True
        header = self.segment.header
        return header.max_timestamp >= start and header.min_timestamp < end

    @property
    def may_have_operations(self) -> bool:
        """Whether a row in it may add or remove a member."""
        return self.segment is None or self.segment.header.has_operations


@dataclass(frozen=True, slots=True)
class LogFile:
    """One log file that no segment covers, as a question may see it."""

    number: int
    rows: LogRows
    index: OpenIndex
    row_count: int  # rows that the question may see

    def rows_of(self, wanted: list[KeyRange], start: int, end: int) -> Rows:
        """Return the rows that may belong to these keys and times, rising."""
        rows = self.index.rows_of(wanted, start, end)
        return rows[: rows.searchsorted(self.row_count)]

    def all_rows(self, first: int = 0) -> Rows:
        """Return all rows from one on."""
        return frozen(np.arange(first, self.row_count, dtype=np.uint32))


class View:
    """The log up to a position, as one question sees it.

    Its older part is totals files; behind them are the parts, each a segment or a log file.  What
    else is still there of the log that totals files cover is not looked at.
    """

    def __init__(
        self,
        files: LogFiles,
        end: tuple[int, int],
        refused: Refused,
        erasures: Erasures | None = None,
    ) -> None:
        """Raises Corrupt, Internal, JustDeleted when a part of the log is missing."""
        self._files = files
        self._refused = refused
        self.erasures = erasures or none_erased(files.identity_key)
        self.end_file, self.end_offset = end
        self.totals, self.parts = files.parts(self.end_file, refused)

    @property
    def identity_key(self) -> NDArray[np.uint64]:
        return self._files.identity_key

    @property
    def orders(self) -> LogOrders:
        """Where rows of segments lie by their order in the log, as far as that is remembered."""
        return self._files.orders

    def segment(self, segment: Segment) -> SegmentReader:
        """Return the reader of a segment.  Raises Corrupt, JustDeleted."""
        return self._files.segments.open(segment)

    def log_file(self, number: int) -> LogFile:
        """Return a log file that no segment covers.  Raises JustDeleted, Internal."""
        limit = self.end_offset if number == self.end_file else None
        return self._files.unsealed(number, limit, self._refused.get(number))


class LogFiles:
    """The log files and segments of a data directory."""

    def __init__(self, directory: str, identity_key: bytes) -> None:
        self._directory = directory
        self.identity_key = np.frombuffer(identity_key, np.uint64).copy()
        self.segments = SegmentFiles(directory)
        self.orders = LogOrders()
        self._totals = TotalsFiles(directory)
        self._names: list[str] = []
        self._numbers: list[int] = []
        self._open: OrderedDict[int, tuple[NDArray[np.uint8], OpenIndex]] = OrderedDict()
        self.refresh()

    def parts(self, end_file: int, refused: Refused) -> tuple[tuple[TotalsFile, ...], list[Part]]:
        """Return the log up to a file, perhaps the active one: totals, and parts behind them.

        Each follows the one before.  Raises Corrupt, Internal when one is missing, JustDeleted.
        """
        for attempt in range(2):
            totals = self.totals()
            through = totals[-1].last if totals else 0
            found = self._parts(end_file, through)
            # Rows of a full file that the asker does not speak of must be in a segment by now.
            unknown = any(
                part.segment is None and part.first < end_file and part.first not in refused
                for part in found
            )
            missing = _gap(through, found)
            if attempt or (missing is None and not unknown):
                break
            self.refresh()
        if missing is not None:
            self._missing(missing)
        return totals, found

    def _parts(self, end_file: int, through: int) -> list[Part]:
        """Return what there is behind a log file."""
        chosen = self.segments.chosen(end_file, through)
        found = [Part(one.name.first, one.name.last, one) for one in chosen]
        covered = {number for part in found for number in range(part.first, part.last + 1)}
        numbers = [number for number in self._numbers if through < number < end_file]
        found += [Part(number, number) for number in [*numbers, end_file] if number not in covered]
        return sorted(found, key=lambda part: part.first)

    def _missing(self, number: int) -> None:
        damage = self.segments.damage_at(number)
        if damage is not None:
            raise damage
        raise Internal(f"log file {number} is missing, and what covers it")

    @property
    def full_numbers(self) -> list[int]:
        """The numbers of the full log files found when it was last looked, rising."""
        return self._numbers

    def waiting(self) -> list[int]:
        """Return the full log files that no complete segment covers, rising."""
        covered = self.segments.chosen(self._numbers[-1] + 1) if self._numbers else []
        ranges = [(one.name.first, one.name.last) for one in covered]
        return [n for n in self._numbers if not any(low <= n <= high for low, high in ranges)]

    def refresh(self) -> None:
        """Look again which files there are, after some were added or deleted."""
        self._names = os.listdir(self._directory)
        found = (number_of(name) for name in self._names)
        self._numbers = sorted(number for number in found if number is not None)
        self.segments.refresh(self._names)

    def totals(self) -> tuple[TotalsFile, ...]:
        """Return the totals files that stand, as found when it was last looked.

        Raises Internal, JustDeleted.
        """
        try:
            return self._totals.snapshot(self._names)
        except JustDeleted:
            self.refresh()
            return self._totals.snapshot(self._names)

    def segmented(self, number: int) -> None:
        """A log file has got its segment: use that from now on."""
        self._open.pop(number, None)
        self.refresh()

    def unsealed(self, number: int, end: int | None, refused: tuple[bytes, int] | None) -> LogFile:
        """Return a file without a segment up to offset `end` (None: all of it).

        The bitmap of refused rows says how many rows were applied; a later question may have read
        further already.  Raises JustDeleted, Internal.
        """
        if number not in self._open:
            self._open[number] = (self._map_unsealed(number), OpenIndex())
            if len(self._open) > OPEN_INDEXES_MAX:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        data, index = self._open[number]
        packed, row_count = refused if refused is not None else (b"", 0)
        if row_count > index.row_count or refused is None:
            limit = self._size_of(number) if end is None else end
            index.extend(data, limit, self.identity_key, full_name(number))
        if refused is None and end is None and index.row_count:
            # Neither a segment nor the bitmap it is made from: somebody has removed it.
            damage = self.segments.damage_at(number)
            raise damage or Internal(f"log file {number} has no segment")
        if end is not None:  # the index may have been extended for somebody who reads further
            row_count = min(row_count, index.rows_before(end))
        bitmap = lz4.block.decompress(packed) if row_count else b""
        rows = LogRows(data, index.record_row, index.record_offset, np.frombuffer(bitmap, np.uint8))
        return LogFile(number, rows, index, row_count)

    def _map_unsealed(self, number: int) -> NDArray[np.uint8]:
        """Map a file that may become full, and so be renamed, at this moment."""
        try:
            _, descriptor = open_log(self._directory, number)
        except FileNotFoundError:
            self.refresh()
            raise JustDeleted(f"log file {number} has just been deleted; ask again") from None
        try:
            return map_descriptor(descriptor)
        finally:
            os.close(descriptor)

    def _size_of(self, number: int) -> int:
        """Return where a full file ends: it may be mapped from when it was active, and longer.

        What is mapped behind its end has gone; reading there would be the end of this process.
        """
        try:
            return os.stat(self._path(full_name(number))).st_size
        except FileNotFoundError:
            self.refresh()
            raise JustDeleted(f"log file {number} has just been deleted; ask again") from None

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def _gap(through: int, parts: list[Part]) -> int | None:
    """Return the first log file behind `through` that none of the parts covers, or None."""
    for part in parts:
        if part.first != through + 1:
            return through + 1
        through = part.last
    return None
