"""Makes the index of a log file, and finds rows through one.

Two kinds of it answer the same questions.  A *sealed* file has a sorted index (`LogIndex`), used
from disk.  The file that is still written, and a full one whose index is not yet there, has an
`OpenIndex` in memory that grows with the file; its keys lie in log order and are searched from end
to end, which takes a millisecond for a file.

Does not know: files, which rows a question wants (`core/gather.py` compares).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import scan
from meterd.core.kernels.scan import ACCOUNT_BITS, METRIC_BITS
from meterd.protocol.errors import Corrupt
from meterd.protocol.index_format import ROWS_MAX, IndexHeader, LogIndex
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.log_format import FILE_HEADER_SIZE

Bytes = NDArray[np.uint8]
Rows = NDArray[np.uint32]

NO_ROWS: Final = np.frombuffer(b"", np.uint32)
METRIC_MASK: Final = (1 << METRIC_BITS) - 1
# A growing index is copied each time it is full; doubling bounds that to one copy a row.
GROWTH_FIRST: Final = 1 << 12
# What in the state of a walk is a place in the file.
PLACES: Final = [scan.AT, scan.BLOCK_END, scan.BLOCK_AT]


class KeyRange(NamedTuple):
    """Keys from low to high, both included."""

    low: int
    high: int


class RowIndex(Protocol):
    """What both kinds of index offer."""

    @property
    def row_count(self) -> int: ...

    @property
    def record_row(self) -> NDArray[np.uint32]: ...

    @property
    def record_offset(self) -> NDArray[np.uint64]: ...

    def rows_of(self, wanted: list[KeyRange], start: int, end: int) -> Rows:
        """Return rows, rising, that hold all whose key and timestamp are wanted, and others."""


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


class SealedIndex:
    """Finds rows through the sorted index of a full log file."""

    def __init__(self, index: LogIndex) -> None:
        self.index = index
        self.row_count = index.header.row_count
        self.record_row = index.record_row
        self.record_offset = index.record_offset

    def rows_of(self, wanted: list[KeyRange], start: int, end: int) -> Rows:
        """See RowIndex."""
        index = self.index
        bounds = np.array(wanted, np.uint64)
        first = np.searchsorted(index.keys, bounds[:, 0], side="left")
        last = np.searchsorted(index.keys, bounds[:, 1], side="right")
        found = []
        for low, high in zip(first.tolist(), last.tolist(), strict=True):
            for place in range(low, high):
                if index.max_timestamp[place] >= start and index.min_timestamp[place] < end:
                    found.append(index.rows[index.starts[place] : index.starts[place + 1]])
        if len(found) <= 1:
            return found[0] if found else NO_ROWS
        return frozen(np.sort(np.concatenate(found)))


class OpenIndex:
    """The index of a file that has none on disk; grows with `extend`."""

    def __init__(self) -> None:
        self.clear()
        self._words = np.empty(0, np.uint64)
        self._keys = np.empty(0, np.uint64)
        self._timestamps = np.empty(0, np.int64)
        self._operations = np.empty(0, np.uint8)
        self._record_row = np.empty(0, np.uint32)
        self._record_offset = np.empty(0, np.uint64)

    def clear(self) -> None:
        """Be the empty index of another file, in the same memory."""
        self._state = np.zeros(5, np.int64)
        self._state[scan.BLOCK_END] = FILE_HEADER_SIZE
        self._records = 0
        self._last_crc = 0

    @property
    def row_count(self) -> int:
        return int(self._state[scan.ROW])

    @property
    def record_row(self) -> NDArray[np.uint32]:
        return frozen(self._record_row[: self._records])

    @property
    def record_offset(self) -> NDArray[np.uint64]:
        return frozen(self._record_offset[: self._records])

    @property
    def block_end(self) -> int:
        """Where the last block read ends."""
        return int(self._state[scan.BLOCK_END])

    def extend(
        self,
        data: Bytes,
        end: int,
        identity_key: NDArray[np.uint64],
        path: str,
        begin: int = 0,
    ) -> None:
        """Read on from where the last call ended, up to offset `end`.  Raises Corrupt.

        `data` is what the file holds from `begin` on, which is not behind that place.
        """
        self._state[PLACES] -= begin
        try:
            self._extend(data, end - begin, identity_key, path, begin)
        finally:
            self._state[PLACES] += begin

    def _extend(
        self, data: Bytes, end: int, identity_key: NDArray[np.uint64], path: str, begin: int
    ) -> None:
        first_row = self.row_count
        records, rows = scan.measure(data, end, self._state.copy())
        if records < 0:
            raise Corrupt(path, int(rows) + begin, "no record of a log (index)")
        if first_row + rows > ROWS_MAX:
            raise Corrupt(path, end + begin, f"more than {ROWS_MAX} rows in one log file")
        self._grow(first_row + rows, self._records + records)
        last_row, last_record = first_row + rows, self._records + records
        out = (
            self._keys[first_row:last_row],
            self._timestamps[first_row:last_row],
            self._record_row[self._records : last_record],
            self._record_offset[self._records : last_record],
            self._operations[first_row:last_row],
        )
        block_before = self._state[scan.BLOCK_AT]
        scan.index_rows(data, end, self._state, identity_key, out)
        self._record_offset[self._records : last_record] += np.uint64(begin)
        self._records = last_record
        block = int(self._state[scan.BLOCK_AT])
        if block != block_before:
            self._last_crc = int.from_bytes(data[block + 60 : block + 64].tobytes(), "little")

    def rows_of(self, wanted: list[KeyRange], start: int, end: int) -> Rows:
        """See RowIndex."""
        count = self.row_count
        keys, timestamps = self._keys[:count], self._timestamps[:count]
        chosen = np.zeros(count, np.bool_)
        for low, high in wanted:
            chosen |= (keys >= np.uint64(low)) & (keys <= np.uint64(high))
        chosen &= (timestamps >= start) & (timestamps < end)
        return frozen(np.flatnonzero(chosen).astype(np.uint32))

    def seal(self, file_number: int, log_size: int, refused: Bytes) -> LogIndex:
        """Return the sorted index of a file that has been read to its end."""
        count = self.row_count
        keys, timestamps = self._keys[:count], self._timestamps[:count]
        if len(self._words) < count:
            self._words = np.empty(len(self._keys), np.uint64)
        words, facts = self._words[:count], np.zeros(4, np.int64)
        stored = scan.pack_stored(
            keys, timestamps, self._operations[:count], refused, (words, facts)
        )
        words = words[:stored]
        words.sort()
        distinct = int(scan.count_keys(words))
        out = (
            np.empty(distinct, np.uint64),
            np.empty(distinct + 1, np.uint32),
            np.empty(distinct, np.int64),
            np.empty(distinct, np.int64),
            np.empty(stored, np.uint32),
        )
        scan.group_rows(words, timestamps, out)
        bitmap = np.zeros((count + 7) // 8, np.uint8)
        bitmap[: len(refused)] = refused[: len(bitmap)]
        return LogIndex(
            IndexHeader(
                file_number,
                log_size,
                self._last_crc,
                count,
                stored,
                bool(facts[scan.OPERATIONS]),
                int(facts[scan.MIN_TIMESTAMP]) if stored else I64_MAX,
                int(facts[scan.MAX_TIMESTAMP]) if stored else I64_MIN,
            ),
            *out,
            self.record_row.copy(),
            self.record_offset.copy(),
            bitmap,
        )

    def _grow(self, rows: int, records: int) -> None:
        if rows > len(self._keys):
            size = max(GROWTH_FIRST, rows, 2 * len(self._keys))
            self._keys = _resized(self._keys, size)
            self._timestamps = _resized(self._timestamps, size)
            self._operations = _resized(self._operations, size)
        if records > len(self._record_row):
            size = max(GROWTH_FIRST, records, 2 * len(self._record_row))
            self._record_row = _resized(self._record_row, size)
            self._record_offset = _resized(self._record_offset, size)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view that cannot be written: kernels are compiled once for all sources of rows."""
    view = array.view()
    view.flags.writeable = False
    return view


def _resized(array: NDArray[Any], size: int) -> NDArray[Any]:
    resized = np.empty(size, array.dtype)
    resized[: len(array)] = array
    return resized
