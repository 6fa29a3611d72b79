"""One filter in front of all identities: most events are new, and one cache line says so.

A blocked Bloom filter (Putze, Sanders and Singler 2007): a key has one line of 64 bytes, found as
in a run, and five bits of it, from parts of the key that do not choose the line.  At 40 keys a
line, 1.6 bytes each, one look-up in 250 of what it does not hold says "perhaps"; at half of that,
one in 4,000.  (At 64 keys it would be one in 43, and each "perhaps" looks into every run, for some
microseconds together.)  Nothing is ever taken out of it; it is made anew, larger, when it is full.

A filter is u64[8 lines]; one without lines says "perhaps" to everything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import prefetch
from meterd.core.kernels.runs import home_line

Array = Any
_U64 = np.uint64

FILTER_WORDS = 8
FILTER_KEYS = 40  # of one line, when the filter is full
_BIT = np.uint64(511)


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
def add_key(words: Array, k0: Any, k1: Any) -> None:
    """Remember a key."""
    lines = len(words) // FILTER_WORDS
    if lines == 0:
        return
    base = home_line(k0, lines) * FILTER_WORDS
    for bit in _bits(k0, k1):
        words[base + np.int64(bit >> _U64(6))] |= _U64(1) << (bit & _U64(63))


@njit(cache=True, forceinline=True, _nrt=False)
def _may_hold(words: Array, base: int, k0: Any, k1: Any) -> Any:
    held = _U64(1)
    for bit in _bits(k0, k1):
        held &= words[base + np.int64(bit >> _U64(6))] >> (bit & _U64(63))
    return held


@njit(cache=True, _nrt=False)
def ask_filter(words: Array, hashes: Array, rows: int) -> None:
    """Ask for the line of each row's key (hashes u64[b, >= 4], columns 2 and 3)."""
    lines = len(words) // FILTER_WORDS
    if lines:
        in_lines = words.reshape(-1, FILTER_WORDS)
        for j in range(rows):
            prefetch(in_lines, home_line(hashes[j, 2], lines))


@njit(cache=True, _nrt=False)
def candidates(words: Array, hashes: Array, rows: int, out: Array) -> Any:
    """Write which rows' keys may be held (int64[b]); return how many."""
    lines = len(words) // FILTER_WORDS
    found = np.int64(0)
    for j in range(rows):
        k0, k1 = hashes[j, 2], hashes[j, 3]
        out[found] = j
        if lines == 0:
            found += 1
        else:
            found += np.int64(_may_hold(words, home_line(k0, lines) * FILTER_WORDS, k0, k1))
    return found


@njit(cache=True, nogil=True, _nrt=False)
def add_entries(words: Array, entries: Array) -> None:
    """Remember the keys of entries (u64[n, 2], see kernels/runs.py)."""
    for i in range(len(entries)):
        add_key(words, entries[i, 0], entries[i, 1])
