"""Counts the stored events in the files of a directory, file by file, for control totals."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import lz4.block
import numpy as np
from numpy.typing import NDArray

from meterd.actors.backups.reading import Memory, Stamp
from meterd.actors.backups.segment_totals import segment_totals
from meterd.actors.files.mapped import map_descriptor, map_file
from meterd.actors.log.opened_log import open_log
from meterd.core.housekeeping import inventory
from meterd.core.housekeeping.control_totals import ControlTotals
from meterd.core.log.scan import FileScan
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
        path, data = self._find_log(number)
        if len(data) < offset:
            raise Corrupt(str(path), len(data), "the log ends before the cut")
        counted.merge(self._log(path, data[:offset], _bits(refused.get(number))))
        return counted.totals

    def _find_log(self, number: int) -> tuple[Path, memoryview]:
        """Return a log file and its bytes.  Raises Corrupt."""
        try:
            name, descriptor = open_log(str(self._directory), number)
        except FileNotFoundError as gone:
            raise Corrupt(full_name(number), 0, "the log file of the cut is gone") from gone
        try:
            return self._directory / name, map_descriptor(descriptor).data
        finally:
            os.close(descriptor)

    def _full_log(self, number: int, refused: Refused) -> TotalsMap:
        path = self._directory / full_name(number)
        with path.open("rb") as file:
            stamp = Stamp.of(path.name, file.fileno())
            packed = refused.get(number, (b"", 0))
            bitmap, known = self._memory.totals.get(stamp, (b"", None))
            if known is None or bitmap != packed[0]:
                data = map_file(str(path)).data[: stamp.size]
                known = self._log(path, data, _bits(packed))
                self._memory.totals[stamp] = (packed[0], known)
        return known

    def _segment(self, segment: SegmentName) -> TotalsMap:
        path = self._directory / segment.file(".seg")
        with path.open("rb") as file:
            stamp = Stamp.of(path.name, file.fileno())
        _, known = self._memory.totals.get(stamp, (b"", None))
        if known is None:
            known = segment_totals(str(self._directory), segment)
            self._memory.totals[stamp] = (b"", known)
        return known

    def _log(self, path: Path, data: memoryview, refused: NDArray[np.bool_]) -> TotalsMap:
        """Count a log file up to the end of `data`, checking every block on the way."""
        counted = ControlTotals()
        scan = FileScan(str(path), data)
        for block in scan:
            row = block.header.first_row
            for record in block.records:
                bits = refused[row : row + record.row_count]
                if len(bits) < record.row_count:  # rows behind the bitmap were stored
                    bits = np.pad(bits, (0, record.row_count - len(bits)))
                counted.add_record(record, bits)
                row += record.row_count
            self._step()
        return counted.totals


def _is_full_log(name: str) -> bool:
    return name.endswith(".log") and name != ACTIVE_NAME and name.startswith("wal-")


def _bits(packed: tuple[bytes, int] | None) -> NDArray[np.bool_]:
    if packed is None or not packed[1]:
        return np.zeros(0, np.bool_)
    raw = np.frombuffer(lz4.block.decompress(packed[0]), np.uint8)
    return np.unpackbits(raw, count=packed[1], bitorder="little").astype(np.bool_)
