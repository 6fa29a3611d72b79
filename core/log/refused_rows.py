"""Remembers which rows of log files were not stored, for files that have no segment yet.

One bit a row, numbered as in the file.  Most rows are stored, so a bitmap is all zeros and
packs to nothing; it is bounded by the rows of a file either way.
"""

from __future__ import annotations

import lz4.block
import numpy as np
from numpy.typing import NDArray

# Room for rows comes in pieces of this size, and doubles, so that few are copied; what is not used
# is not touched.
_GROWTH = 1 << 16


class RefusedRows:
    """Bitmaps by file number.  Changed only through `note`, `note_some` and `forget`."""

    def __init__(self) -> None:
        self._bits: dict[int, NDArray[np.uint8]] = {}
        self._counts: dict[int, int] = {}
        self._loaded: dict[int, int] = {}  # the counts that a checkpoint had

    def note(self, file_number: int, first_row: int, refused: NDArray[np.bool_]) -> None:
        """Take note of the rows of one record: which were not stored."""
        end = first_row + len(refused)
        self._room(file_number, end)[first_row:end] = refused

    def note_some(
        self, file_number: int, first_row: int, rows: NDArray[np.bool_], refused: bool
    ) -> None:
        """Take note of some rows of one record: all stored, or none; the others stay."""
        end = first_row + len(rows)
        self._room(file_number, end)[first_row:end][rows] = refused

    def _room(self, file_number: int, end: int) -> NDArray[np.uint8]:
        """Return the bits of a file, at least up to a row that has been looked at."""
        bits = self._bits.get(file_number)
        if bits is None or end > len(bits):
            wanted = end if bits is None else max(end, 2 * len(bits))
            grown = np.zeros(-(-wanted // _GROWTH) * _GROWTH, np.uint8)
            if bits is not None:
                grown[: len(bits)] = bits
            bits = self._bits[file_number] = grown
        self._counts[file_number] = max(end, self._counts.get(file_number, 0))
        return bits

    def forget(self, file_number: int) -> None:
        """Drop a file whose index holds its bitmap now."""
        self._bits.pop(file_number, None)
        self._counts.pop(file_number, None)

    def files(self) -> list[int]:
        """Return the files held, oldest first."""
        return sorted(self._counts)

    def rows(self, file_number: int) -> int:
        """Return how many rows of a file have been looked at."""
        return self._counts.get(file_number, 0)

    def loaded(self, file_number: int, end: int) -> bool:
        """Did the checkpoint that was loaded speak of rows up to `end`?"""
        return end <= self._loaded.get(file_number, 0)

    def packed(self, file_number: int) -> tuple[bytes, int]:
        """Return (LZ4 block of the bitmap, least significant bit first; row count) of a file."""
        count = self._counts.get(file_number, 0)
        held = self._bits.get(file_number)
        bits = np.zeros(0, np.uint8) if held is None else held[:count]
        return lz4.block.compress(np.packbits(bits, bitorder="little").tobytes()), count

    def to_map(self) -> dict[int, list[object]]:
        """Return everything as plain values, for a checkpoint."""
        return {number: list(self.packed(number)) for number in self.files()}

    @classmethod
    def from_map(cls, files: dict[int, list[object]]) -> RefusedRows:
        """Return what `to_map` gave."""
        rows = cls()
        for number, (packed, count) in files.items():
            raw = np.frombuffer(lz4.block.decompress(packed), np.uint8)
            bits = np.unpackbits(raw, count=int(count), bitorder="little")  # type: ignore[call-overload]
            rows.note(number, 0, bits.astype(np.bool_))
        rows._loaded = dict(rows._counts)
        return rows
