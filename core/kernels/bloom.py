"""One filter in front of all runs: most events are new, and one cache line says so.

A blocked Bloom filter (Putze, Sanders and Singler 2007): a key has one line of 64 bytes, found as
in a run, and five bits of it, from parts of the key that do not choose the line.  Of what it does
not hold one look-up in 800 says "perhaps" at 30 keys a line (2.1 bytes each), one in 55 at 60, and
then every run is looked at.  Nothing is ever taken out of it.

A filter grows by a *sweep*: a larger one is filled line by line, from the least key on, out of the
runs, which have their keys in that order.  Keys whose line in the new one lies before the *edge*
are looked for there, all others still in the older one, whose memory is given back piece by piece.
So there is one filter at any time, and no key is ever without one.

  words, older  u64[8 lines each]; one without lines says "perhaps" to everything
  facts         int64[2]: the edge, a line of `words`; is what is being flushed in the filter?
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import prefetch
from meterd.core.kernels.memory import column_at
from meterd.core.kernels.runs import ARRAYS, end_of_block, first_key, home_line, seek, take_entries

Array = Any
_U64 = np.uint64

FILTER_WORDS = 8
# So many lines are filled from one run before the next: they stay in the cache.
STEP_LINES = 2_048
# So many entries are asked for ahead of the one that is added.
AHEAD = 24
_BIT = np.uint64(511)

EDGE, HAS_FLUSHING = range(2)


class Filter(NamedTuple):
    """See the module."""

    words: Array
    older: Array
    facts: Array


def no_filter() -> Filter:
    """Return a filter that knows nothing, and says "perhaps" to everything."""
    return Filter(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(2, np.int64))


@njit(cache=True, forceinline=True, _nrt=False)
def filter_at(handle: Array, place: int) -> Any:
    """Return a view of the filter whose arrays begin at a place of a handle."""
    return Filter(
        column_at(handle, place, np.uint64),
        column_at(handle, place + 1, np.uint64),
        column_at(handle, place + 2, np.int64),
    )


@njit(cache=True, forceinline=True, _nrt=False)
def _bits(k0: Any, k1: Any) -> Any:
    """Return five places among the bits of a line."""
    tag = k1 >> _U64(48)
    return (
        k0 & _BIT,
        (k0 >> _U64(9)) & _BIT,
        (k0 >> _U64(18)) & _BIT,
        tag & _BIT,
        (tag >> _U64(7)) & _BIT,
    )


@njit(cache=True, forceinline=True, _nrt=False)
def _add(words: Array, line: int, k0: Any, k1: Any) -> None:
    base = line * FILTER_WORDS
    for bit in _bits(k0, k1):
        words[base + np.int64(bit >> _U64(6))] |= _U64(1) << (bit & _U64(63))


@njit(cache=True, forceinline=True, _nrt=False)
def _may_hold(words: Array, line: int, k0: Any, k1: Any) -> Any:
    base = line * FILTER_WORDS
    held = _U64(1)
    for bit in _bits(k0, k1):
        held &= words[base + np.int64(bit >> _U64(6))] >> (bit & _U64(63))
    return np.int64(held)


@njit(cache=True, _nrt=False)
def ask_filter(filter: Any, hashes: Array, rows: int) -> None:
    """Ask for the line of each row's key (hashes u64[b, >= 4], columns 2 and 3)."""
    words, older, facts = filter
    lines, older_lines = len(words) // FILTER_WORDS, len(older) // FILTER_WORDS
    in_words, in_older = words.reshape(-1, FILTER_WORDS), older.reshape(-1, FILTER_WORDS)
    for j in range(rows):
        line = home_line(hashes[j, 2], lines)
        if line < facts[EDGE]:
            prefetch(in_words, line)
        elif older_lines:
            prefetch(in_older, home_line(hashes[j, 2], older_lines))


@njit(cache=True, _nrt=False)
def candidates(filter: Any, hashes: Array, rows: int, out: Array) -> Any:
    """Write which rows' keys may be held (int64[b]); return how many."""
    words, older, facts = filter
    lines, older_lines = len(words) // FILTER_WORDS, len(older) // FILTER_WORDS
    found = np.int64(0)
    for j in range(rows):
        k0, k1 = hashes[j, 2], hashes[j, 3]
        line = home_line(k0, lines)
        held = np.int64(1)
        if line < facts[EDGE]:
            held = _may_hold(words, line, k0, k1)
        elif older_lines:
            held = _may_hold(older, home_line(k0, older_lines), k0, k1)
        out[found] = j
        found += held
    return found


@njit(cache=True, nogil=True, _nrt=False)
def add_entries(filter: Any, entries: Array) -> None:
    """Remember the keys of entries (u64[n, 2], see kernels/runs.py)."""
    words, older, facts = filter
    lines, older_lines = len(words) // FILTER_WORDS, len(older) // FILTER_WORDS
    in_words, in_older = words.reshape(-1, FILTER_WORDS), older.reshape(-1, FILTER_WORDS)
    count = len(entries)
    for i in range(count):
        ahead = entries[min(i + AHEAD, count - 1), 0]
        line = home_line(ahead, lines)
        if line < facts[EDGE]:
            prefetch(in_words, line)
        elif older_lines:
            prefetch(in_older, home_line(ahead, older_lines))
        k0, k1 = entries[i, 0], entries[i, 1]
        line = home_line(k0, lines)
        if line < facts[EDGE]:
            _add(words, line, k0, k1)
        elif older_lines:
            _add(older, home_line(k0, older_lines), k0, k1)


@njit(cache=True, nogil=True, _nrt=False)
def fill_filter(
    words: Array, span: Any, runs: Any, entries: Array, horizon_day: int, work: Any
) -> Any:
    """Add the keys whose lines are first..last: of runs, if they have not expired, and entries.

    words u64[8 lines]; span (first, last); runs (handle of their arrays, facts int64[r, 8]);
    entries u64[n, 2] in any order; int64[3] and u64[m, 2] are worked in.  Returns whether m was
    enough.
    """
    first, last = span
    handle, facts = runs
    lines = len(words) // FILTER_WORDS
    state, room = work
    for begin in range(first, last, STEP_LINES):
        step_end = min(begin + STEP_LINES, last)
        low, end = first_key(begin, lines), end_of_block(step_end, lines)
        for r in range(len(facts)):
            run = (
                column_at(handle, ARRAYS * r, np.uint16),
                column_at(handle, ARRAYS * r + 1, np.uint32),
                column_at(handle, ARRAYS * r + 2, np.uint8),
            )
            seek(run, facts[r], low, state)
            taken = take_entries(run, facts[r], state, end, horizon_day, room)
            if taken < 0:
                return False
            for i in range(taken):
                _add(words, home_line(room[i, 0], lines), room[i, 0], room[i, 1])
    for i in range(len(entries)):
        line = home_line(entries[i, 0], lines)
        if line >= first and line < last:
            _add(words, line, entries[i, 0], entries[i, 1])
    return True
