"""Counts the stored events of files and adds their values: per partition and metric, exactly.

These totals say what a backup must give back.  They come from the rows as they lie in the files,
without the state machine that counts them for questions, so each checks the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from meterd.protocol import log_format
from meterd.protocol.backup_manifest import TotalsMap
from meterd.protocol.log_format import EVENTS, Record

_NUMBER_BITS = 16
# A value is added in four pieces of 16 bits: sums of fewer than 2^37 of them are exact in a double.
_PIECE_BITS, _PIECES = 16, 4
_OFFSET = 1 << 63  # makes signed values unsigned
# Rows of small records are counted together.
_ROWS_AT_ONCE = 1 << 16

Rows = tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int64]]


class ControlTotals:
    """Totals of some rows.  Changed only through `add`, `add_record` and `merge`."""

    def __init__(self) -> None:
        self._totals: TotalsMap = {}
        self._waiting: list[Rows] = []
        self._waiting_rows = 0

    @property
    def totals(self) -> TotalsMap:
        """The totals of everything that was added."""
        if self._waiting:
            waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
            partition, metric, value = (
                np.concatenate(parts) for parts in zip(*waiting, strict=True)
            )
            self.add(partition, metric, value)
        return self._totals

    def add(
        self,
        partition: NDArray[np.uint16],
        metric: NDArray[np.uint16],
        value: NDArray[np.int64],
    ) -> None:
        """Count rows, given as columns."""
        keys = partition.astype(np.int64) << _NUMBER_BITS | metric
        found, places = np.unique(keys, return_inverse=True)
        counts = np.bincount(places, minlength=len(found))
        words = value.astype(np.int64).view(np.uint64) ^ np.uint64(_OFFSET)
        sums = [0] * len(found)
        for piece in range(_PIECES):
            part = (words >> np.uint64(_PIECE_BITS * piece)) & np.uint64((1 << _PIECE_BITS) - 1)
            added = np.bincount(places, part.astype(np.float64), len(found))
            sums = [
                total + (int(more) << (_PIECE_BITS * piece))
                for total, more in zip(sums, added.tolist(), strict=True)
            ]
        for key, count, total in zip(found.tolist(), counts.tolist(), sums, strict=True):
            place = (key >> _NUMBER_BITS, key & ((1 << _NUMBER_BITS) - 1))
            self._add_one(place, count, total - count * _OFFSET)

    def add_record(self, record: Record, refused: NDArray[np.bool_]) -> None:
        """Count the rows of a record but those that were not stored; `refused` bool[rows]."""
        if record.kind != EVENTS or record.row_count == 0:
            return
        columns = log_format.columns(record)
        stored = ~refused
        partition = np.repeat(record.slices["partition"], record.slices["count"])
        self._waiting.append((partition[stored], columns.metric[stored], columns.value[stored]))
        self._waiting_rows += record.row_count
        if self._waiting_rows >= _ROWS_AT_ONCE:
            self.merge({})

    def merge(self, other: TotalsMap) -> None:
        """Add other totals."""
        assert self.totals is self._totals, "what waited is counted now"
        for place, (count, total) in other.items():
            self._add_one(place, count, total)

    def _add_one(self, place: tuple[int, int], count: int, total: int) -> None:
        if count:
            known_count, known_total = self._totals.get(place, (0, 0))
            self._totals[place] = (known_count + count, known_total + total)


def differences(found: TotalsMap, expected: TotalsMap) -> Iterator[str]:
    """Say where totals differ from what they should be."""
    for place in sorted(found.keys() | expected.keys()):
        got, wanted = found.get(place, (0, 0)), expected.get(place, (0, 0))
        if got != wanted:
            partition, number = place
            yield (
                f"partition {partition}, metric number {number}: {got[0]} events with the sum"
                f" {got[1]}, where {wanted[0]} with {wanted[1]} belong"
            )
