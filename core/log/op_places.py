"""Says where in the log files the ops of each group lie, for followers that are behind.

Nothing is kept while nobody asks: a file is indexed when it is looked in, from the slice tables of
its records.  The newest place of an op is the right one, because only committed ops are asked for,
and what replaced an op was written later.  So files are looked through from the newest back to the
oldest, until the first op that is wanted is found.

Memory: 12 bytes an op, `ENTRIES_MAX` ops; beyond it the files that were used longest ago are
indexed anew when they are needed.  What stays of each file is which ops it has (4 KiB).

Invariants:
  * keys of a file ascend, and each is there once
  * a file that is not the newest does not grow

Does not know: files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import scan
from meterd.core.kernels import segment_rows as kernels
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import (
    FILE_HEADER_SIZE,
    GROUP_COUNT,
    RECORD_HEADER_SIZE,
    SLICE_SIZE,
)

# 48 MiB.  A file of 64 MiB with records of 500 events has some 300 000 ops.
ENTRIES_MAX: Final = 4 << 20
# Flag of a slice: the record was not taken for this group.
NOT_HERE: Final = 1

# A key is group << 48 | index: nobody lives to see an index beyond that.
INDEX_BITS: Final = 48
# Records lie at multiples of 8.
UNIT: Final = 8
WORD: Final = 8
# What in the state of a walk is a place in the file.
PLACES: Final = [scan.AT, scan.BLOCK_END, scan.BLOCK_AT]

Words = NDArray[np.uint64]


class OpPlace(NamedTuple):
    """Where an op lies: a file's number, and the offset of its record there."""

    file_number: int
    offset: int


class Found:
    """Where ops of a group lie."""

    def __init__(self) -> None:
        self._files: list[tuple[int, dict[int, int]]] = []  # number, offsets by index; newest first

    def add(self, file_number: int, offsets: dict[int, int]) -> None:
        """Add those of an older file."""
        self._files.append((file_number, offsets))

    def get(self, index: int) -> OpPlace | None:
        """Return the newest place of an op."""
        for number, offsets in self._files:
            if index in offsets:
                return OpPlace(number, offsets[index])
        return None


