"""Cells as they were at one moment, handed out in turns while they go on to change.

A snapshot covers the rows there are when it begins.  They are copied out in order; a row that is
about to change before its turn is *kept* first, once.  So nothing has to be copied at once, and
memory holds twice only what changes meanwhile (copy on update; Cao et al., SIGMOD 2011).

  kept   int64[n, 16]   rows as they were
  place  int32[n]       where a row is kept, plus 1; 0: it has not changed
  facts  int64[3]       rows covered (0: there is no snapshot), rows copied out, rows kept
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.kernels.memory import column_at, reserve, rows_at

Array = Any

COVERED, COPIED, KEPT = range(3)


class CellSnapshot(NamedTuple):
    """See the module."""

    kept: Array
    place: Array
    facts: Array


def make_snapshot(rows: int) -> CellSnapshot:
    """Return what snapshots of up to so many rows need; none is under way."""
    return CellSnapshot(
        reserve((rows, CELL_WORDS), np.int64), reserve((rows,), np.int32), np.zeros(3, np.int64)
    )


@njit(cache=True, forceinline=True, _nrt=False)
def snapshot_at(handle: Array, place: int) -> Any:
    """Return a view of the snapshot whose arrays begin at a place of a handle."""
    return CellSnapshot(
        rows_at(handle, place, CELL_WORDS, np.int64),
        column_at(handle, place + 1, np.int32),
        column_at(handle, place + 2, np.int64),
    )


@njit(cache=True, forceinline=True, _nrt=False)
def before_change(snapshot: Any, cells: Array, c: int) -> None:
    """Keep a row that is about to change, if the snapshot still needs it."""
    facts = snapshot.facts
    if c < facts[COVERED] and c >= facts[COPIED] and snapshot.place[c] == 0:
        number = facts[KEPT]
        facts[KEPT] = number + 1
        for word in range(CELL_WORDS):
            snapshot.kept[number, word] = cells[c, word]
        snapshot.place[c] = number + 1


@njit(cache=True, _nrt=False)
def copy_out(snapshot: Any, cells: Array, out: Array) -> Any:
    """Write the next rows of the snapshot, as many as out (int64[n, 16]) takes; return how many."""
    facts = snapshot.facts
    first = facts[COPIED]
    last = min(facts[COVERED], first + len(out))
    for c in range(first, last):
        number = snapshot.place[c]
        if number:
            snapshot.place[c] = 0
            for word in range(CELL_WORDS):
                out[c - first, word] = snapshot.kept[number - 1, word]
        else:
            for word in range(CELL_WORDS):
                out[c - first, word] = cells[c, word]
    facts[COPIED] = last
    return last - first
