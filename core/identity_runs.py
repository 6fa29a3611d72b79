"""Makes runs of identities (`core/kernels/runs.py`): from those in memory, and from older runs.

A run is made in blocks of lines, from its first to its last, so what is held meanwhile is bounded
whatever the size of the run.  Does not know: files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import runs as kernels
from meterd.protocol.errors import InvariantViolation

Entries = NDArray[np.uint64]
Facts = NDArray[np.int64]

# Lines of one block: its entries, sorted, fit a processor's second cache.
BLOCK_LINES: Final = 2_048
# Entries that one block may take: its homes have 24 each, in sum 49,152 and a deviation of 222.
BLOCK_ENTRIES_MAX: Final = BLOCK_LINES * kernels.SLOTS_USED * 17 // 16
# Who only reads a run takes so many blocks at once.
READ_BLOCKS: Final = 8
ENTRY_SIZE_MAX: Final = 8 + kernels.DIGEST_BYTES + 2
# Entries that a run can hold: their numbers are 32 bits.
COUNT_MAX: Final = (1 << 32) - 1
LINES_MIN: Final = 2
WORD_BITS: Final = 64


class Run(NamedTuple):
    """A run that can be read."""

    lines: NDArray[np.uint16]  # [(lines + SPILL_MAX) * 32]
    starts: NDArray[np.uint32]
    entries: NDArray[np.uint8]
    facts: Facts


class Piece(NamedTuple):
    """What a block adds to each array of a run; valid until the next block."""

    lines: NDArray[np.uint16]
    starts: NDArray[np.uint32]
    entries: NDArray[np.uint8]


class Source(Protocol):
    """Where the entries of a new run come from, in blocks."""

    def take(self, facts: Facts, block: tuple[int, int], out: Entries) -> int:
        """Write the sorted entries whose homes lie in lines first..last; return how many."""


def make_facts(count: int, first_day: int, newest_day: int) -> Facts:
    """Return the facts of a new run of at most `count` entries."""
    if count > COUNT_MAX:
        raise InvariantViolation(f"a run of {count} identities")
    lines = max(LINES_MIN, -(-count // kernels.SLOTS_USED))
    # Keys whose homes are at most SPILL_MAX lines apart are told apart by so many low bytes.
    apart = (kernels.SPILL_MAX + 1) * -(-(1 << 32) // lines) << 32
    facts = np.zeros(kernels.FACT_WORDS, np.int64)
    facts[kernels.LINES] = lines
    facts[kernels.KEY_BYTES] = min(8, -(-(apart - 1).bit_length() // 8))
    facts[kernels.DAY_BYTES] = 1 if newest_day - first_day < 256 else 2
    facts[kernels.FIRST_DAY], facts[kernels.NEWEST_DAY] = first_day, newest_day
    return facts


def entry_size(facts: Facts) -> int:
    """Return the bytes of one entry."""
    return int(facts[kernels.KEY_BYTES] + kernels.DIGEST_BYTES + facts[kernels.DAY_BYTES])


class MemorySource:
    """Entries of memory, in any order."""

    def __init__(self, entries: Entries, facts: Facts, room: Entries) -> None:
        """`room` has the shape of `entries` and is worked in."""
        self._entries = room[: len(entries)]
        self._ends = np.empty(-(-int(facts[kernels.LINES]) // BLOCK_LINES), np.int64)
        kernels.split_blocks(entries, facts, BLOCK_LINES, self._entries, self._ends)
        self._sorting = _Sorting()

    def take(self, facts: Facts, block: tuple[int, int], out: Entries) -> int:
        """See Source."""
        number = block[0] // BLOCK_LINES
        first = int(self._ends[number - 1]) if number else 0
        taken = self._entries[first : int(self._ends[number])]
        if len(taken) > len(out):
            raise InvariantViolation("keys of identities are not uniform")
        out[: len(taken)] = taken
        self._sorting.sort(out[: len(taken)], facts, block)
        return len(taken)


def blocks_of(run: Run, horizon_day: int) -> Iterator[Entries]:
    """Yield the entries of a run that have not expired; each block is valid until the next."""
    state = np.zeros(3, np.int64)
    out = np.empty((READ_BLOCKS * BLOCK_ENTRIES_MAX, 2), np.uint64)
    lines, step = int(run.facts[kernels.LINES]), READ_BLOCKS * BLOCK_LINES
    for first in range(0, lines, step):
        yield out[: _take(run, state, (first + step, lines), horizon_day, out)]


def _take(run: Run, state: Any, end: tuple[int, int], horizon_day: int, out: Entries) -> int:
    """Copy entries of a run before the line end[0] of a run of end[1] lines; return how many."""
    key = np.uint64(kernels.end_of_block(*end))
    arrays = (run.lines, run.starts, run.entries)
    taken = int(kernels.take_entries(arrays, run.facts, state, key, horizon_day, out))
    if taken < 0:
        raise InvariantViolation("keys of identities are not uniform")
    return taken


class _Sorting:
    """Sorts the entries of one block, in memory kept for it."""

    def __init__(self) -> None:
        self._room = np.empty((BLOCK_ENTRIES_MAX, 2), np.uint64)
        self._places = np.empty(BLOCK_LINES + 1, np.int64)

    def sort(self, entries: Entries, facts: Facts, block: tuple[int, int]) -> None:
        places = self._places[: block[1] - block[0] + 1]
        kernels.sort_block(entries, facts, block, self._room, places)


class MergeSource:
    """Older runs, without what has expired."""

    def __init__(self, runs: list[Run], horizon_day: int) -> None:
        self._runs = runs
        self._horizon_day = horizon_day
        self._states = np.zeros((len(runs), 3), np.int64)
        self._sorting = _Sorting()

    def take(self, facts: Facts, block: tuple[int, int], out: Entries) -> int:
        """See Source."""
        end, count = (block[1], int(facts[kernels.LINES])), 0
        for run, state in zip(self._runs, self._states, strict=True):
            count += _take(run, state, end, self._horizon_day, out[count:])
        self._sorting.sort(out[:count], facts, block)
        return count


class RunMaker:
    """Makes one run."""

    def __init__(self, facts: Facts) -> None:
        """`facts` from `make_facts`; its COUNT is right when all pieces were taken."""
        self.facts = facts
        lines = BLOCK_LINES + kernels.SPILL_MAX
        self._lines = np.zeros((lines, kernels.LINE_WORDS), np.uint16)
        self._starts = np.zeros(lines, np.uint32)
        self._entries = np.zeros(2 * BLOCK_ENTRIES_MAX * ENTRY_SIZE_MAX + 8, np.uint8)
        # What the last block had no line for comes first in the next.
        self._sorted = np.empty((2 * BLOCK_ENTRIES_MAX, 2), np.uint64)

    def pieces(self, source: Source) -> Iterator[Piece]:
        """Yield the run."""
        facts, state = self.facts, np.zeros(3, np.int64)
        total, left = int(facts[kernels.LINES]), 0
        for first in range(0, total, BLOCK_LINES):
            last = min(first + BLOCK_LINES, total)
            homes = (first, last)
            if last == total:
                last += kernels.SPILL_MAX
            room = self._sorted[left : left + BLOCK_ENTRIES_MAX]
            count = left + source.take(facts, homes, room)
            piece = Piece(self._lines[: last - first], self._starts[: last - first], self._entries)
            piece.lines[:] = 0
            entries = self._sorted[:count]
            taken, size = kernels.fill_lines(entries, facts, (first, last), tuple(piece), state)
            left = count - int(taken)
            self._sorted[:left] = self._sorted[taken:count].copy()
            yield piece._replace(entries=self._entries[:size])
        if left or state[kernels.SPILLED] > kernels.SPILL_MAX:
            raise InvariantViolation("keys of identities are not uniform")
        facts[kernels.COUNT] = state[kernels.RANK]


def facts_of_entries(entries: Entries) -> Facts:
    """Return the facts of a run of entries in memory."""
    first_day, newest_day = kernels.days_of(entries)
    return make_facts(len(entries), int(first_day), int(newest_day))


def facts_of_merge(runs: list[Run], horizon_day: int) -> Facts:
    """Return the facts of a run that takes the place of others."""
    facts = [run.facts for run in runs]
    first_day = max(horizon_day, min(int(fact[kernels.FIRST_DAY]) for fact in facts))
    newest_day = max(int(fact[kernels.NEWEST_DAY]) for fact in facts)
    count = sum(int(fact[kernels.COUNT]) for fact in facts)
    return make_facts(count, min(first_day, newest_day), newest_day)


def run_arrays(runs: list[Run]) -> tuple[Any, ...]:
    """Return the arrays of runs in the order of their handle."""
    return tuple(array for run in runs for array in (run.lines, run.starts, run.entries))
