"""The filter of all identities in runs, and how it grows (`core/kernels/bloom.py`).

It takes 1.8 bytes an identity when it is made and 1.2 when it is full.  Then a sweep fills a
larger one in turns, while everything else goes on; a start does the same, from nothing.  A growing
node reads each identity three times for it.

Who sweeps calls `begin`, then `fill` and `move_edge` in turns until `sweeping` is False.  `add` and
`fill` may run beside a thread that applies records, one of them at a time; everything else only in
that thread.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import bloom as kernels
from meterd.core.kernels.bloom import EDGE, FILTER_WORDS, STEP_LINES, Filter, no_filter
from meterd.core.kernels.memory import give_back, reserve
from meterd.core.state.identity_runs import Entries, Run, handle_of_runs

# Identities of a line in a new filter, and in a full one.
NEW_KEYS: Final = 36
FULL_KEYS: Final = 54
# Lines of the smallest filter: 16 MB, for 14 million identities.
LINES_MIN: Final = 1 << 18
# One turn of a sweep fills about so many identities' lines: a tenth of a second.
TURN_KEYS: Final = 6_000_000
# Identities that one step of it reads from one run, at first.
ROOM: Final = STEP_LINES * FULL_KEYS * 2
NONE: Final = np.zeros((0, 2), np.uint64)


class IdentityFilter:
    """See the module."""

    def __init__(self, lines_min: int = LINES_MIN, turn_keys: int = TURN_KEYS) -> None:
        self.arrays: Filter = no_filter()
        self._lines_min, self._turn_keys = lines_min, turn_keys
        self._turn = (0, 0)  # lines that `fill` fills
        self._step = 0
        self._make_room(0)

    @property
    def sweeping(self) -> bool:
        """Is there another turn to do?"""
        return int(self.arrays.facts[EDGE]) < _lines(self.arrays.words)

    def is_full(self, count: int) -> bool:
        """Must it grow to hold so many identities?"""
        return count > _lines(self.arrays.words) * FULL_KEYS

    def begin(self, count: int) -> None:
        """Begin a sweep, for so many identities.  `arrays` are others from then on."""
        lines = max(self._lines_min, -(-count // NEW_KEYS))
        words = reserve((lines * FILTER_WORDS,), np.uint64, large_pages=True)
        # What it said of the older one is said of this one at its edge, 0.
        self.arrays = Filter(words, self.arrays.words, np.zeros(2, np.int64))
        self._step = max(1, lines * self._turn_keys // count // STEP_LINES) * STEP_LINES
        self._make_room(ROOM)

    def add(self, entries: Entries) -> None:
        """Remember the identities of entries."""
        kernels.add_entries(tuple(self.arrays), entries)

    def fill(self, runs: list[Run], entries: Entries | None, horizon_day: int) -> None:
        """Do a turn of the sweep: fill some lines with identities of all runs and of entries."""
        words, _, facts = self.arrays
        entries = NONE if entries is None else entries
        first = int(facts[EDGE])
        self._turn = (first, min(first + self._step, _lines(words)))
        handle = handle_of_runs(runs, scan=True)
        while not kernels.fill_filter(words, self._turn, handle, entries, horizon_day, self._work):
            self._make_room(2 * len(self._work[1]))  # many more have come since it began

    def move_edge(self) -> bool:
        """Use what the last `fill` has filled; return whether `arrays` are others now."""
        words, older, facts = self.arrays
        edge = self._turn[1]
        facts[EDGE] = edge
        if edge < _lines(words):
            if len(older):
                line = edge * _lines(older) // _lines(words)  # all before it lie before the edge
                give_back(older, line * FILTER_WORDS * older.itemsize)
            return False
        self.arrays = Filter(words, no_filter().words, facts)
        self._make_room(0)
        return True

    def _make_room(self, count: int) -> None:
        self._work = (np.zeros(3, np.int64), np.empty((count, 2), np.uint64))


def _lines(words: NDArray[np.uint64]) -> int:
    return len(words) // FILTER_WORDS
