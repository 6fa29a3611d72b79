"""Remembers where the rows of a segment lie by their order in the log, for who reads a feed.

A segment is sorted otherwise, so to find the rows of a page all its ordinals have to be decoded.
That is done once for a window of ordinals, from which many pages are read then.

Does not know: files, questions.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import segment_match as kernels
from meterd.core.segments.reader import SegmentReader

# Ordinals of a window, 4 bytes each, and windows that are kept: of each feed the one it reads in.
WINDOW_ORDINALS: Final = 1 << 20
WINDOWS_MAX: Final = 4
NO_ROW: Final = (1 << 32) - 1


class LogOrders:
    """Windows of some segments; those used last are kept."""

    def __init__(self) -> None:
        self._windows: OrderedDict[tuple[int, int], NDArray[np.uint32]] = OrderedDict()

    def rows(self, reader: SegmentReader, low: int, high: int) -> NDArray[np.int64]:
        """Return (ordinal, row) of stored rows with low <= ordinal < high, by ordinal; (n, 2).

        Raises Corrupt.
        """
        found = []
        while low < high:
            number, first = divmod(low, WINDOW_ORDINALS)
            last = min(first + high - low, WINDOW_ORDINALS)
            rows = self._window(reader, number)[first:last]
            stored = np.flatnonzero(rows != NO_ROW)
            found.append(np.stack([stored + low, rows[stored].astype(np.int64)], axis=1))
            low += last - first
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)

    def _window(self, reader: SegmentReader, number: int) -> NDArray[np.uint32]:
        key = (reader.header.set_id, number)
        known = self._windows.get(key)
        if known is None:
            begin = number * WINDOW_ORDINALS
            size = min(WINDOW_ORDINALS, reader.header.ordinal_count - begin)
            known = np.full(size, NO_ROW, np.uint32)
            columns, count = reader.all_columns(), reader.header.row_count
            kernels.rows_by_ordinal(columns, count, begin, known)
            self._windows[key] = known
            if len(self._windows) > WINDOWS_MAX:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return known
