"""Opens log files for reading, with the index that says where an account's rows lie.

A full file is read through the index beside it.  The active file, and a full one whose index is
not written yet, gets an index in memory, which grows as far as a question may look.  Mapped files
stay open in bounded numbers; what their headers say about time is remembered for all, so that a
question touches only files that can hold something.

A log file's bytes never change up to the offset a question names, so nothing is locked: the file
may be sealed, indexed or deleted under our feet.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from dataclasses import dataclass

import lz4.block
import numpy as np
from numpy.typing import NDArray

from meterd.actors.mapping import map_file
from meterd.actors.totals_files import JustDeleted, TotalsFiles
from meterd.core.erasures import Erasures, none_erased
from meterd.core.kernels.gather import LogRows
from meterd.core.log_index import KeyRange, OpenIndex, RowIndex, Rows, SealedIndex, frozen
from meterd.core.totals_file import TotalsFile
from meterd.protocol import index_format
from meterd.protocol.errors import Internal
from meterd.protocol.index_format import HEADER_SIZE, IndexHeader
from meterd.protocol.log_format import ACTIVE_NAME, Damaged, full_name, number_of, parse_file_header

logger = logging.getLogger(__name__)

# Mapped files; each takes address space and two mappings of the 65,530 a process may have.
FILES_OPEN_MAX = 256
# Indexes in memory: the active file and full ones that wait for theirs, 20 bytes a row each.
OPEN_INDEXES_MAX = 4

Refused = dict[int, tuple[bytes, int]]


def index_name(file_number: int) -> str:
    """Return the name of the index beside a full log file."""
    return full_name(file_number).removesuffix(".log") + ".idx"


@dataclass(frozen=True, slots=True)
class LogFile:
    """One log file as a question may see it."""

    number: int
    rows: LogRows
    index: RowIndex
    row_count: int  # rows that the question may see
    header: IndexHeader | None = None  # None: there is only an index in memory

    def rows_of(self, wanted: list[KeyRange], start: int, end: int) -> Rows:
        """Return the rows that may belong to these keys and times, rising."""
        rows = self.index.rows_of(wanted, start, end)
        return rows[: rows.searchsorted(self.row_count)]

    def all_rows(self, first: int = 0) -> Rows:
        """Return all rows from one on."""
        return frozen(np.arange(first, self.row_count, dtype=np.uint32))


class View:
    """The log up to a position, as one question sees it.

    Its older part is totals files, up to the log file `through`; behind it are the log files
    `numbers`.  What log files up to `through` are still there is not looked at.
    """

    def __init__(
        self,
        files: LogFiles,
        end: tuple[int, int],
        refused: Refused,
        erasures: Erasures | None = None,
    ) -> None:
        """Raises Internal when a part of the log is neither here nor there."""
        self._files = files
        self._refused = refused
        self.erasures = erasures or none_erased(files.identity_key)
        self.end_file, self.end_offset = end
        if not self._look():
            files.refresh()  # it was looked at while a file went
            if not self._look():
                raise Internal(f"no totals file covers log file {self.through + 1}")

    def _look(self) -> bool:
        numbers = self._files.numbers(self.end_file)
        self.totals = self._files.totals()
        self.through = self.totals[-1].last if self.totals else 0
        self.numbers = [number for number in numbers if number > self.through]
        return self.numbers[0] == self.through + 1

    @property
    def identity_key(self) -> NDArray[np.uint64]:
        return self._files.identity_key

    def header(self, number: int) -> IndexHeader | None:
        """Return what the index of a file says about it, or None when it has none yet."""
        return self._files.header(number) if number != self.end_file else None

    def open(self, number: int) -> LogFile:
        """Return a file.  Raises JustDeleted."""
        if self.header(number) is not None:
            return self._files.sealed(number)
        return self._files.unsealed(number, self._limit(number), self._refused.get(number))

    def _limit(self, number: int) -> int | None:
        return self.end_offset if number == self.end_file else None


class LogFiles:
    """The log files of a data directory."""

    def __init__(self, directory: str, identity_key: bytes) -> None:
        self._directory = directory
        self.identity_key = np.frombuffer(identity_key, np.uint64).copy()
        self._totals = TotalsFiles(directory)
        self._names: list[str] = []
        self._numbers: list[int] = []
        self._headers: dict[int, IndexHeader] = {}
        self._sealed: OrderedDict[int, LogFile] = OrderedDict()
        self._open: OrderedDict[int, tuple[NDArray[np.uint8], OpenIndex]] = OrderedDict()

    def numbers(self, end_file: int) -> list[int]:
        """Return the numbers of all files up to one, which may be the active one."""
        if not self._numbers or self._numbers[-1] < end_file - 1:
            self.refresh()
        return [number for number in self._numbers if number < end_file] + [end_file]

    @property
    def full_numbers(self) -> list[int]:
        """The numbers of the full files found when it was last looked, rising."""
        return self._numbers

    def refresh(self) -> None:
        """Look again which full files there are, after one was added or deleted."""
        self._names = os.listdir(self._directory)
        found = {number_of(name) for name in self._names}
        self._numbers = sorted(number for number in found if number is not None)
        for known in (self._headers, self._sealed):
            for number in set(known) - set(self._numbers):
                del known[number]

    def totals(self) -> tuple[TotalsFile, ...]:
        """Return the totals files that stand, as found when it was last looked.

        Raises Internal, JustDeleted.
        """
        try:
            return self._totals.snapshot(self._names)
        except JustDeleted:
            self.refresh()
            return self._totals.snapshot(self._names)

    def indexed(self, number: int) -> None:
        """A file has got its index: use that from now on."""
        self._open.pop(number, None)
        self.refresh()

    def header(self, number: int) -> IndexHeader | None:
        """Return the header of a full file's index, or None when it has no valid one."""
        known = self._headers.get(number)
        if known is None:
            try:
                with open(self._path(index_name(number)), "rb") as file:
                    known = index_format.parse_header(file.read(HEADER_SIZE))
                size = os.stat(self._path(full_name(number))).st_size
            except FileNotFoundError:
                return None
            except Damaged as damage:
                logger.error("index %s is damaged: %s", index_name(number), damage)
                return None
            if known.file_number != number or known.log_size != size:
                logger.error("index %s does not belong to its log file", index_name(number))
                return None
            self._headers[number] = known
        return known

    def sealed(self, number: int) -> LogFile:
        """Return a full file that has an index.  Raises JustDeleted."""
        file = self._sealed.get(number)
        if file is None:
            try:
                data = map_file(self._path(full_name(number)))
                raw = map_file(self._path(index_name(number)))
            except FileNotFoundError:
                self.refresh()
                raise JustDeleted("a part of the range has just expired; ask again") from None
            index = index_format.parse_index(raw.data)
            rows = LogRows(data, index.record_row, index.record_offset, index.refused)
            file = LogFile(number, rows, SealedIndex(index), index.header.row_count, index.header)
            self._sealed[number] = file
            if len(self._sealed) > FILES_OPEN_MAX:
                self._sealed.popitem(last=False)
        self._sealed.move_to_end(number)
        return file

    def unsealed(self, number: int, end: int | None, refused: tuple[bytes, int] | None) -> LogFile:
        """Return a file without an index up to offset `end` (None: all of it).

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
            # Neither an index nor the bitmap it is made from: somebody has removed the index.
            raise Internal(f"log file {number} has no index")
        bitmap = lz4.block.decompress(packed) if row_count else b""
        rows = LogRows(data, index.record_row, index.record_offset, np.frombuffer(bitmap, np.uint8))
        return LogFile(number, rows, index, row_count)

    def _map_unsealed(self, number: int) -> NDArray[np.uint8]:
        """Map a file that may become full, and so be renamed, at this moment."""
        for name in (full_name(number), ACTIVE_NAME, full_name(number)):
            try:
                data = map_file(self._path(name))
            except FileNotFoundError:
                continue
            if parse_file_header(data.data)[0].file_number == number:
                return data
        self.refresh()
        raise JustDeleted(f"log file {number} has just been deleted; ask again")

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