class FileIndex:
    """Where the ops of one log file lie; `take` for each window of it, in order."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._state = np.zeros(5, np.int64)
        self._state[scan.BLOCK_END] = FILE_HEADER_SIZE
        self._new: list[tuple[Words, NDArray[np.uint32]]] = []
        self._keys: Words = np.empty(0, np.uint64)
        self._places: NDArray[np.uint32] = np.empty(0, np.uint32)
        self.low: Words = np.zeros(GROUP_COUNT, np.uint64)  # first and last index of each group
        self.high: Words = np.zeros(GROUP_COUNT, np.uint64)  # 0: it has none here

    @property
    def end(self) -> int:
        """Where the last block taken ends."""
        return int(self._state[scan.BLOCK_END])

    @property
    def size(self) -> int:
        """How many ops it knows, those that replaced each other counted as one."""
        self._sort()
        return len(self._keys)

    def take(self, data: NDArray[np.uint8], begin: int) -> None:
        """Take what the file holds from `begin` on: its next whole blocks.  Raises Corrupt."""
        self._state[PLACES] -= begin
        listed = np.empty((len(data) // RECORD_HEADER_SIZE + 1, 3), np.int64)
        try:
            count = int(kernels.list_records(frozen(data), len(data), self._state, listed))
            if count < 0:
                at = int(self._state[scan.AT]) + begin
                raise Corrupt(self._path, at, "no record of a log (places)")
        finally:
            self._state[PLACES] += begin
        words = data[: len(data) // WORD * WORD].view(np.uint64)
        self._add(words, listed[:count, 0], begin)

    def _add(self, words: Words, records: NDArray[np.int64], begin: int) -> None:
        """Add the slices of records at these offsets in the window, given as words."""
        counts = (words[(records + 8) // WORD] >> np.uint64(32)).astype(np.int64)
        firsts = np.cumsum(counts) - counts
        within = np.arange(int(counts.sum())) - np.repeat(firsts, counts)
        tables = (records + RECORD_HEADER_SIZE) // WORD
        slices = np.repeat(tables, counts) + within * (SLICE_SIZE // WORD)
        kinds, index = words[slices], words[slices + 1]
        group = kinds & np.uint64(0xFFFF)
        flags = (kinds >> np.uint64(16)).astype(np.uint16)
        here = flags & NOT_HERE == 0
        keys = (group << np.uint64(INDEX_BITS) | index)[here]
        places = ((np.repeat(records, counts) + begin) // UNIT).astype(np.uint32)[here]
        self._new.append((keys, places))

    def find(self, group: int, first: int, last: int) -> tuple[list[int], list[int]]:
        """Return which ops of a group from `first` to `last` are here, rising, and the offsets."""
        self._sort()
        base = group << INDEX_BITS
        bounds = np.array([base | first, base | last], np.uint64)
        start = int(self._keys.searchsorted(bounds[0]))
        stop = int(self._keys.searchsorted(bounds[1], "right"))
        found = (self._keys[start:stop] - np.uint64(base)).astype(np.int64)
        return found.tolist(), (self._places[start:stop].astype(np.int64) * UNIT).tolist()

    def _sort(self) -> None:
        """Put what is new in its place; of an op that is there twice the later one stays."""
        if not self._new:
            return
        keys = np.concatenate([self._keys, *[keys for keys, _ in self._new]])
        places = np.concatenate([self._places, *[places for _, places in self._new]])
        self._new = []
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        latest = np.append(keys[1:] != keys[:-1], True)[: len(keys)]
        self._keys, self._places = keys[latest], places[latest]
        groups = (self._keys >> np.uint64(INDEX_BITS)).astype(np.int64)
        indices = self._keys & np.uint64((1 << INDEX_BITS) - 1)
        starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])[: len(groups)])
        ends = np.append(starts[1:], len(groups))[: len(starts)] - 1
        self.low[groups[starts]], self.high[groups[ends]] = indices[starts], indices[ends]


class _Span(NamedTuple):
    """Which ops a full file has of each group."""

    low: Words
    high: Words

    def holds(self, group: int, first: int, last: int) -> bool:
        """May it have an op of a group between these indices?"""
        return bool(self.high[group]) and self.low[group] <= last and first <= self.high[group]


class OpPlaces:
    """The places of the ops in all log files there are."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._indexes: OrderedDict[int, FileIndex] = OrderedDict()  # used last is last
        self._spans: dict[int, _Span] = {}

    def index_of(self, file_number: int) -> FileIndex | None:
        """Return the index of a file if it is in memory."""
        return self._indexes.get(file_number)

    def put(self, file_number: int, index: FileIndex, full: bool) -> None:
        """Keep the index of a file, which grows no more if it is full."""
        held = sum(one.size for one in self._indexes.values()) + index.size
        self._indexes[file_number] = index
        self._indexes.move_to_end(file_number)
        if full:
            self._spans[file_number] = _Span(index.low.copy(), index.high.copy())
        while held > self._entries_max and len(self._indexes) > 1:
            _, dropped = self._indexes.popitem(last=False)
            held -= dropped.size

    def gone(self, before: int) -> None:
        """Files with lower numbers are no more."""
        for kept in (self._indexes, self._spans):
            for number in [number for number in kept if number < before]:
                del kept[number]

    def search(
        self, group: int, first: int, last: int, oldest: int, newest: int
    ) -> Generator[int, FileIndex, Found]:
        """Return where ops first to last lie, those at least that follow `first` without a gap.

        The op before `first` is in the answer if that needed no look into another file.
        Yields the number of each file that must be indexed meanwhile, and is sent its index.  What
        is in no file between `oldest` and `newest` is not in the answer.
        """
        found = Found()
        for number in range(newest, oldest - 1, -1):
            span, index = self._spans.get(number), self._indexes.get(number)
            if span is not None and not span.holds(group, first, last):
                continue
            if index is None or (span is None and number < newest):
                index = yield number
            self._indexes.move_to_end(number)
            offsets = dict(zip(*index.find(group, first - 1, last), strict=True))
            found.add(number, offsets)
            if first in offsets:
                break
        return found
