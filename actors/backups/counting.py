"""Counts the stored events in the files of a directory, file by file, for control totals."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import lz4.block
import numpy as np
from numpy.typing import NDArray

from meterd.actors.backups.reading import Memory, Stamp
from meterd.actors.backups.segment_totals import segment_totals
from meterd.core import inventory
from meterd.core.control_totals import ControlTotals
from meterd.core.log_scan import FileScan
from meterd.protocol.backup_manifest import TotalsMap
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import ACTIVE_NAME, full_name
from meterd.protocol.segment_format import SegmentName

# Bitmaps of rows that were not stored, by log file: (LZ4 block, rows).
Refused = Mapping[int, tuple[bytes, int]]


class Counting:
    """Counts one directory: segments, and the log files that none covers, of which bitmaps say
    what was not stored.
    """

    def __init__(self, directory: str, memory: Memory, step: Callable[[], None]) -> None:
        self._directory = Path(directory)
        self._memory = memory
        self._step = step

    def totals(self, names: list[str], end: tuple[int, int], refused: Refused) -> TotalsMap:
        """Return the totals of the files named, with log file `end[0]` up to offset `end[1]`.

        Raises Corrupt.
        """
        counted = ControlTotals()
        segments = inventory.whole_segments(names)
        for segment in segments:
            counted.merge(self._segment(segment))
            self._step()
        logs = {inventory.log_number(n) for n in names if _is_full_log(n)}
        for segment in segments:  # what both hold is counted once
            logs -= set(range(segment.first, segment.last + 1))
        for number in sorted(logs):
            counted.merge(self._full_log(number, refused))
            self._step()
        number, offset = end
        path = self._directory / ACTIVE_NAME
        if not path.exists() or _number_in(path) != number:
            path = self._directory / full_name(number)
        counted.merge(self._log(path, offset, _bits(refused.get(number))))
        return counted.totals

    def _full_log(self, number: int, refused: Refused) -> TotalsMap:
        path = self._directory / full_name(number)
        with path.open("rb") as file:
            stamp = Stamp.of(path.name, file.fileno())
            known = self._memory.totals.get(stamp)
            if known is None:
                known = self._log(path, stamp.size, _bits(refused.get(number)))
                self._memory.totals[stamp] = known
        return known

    def _segment(self, segment: SegmentName) -> TotalsMap:
        path = self._directory / segment.file(".seg")
        with path.open("rb") as file:
            stamp = Stamp.of(path.name, file.fileno())
        known = self._memory.totals.get(stamp)
        if known is None:
            known = segment_totals(str(self._directory), segment)
            self._memory.totals[stamp] = known
        return known

    def _log(self, path: Path, end: int, refused: NDArray[np.bool_]) -> TotalsMap:
        """Count a log file up to an offset, checking every block on the way."""
        counted = ControlTotals()
        scan = FileScan(str(path), _mapped(path)[:end])
        for block in scan:
            row = block.header.first_row
            for record in block.records:
                bits = refused[row : row + record.row_count]
                if len(bits) < record.row_count:  # rows behind the bitmap were stored
                    bits = np.pad(bits, (0, record.row_count - len(bits)))
                counted.add_record(record, bits)
                row += record.row_count
            self._step()
        if scan.end.offset != end:
            raise Corrupt(str(path), scan.end.offset, "the log ends before the cut")
        return counted.totals


def _is_full_log(name: str) -> bool:
    return name.endswith(".log") and name != ACTIVE_NAME and name.startswith("wal-")


def _number_in(path: Path) -> int:
    return FileScan(str(path), _mapped(path)).header.file_number


def _bits(packed: tuple[bytes, int] | None) -> NDArray[np.bool_]:
    if packed is None or not packed[1]:
        return np.zeros(0, np.bool_)
    raw = np.frombuffer(lz4.block.decompress(packed[0]), np.uint8)
    return np.unpackbits(raw, count=packed[1], bitorder="little").astype(np.bool_)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
