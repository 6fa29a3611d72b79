"""Takes the series, cells and members of some partitions from the tables of another state machine.

Both are of one cluster, so accounts, dimension tuples and members have the same hashes in both, and
metrics the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels.entries import account_hash
from meterd.core.kernels.index import MISSING, insert
from meterd.core.kernels.tables import (
    ACCOUNT,
    DIMS_SIZE,
    DIMS_START,
    DIMS_USED,
    FIRST_CELL,
    METRIC,
    NEXT_MEMBER,
    NO_MEMBER,
    NO_METRIC,
    PARTITION,
    SEATS,
    SERIES_COUNT,
    TEXT_SIZE,
    TEXT_START,
    add_account,
    add_cell,
    add_member,
    add_series,
    cell_hash,
    find_account,
    series_hash,
    tables_at,
)

Array = Any
_U64 = np.uint64


@njit(cache=True, _nrt=False)
def mark_accounts(handle: Array, groups: Array, out: Array) -> None:
    """Mark in out u8[accounts] those that have a series in one of the groups (u8[257])."""
    tables = tables_at(handle)
    for number in range(tables.counters[SERIES_COUNT]):
        row = tables.series[number]
        if row[METRIC] != NO_METRIC and groups[row[PARTITION]]:
            out[row[ACCOUNT]] = 1


@njit(cache=True, _nrt=False)
def adopt(handle: Array, source: Array, groups: Array) -> None:
    """Add what the tables behind `source` have of the groups (u8[257]); nothing of these is here.

    There is room for all of it.
    """
    tables, other = tables_at(handle), tables_at(source)
    for number in range(other.counters[SERIES_COUNT]):
        row = other.series[number]
        if row[METRIC] != NO_METRIC and groups[row[PARTITION]]:
            _adopt_series(handle, tables, other, row)


@njit(cache=True, _nrt=False)
def _adopt_series(handle: Array, tables: Any, other: Any, row: Array) -> None:
    key, counters, dims = tables.key, tables.counters, tables.dims
    text = other.accounts[row[ACCOUNT], TEXT_START]
    text_end = text + other.accounts[row[ACCOUNT], TEXT_SIZE]
    account = find_account(handle, other.text, text, text_end)
    if account == MISSING:
        account = add_account(handle, other.text, text, text_end)
    start = counters[DIMS_USED]
    end = start + row[DIMS_SIZE]
    for i in range(row[DIMS_SIZE]):
        dims[start + i] = other.dims[row[DIMS_START] + i]
    series = add_series(handle, account, row[METRIC], end, row[PARTITION])
    tables.series[series, SEATS] = row[SEATS]
    s0, s1 = series_hash(key, account, row[METRIC], dims, start, end)
    insert(tables.series_index, s0, s1, _U64(series))
    a0, a1 = account_hash(key[0], key[1], other.text, text, text_end)
    cell = row[FIRST_CELL]
    while cell >= 0:
        period = other.cells[cell, cell_rows.PERIOD_START]
        c0, c1 = cell_hash(key[0], key[1], a0, a1, row[METRIC], period, dims, start, end)
        _adopt_cell(handle, tables, other, cell, add_cell(handle, series, period, c0, c1))
        cell = other.cells[cell, cell_rows.NEXT_CELL]


@njit(cache=True, _nrt=False)
def _adopt_cell(handle: Array, tables: Any, other: Any, source: int, target: int) -> None:
    for word in range(cell_rows.COUNT, cell_rows.UNIQUE):
        tables.cells[target, word] = other.cells[source, word]
    member = other.cells[source, cell_rows.FIRST_MEMBER]
    while member >= 0:
        add_member(handle, target, other.members[member, 0], other.members[member, 1])
        following = other.members[member, NEXT_MEMBER]
        member = np.int64(MISSING) if following == NO_MEMBER else np.int64(following)
    tables.cells[target, cell_rows.UNIQUE] = other.cells[source, cell_rows.UNIQUE]


@njit(cache=True, _nrt=False)
def measure(handle: Array, groups: Array, out: Array) -> None:
    """Count what the groups (u8[257]) have: out int64[4], series, dims heap, cells, members."""
    tables = tables_at(handle)
    for number in range(tables.counters[SERIES_COUNT]):
        row = tables.series[number]
        if row[METRIC] == NO_METRIC or not groups[row[PARTITION]]:
            continue
        out[0] += 1
        out[1] += row[DIMS_SIZE]
        cell = row[FIRST_CELL]
        while cell >= 0:
            out[2] += 1
            out[3] += tables.cells[cell, cell_rows.UNIQUE]
            cell = tables.cells[cell, cell_rows.NEXT_CELL]
