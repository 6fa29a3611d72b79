"""Makes runs of identities (`core/kernels/runs.py`): from those in memory, and from older runs.

A run is made in blocks of lines, from its first to its last, so what is held meanwhile is bounded
whatever the size of the run.  Does not know: files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import runs as kernels
from meterd.core.kernels.memory import handle_of
from meterd.protocol.errors import InvariantViolation

Entries = NDArray[np.uint64]
Facts = NDArray[np.int64]

# Lines of one block: its entries, sorted, fit a processor's second cache.
BLOCK_LINES: Final = 2_048
# Entries that one block may take: its homes have 24 each, in sum 49,152 and a deviation of 222.
BLOCK_ENTRIES_MAX: Final = BLOCK_LINES * kernels.SLOTS_USED * 17 // 16
# So many blocks are made together: a thread that comes back from a kernel waits for its turn.
SPAN_BLOCKS: Final = 8
# Entries that a run can hold: their numbers are 32 bits.
COUNT_MAX: Final = (1 << 32) - 1
LINES_MIN: Final = 2


class Run(NamedTuple):
    """A run that can be read."""

    lines: NDArray[np.uint16]  # [(lines + SPILL_MAX) * 32]
    starts: NDArray[np.uint32]
    entries: NDArray[np.uint8]
    scan: NDArray[np.uint8]  # the same entries, for who reads all of them
    facts: Facts


class Piece(NamedTuple):
    """What a block adds to each array of a run; valid until the next block."""

    lines: NDArray[np.uint16]
    starts: NDArray[np.uint32]
    entries: NDArray[np.uint8]


class Source(NamedTuple):
    """Where the entries of a new run come from: older runs, or memory."""

    runs: Any  # handle of their arrays
    facts: NDArray[np.int64]  # [r, 8]
    states: NDArray[np.int64]  # [r, 3]: how far each is read
    horizon_day: int  # what is older is left out
    entries: Entries  # of memory, those of each block together
    ends: NDArray[np.int64]  # where they end there, by block


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


def memory_source(entries: Entries, facts: Facts, room: Entries) -> Source:
    """Return entries of memory, in any order, as a source; it uses `room`, as large as they are."""
    split = room[: len(entries)]
    ends = np.empty(-(-int(facts[kernels.LINES]) // BLOCK_LINES), np.int64)
    kernels.split_blocks(entries, facts, BLOCK_LINES, split, ends)
    return Source(*handle_of_runs([]), np.zeros((0, 3), np.int64), 0, split, ends)


def merge_source(runs: list[Run], horizon_day: int) -> Source:
    """Return older runs, which must be kept meanwhile, as a source; without what has expired."""
    states = np.zeros((len(runs), 3), np.int64)
    none = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
    return Source(*handle_of_runs(runs, scan=True), states, horizon_day, *none)


class RunMaker:
    """Makes one run."""

    def __init__(self, facts: Facts) -> None:
        """`facts` from `make_facts`; its COUNT is right when all pieces were taken."""
        self.facts = facts
        # A run of few lines needs no room for more.
        self._blocks = min(SPAN_BLOCKS, -(-int(facts[kernels.LINES]) // BLOCK_LINES))
        lines = self._blocks * BLOCK_LINES + kernels.SPILL_MAX
        self._lines = np.zeros((lines, kernels.LINE_WORDS), np.uint16)
        self._starts = np.zeros(lines, np.uint32)
        room = (self._blocks + 1) * BLOCK_ENTRIES_MAX
        self._entries = np.zeros(room * entry_size(facts) + 8, np.uint8)
        self._work = (
            # What the last block had no line for comes first in the next.
            np.empty((2 * BLOCK_ENTRIES_MAX, 2), np.uint64),
            np.empty((BLOCK_ENTRIES_MAX, 2), np.uint64),
            np.empty(BLOCK_LINES * kernels.LINE_PARTS + 1, np.int64),
        )

    def pieces(self, source: Source) -> Iterator[Piece]:
        """Yield the run."""
        facts, state = self.facts, np.zeros(3, np.int64)
        total, left, step = int(facts[kernels.LINES]), 0, self._blocks * BLOCK_LINES
        for first in range(0, total, step):
            last = min(first + step, total)
            count = last - first + (kernels.SPILL_MAX if last == total else 0)
            piece = Piece(self._lines[:count], self._starts[:count], self._entries)
            piece.lines[:] = 0
            span = (first, last, BLOCK_LINES, left)
            made = kernels.make_blocks(tuple(source), facts, span, self._work, tuple(piece), state)
            left, size = int(made[0]), int(made[1])
            if left < 0:
                break
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


def handle_of_runs(runs: list[Run], scan: bool = False) -> tuple[Any, NDArray[np.int64]]:
    """Return the handle of runs, which keeps nothing alive, and their facts (int64[r, 8]).

    scan: for who reads all of them.
    """
    facts = np.array([run.facts for run in runs], np.int64).reshape(-1, kernels.FACT_WORDS)
    if not runs:
        return np.zeros((0, 2), np.int64), facts
    entries = [run.scan if scan else run.entries for run in runs]
    arrays = zip((run.lines for run in runs), (run.starts for run in runs), entries, strict=True)
    return handle_of(tuple(array for of_run in arrays for array in of_run)), facts
