"""A cell: what is kept of all events of one series in one period.

Cells are rows of 16 signed 64-bit integers.  The sum is a signed 128-bit integer in two words;
latest and first are ordered by (timestamp, position), where position = op index << 20 | row within
the slice, so "position in the log" is one number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

Array = Any

SERIES, PERIOD_START, COUNT, SUM_LO, SUM_HI, MIN, MAX = range(7)
LATEST_TS, LATEST_POS, LATEST_VALUE, FIRST_TS, FIRST_POS, FIRST_VALUE = range(7, 13)
UNIQUE, FIRST_MEMBER, NEXT_CELL = 13, 14, 15
CELL_WORDS = 16
# What every event changes are the eight words from here on: `make_tables` lays them into one line
# of the cache.
HOT = COUNT

POSITION_ROW_BITS = 20

_INT64_MIN = np.iinfo(np.int64).min
_INT64_MAX = np.iinfo(np.int64).max


@njit(cache=True, _nrt=False)
def clear_cell(cells: Array, c: int) -> None:
    """Make cell `c` the cell of no events; chains end in -1."""
    cells[c, :] = 0
    cells[c, MIN] = _INT64_MAX
    cells[c, MAX] = _INT64_MIN
    cells[c, FIRST_MEMBER] = -1
    cells[c, NEXT_CELL] = -1


@njit(cache=True, forceinline=True, _nrt=False)
def _add_128(cells: Array, c: int, low: int, high: int) -> None:
    before = np.uint64(cells[c, SUM_LO])
    after = before + np.uint64(low)
    cells[c, SUM_LO] = np.int64(after)
    cells[c, SUM_HI] += high + np.int64(after < before)


@njit(cache=True, forceinline=True, _nrt=False)
def update_cell(cells: Array, c: int, timestamp: int, position: int, value: int) -> None:
    """Count one event into cell `c`."""
    first = cells[c, COUNT] == 0
    cells[c, COUNT] += 1
    _add_128(cells, c, value, -1 if value < 0 else 0)
    if value < cells[c, MIN]:
        cells[c, MIN] = value
    if value > cells[c, MAX]:
        cells[c, MAX] = value
    at, pos = cells[c, LATEST_TS], cells[c, LATEST_POS]
    if first or timestamp > at or (timestamp == at and position > pos):
        cells[c, LATEST_TS] = timestamp
        cells[c, LATEST_POS] = position
        cells[c, LATEST_VALUE] = value
    if not first and timestamp > at:
        return  # behind the latest: so it is not the first, whose line need not be read
    at, pos = cells[c, FIRST_TS], cells[c, FIRST_POS]
    if first or timestamp < at or (timestamp == at and position < pos):
        cells[c, FIRST_TS] = timestamp
        cells[c, FIRST_POS] = position
        cells[c, FIRST_VALUE] = value


@njit(cache=True)
def merge_cell(cells: Array, c: int, others: Array, o: int) -> None:
    """Add what cell `o` of `others` counted to cell `c` (members are not merged)."""
    if others[o, COUNT] == 0:
        return
    first = cells[c, COUNT] == 0
    cells[c, COUNT] += others[o, COUNT]
    _add_128(cells, c, others[o, SUM_LO], others[o, SUM_HI])
    cells[c, MIN] = min(cells[c, MIN], others[o, MIN])
    cells[c, MAX] = max(cells[c, MAX], others[o, MAX])
    at, pos = others[o, LATEST_TS], others[o, LATEST_POS]
    if first or (at, pos) > (cells[c, LATEST_TS], cells[c, LATEST_POS]):
        cells[c, LATEST_TS] = at
        cells[c, LATEST_POS] = pos
        cells[c, LATEST_VALUE] = others[o, LATEST_VALUE]
    at, pos = others[o, FIRST_TS], others[o, FIRST_POS]
    if first or (at, pos) < (cells[c, FIRST_TS], cells[c, FIRST_POS]):
        cells[c, FIRST_TS] = at
        cells[c, FIRST_POS] = pos
        cells[c, FIRST_VALUE] = others[o, FIRST_VALUE]


def sum_of(row: Array) -> int:
    """Return the exact sum of a cell as a Python integer."""
    return (int(row[SUM_HI]) << 64) + (int(row[SUM_LO]) & 0xFFFFFFFFFFFFFFFF)
