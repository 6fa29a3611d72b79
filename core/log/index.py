"""The index of a log file that no segment covers yet: in memory, growing with the file.

Its keys lie in log order and are searched from end to end, which takes a millisecond for a file.

Does not know: files, which rows a question wants (`core/questions/gathering.py` compares).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import scan
from meterd.core.kernels.scan import ACCOUNT_BITS, METRIC_BITS
from meterd.core.log.scan import FileScan, NextBlock
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import FILE_HEADER_SIZE

Bytes = NDArray[np.uint8]
Rows = NDArray[np.uint32]

METRIC_MASK: Final = (1 << METRIC_BITS) - 1
# A growing index is copied each time it is full; doubling bounds that to one copy a row.
GROWTH_FIRST: Final = 1 << 12


class KeyRange(NamedTuple):
    """Keys from low to high, both included."""

    low: int
    high: int


def wanted_keys(
    identity_key: NDArray[np.uint64], account: bytes, subtree: bool, numbers: list[int]
) -> list[KeyRange]:
    """Return the keys of an account's rows: of these metric numbers, or of all when empty."""
    text = np.frombuffer(account, np.uint8)
    upper = int(scan.key_of_account(identity_key, text))
    if subtree:
        root = upper >> ACCOUNT_BITS
        shift = ACCOUNT_BITS + METRIC_BITS
        return [KeyRange(root << shift, (root + 1 << shift) - 1)]
    base = upper << METRIC_BITS
    if not numbers:
        return [KeyRange(base, base | METRIC_MASK)]
    return [KeyRange(base | low, base | low) for low in sorted({n & METRIC_MASK for n in numbers})]


class OpenIndex:
    """Finds rows of a log file; grows with `extend`."""

    def __init__(self) -> None:
        self._state = np.zeros(5, np.int64)
        self._state[scan.BLOCK_END] = FILE_HEADER_SIZE
        self._checked: NextBlock | None = None  # behind the last block that was checked
        self._records = 0
        self._keys = np.empty(0, np.uint64)
        self._timestamps = np.empty(0, np.int64)
        self._record_row = np.empty(0, np.uint32)
        self._record_offset = np.empty(0, np.uint64)

    @property
    def row_count(self) -> int:
        return int(self._state[scan.ROW])

    @property
    def record_row(self) -> NDArray[np.uint32]:
        return frozen(self._record_row[: self._records])

    @property
    def record_offset(self) -> NDArray[np.uint64]:
        return frozen(self._record_offset[: self._records])

    def rows_before(self, offset: int) -> int:
        """Return how many of the rows lie before an offset in the file, where a block may begin."""
        record = int(self.record_offset.searchsorted(np.uint64(offset)))
        return self.row_count if record == self._records else int(self._record_row[record])

    def extend(
        self,
        data: Bytes,
        end: int,
        identity_key: NDArray[np.uint64],
        path: str,
    ) -> None:
        """Read on from where the last call ended, up to offset `end`.  Raises Corrupt.

        `data` is the whole file.  A start checks what lies behind a checkpoint only, so what is
        read here may be damaged: each block is checked before any of its rows is known.
        """
        if self._checked is not None and end <= self._checked.offset:
            return
        blocks = FileScan(path, data[:end].data, start=self._checked)
        for _ in blocks:
            pass
        self._checked = blocks.end
        first_row = self.row_count
        records, rows = scan.measure(data, end, self._state.copy())
        if records < 0:
            raise Corrupt(path, int(rows), "no record of a log (index)")
        self._grow(first_row + rows, self._records + records)
        last_row, last_record = first_row + rows, self._records + records
        out = (
            self._keys[first_row:last_row],
            self._timestamps[first_row:last_row],
            self._record_row[self._records : last_record],
            self._record_offset[self._records : last_record],
        )
        scan.index_rows(data, end, self._state, identity_key, out)
        self._records = last_record

    def rows_of(self, wanted: list[KeyRange], start: int, end: int) -> Rows:
        """Return rows, rising, that hold all whose key and timestamp are wanted, and others."""
        count = self.row_count
        keys, timestamps = self._keys[:count], self._timestamps[:count]
        chosen = np.zeros(count, np.bool_)
        for low, high in wanted:
            chosen |= (keys >= np.uint64(low)) & (keys <= np.uint64(high))
        chosen &= (timestamps >= start) & (timestamps < end)
        return frozen(np.flatnonzero(chosen).astype(np.uint32))

    def _grow(self, rows: int, records: int) -> None:
        if rows > len(self._keys):
            size = max(GROWTH_FIRST, rows, 2 * len(self._keys))
            self._keys = _resized(self._keys, size)
            self._timestamps = _resized(self._timestamps, size)
        if records > len(self._record_row):
            size = max(GROWTH_FIRST, records, 2 * len(self._record_row))
            self._record_row = _resized(self._record_row, size)
            self._record_offset = _resized(self._record_offset, size)


def _resized(array: NDArray[Any], size: int) -> NDArray[Any]:
    resized = np.empty(size, array.dtype)
    resized[: len(array)] = array
    return resized
