"""Says where in one part of the log, a segment or a log file, the ops of each group lie.

A row there is known by its *place*: its ordinal in a segment, its number in a log file.  Positions
(`core/questions/feed_cursor.py`) are the same on every replica, places are not.

Slices that count for nothing may be among them: of those that were refused or replaced no row is
stored, so they only make a reader begin too early.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.cells import POSITION_ROW_BITS
from meterd.core.kernels.gather import LogRows
from meterd.core.kernels.segment_match import Slices
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.log_format import NOT_HERE, RECORD_HEADER_SIZE, SLICE_SIZE

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Places are less than 2^40, and nobody lives to see an index of 2^48.
PLACE_BITS: Final = 40
INDEX_BITS: Final = 48
WORD: Final = 8
NO_INDEX: Final = (1 << INDEX_BITS) - 1


class SlicePlaces:
    """The slices of all partitions in one part."""

    def __init__(self, groups: Ints, firsts: Ints, indexes: Ints) -> None:
        """Of each slice: group, place of its first row, index; in log order within a group."""
        order = np.argsort(groups, kind="stable")
        groups, self._firsts, self._indexes = groups[order], firsts[order], indexes[order]
        self._starts = np.searchsorted(groups, np.arange(PARTITION_COUNT + 1))
        self._keys = groups << PLACE_BITS | self._firsts
        # The highest index of a group so far.
        self._highest = np.maximum.accumulate(groups << INDEX_BITS | self._indexes)

    def bounds(self) -> tuple[Ints, Ints]:
        """Return the least and the greatest index of each partition; -1: it has none here."""
        low, high = np.full((2, PARTITION_COUNT), -1, np.int64)
        there = np.flatnonzero(np.diff(self._starts))
        if len(there):
            ends = self._starts[there + 1] - 1
            high[there] = self._highest[ends] & NO_INDEX
            low[there] = np.minimum.reduceat(self._indexes, self._starts[there])
            last = int(there[-1])  # the last stretch goes on to the end
            low[last] = self._indexes[self._starts[last] : self._starts[last + 1]].min()
        return low, high

    def begin(self, positions: Ints, wanted: Mask) -> int | None:
        """Return a place before which nothing of the partitions wanted is at or behind their next
        positions; None: there is nothing at all."""
        groups = np.flatnonzero(wanted)
        sought = groups << INDEX_BITS | positions[groups] >> POSITION_ROW_BITS
        found = np.searchsorted(self._highest, sought)
        found = found[found < self._starts[groups + 1]]
        return int(self._firsts[found].min()) if len(found) else None

    def first_ahead(self, positions: Ints, later: Ints) -> Ints:
        """Return the least index of each group that lies before a lower one; `NO_INDEX`: none does.

        Only what is at or behind the positions counts; `later`: the least index of each group in
        the parts behind this one.
        """
        groups, indexes, unread = self._unread_slices(positions)
        keys = groups << INDEX_BITS | np.where(unread, indexes, NO_INDEX)
        # Of each slice the least of its group from there on: the groups before have lower keys.
        least = np.minimum.accumulate(keys[::-1])[::-1]
        return _least(groups, indexes, unread & ((least < keys) | (later[groups] < indexes)))

    def least_unread(self, positions: Ints) -> Ints:
        """Return the least index of each group at or behind the positions, or `NO_INDEX`."""
        return _least(*self._unread_slices(positions))

    def _unread_slices(self, positions: Ints) -> tuple[Ints, Ints, Mask]:
        """Return group and index of each slice, and which are at or behind the positions."""
        groups = np.repeat(np.arange(PARTITION_COUNT), np.diff(self._starts))
        indexes = self._indexes[: len(groups)]
        return groups, indexes, indexes >= positions[groups] >> POSITION_ROW_BITS

    def unread(self, groups: Ints, places: Ints, positions: Ints, wanted: Mask) -> Mask:
        """Say of stored rows (partition and place) whether they are wanted and not yet read."""
        if not len(self._keys):  # all of it was refused
            return np.zeros(len(groups), np.bool_)
        at = np.searchsorted(self._keys, groups << PLACE_BITS | places, side="right") - 1
        rows = places - self._firsts[at]
        own = self._indexes[at] << POSITION_ROW_BITS | rows
        chosen: Mask = wanted[groups] & (own >= positions[groups])
        return chosen


def _least(groups: Ints, indexes: Ints, chosen: Mask) -> Ints:
    """Return the least index of each group among the chosen slices; `NO_INDEX`: there is none."""
    found = np.full(PARTITION_COUNT, NO_INDEX, np.int64)
    np.minimum.at(found, groups[chosen], indexes[chosen])
    return found


def of_segment(slices: Slices) -> SlicePlaces:
    """Return the places of a segment's slices, those of all groups."""
    groups = np.repeat(np.arange(len(slices.group) - 1), np.diff(slices.group))
    here = slices.index > 0  # one that its group did not take has no index
    return SlicePlaces(groups[here], slices.first[here], slices.index[here])


class LogPlaces(SlicePlaces):
    """The slices of a log file; it knows the partition of each row, too."""

    def __init__(self, log: LogRows) -> None:
        words = log.data[: len(log.data) // WORD * WORD].view(np.uint64)
        records = log.record_offset.astype(np.int64)
        counts = (words[(records + WORD) // WORD] >> np.uint64(32)).astype(np.int64)
        record = np.repeat(np.arange(len(records)), counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        within = np.arange(len(record)) - before
        tables = (records + RECORD_HEADER_SIZE) // WORD
        slices = tables[record] + within * (SLICE_SIZE // WORD)
        heads = words[slices]
        rows = (heads >> np.uint64(32)).astype(np.int64)
        ends = np.cumsum(rows)
        starts = ends - rows
        first_of_record = starts[before] if len(record) else starts
        firsts = log.record_row.astype(np.int64)[record] + starts - first_of_record
        groups = (heads & np.uint64(0xFFFF)).astype(np.int64)
        here = (heads >> np.uint64(16)) & np.uint64(NOT_HERE) == 0
        indexes = words[slices + 1].astype(np.int64)
        self._row_firsts, self._row_groups = firsts[rows > 0], groups[rows > 0]
        super().__init__(groups[here], firsts[here], indexes[here])

    def partitions(self, rows: Ints) -> Ints:
        """Return the partition of each row."""
        return self._row_groups[np.searchsorted(self._row_firsts, rows, side="right") - 1]
