"""Collects cells from the tables for a question: of one account, a subtree, or all accounts.

Handles are those of the tables (kernels/memory.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.kernels.entries import same_bytes
from meterd.core.kernels.index import MISSING
from meterd.core.kernels.tables import (
    ACCOUNT,
    CELLS,
    FIRST_CELL,
    FIRST_SERIES,
    METRIC,
    NEXT_IN_ROOT,
    NEXT_MEMBER,
    NEXT_SERIES,
    NO_MEMBER,
    SEATS,
    SERIES_COUNT,
    TEXT_SIZE,
    TEXT_START,
    find_account,
    find_root,
    tables_at,
)

Array = Any


@njit(cache=True, _nrt=False)
def account_numbers(handle: Array, account: Array, subtree: bool, out: Array) -> int:
    """Write the numbers of an account, or of it and all below it, into `out`; return how many.

    More than fit: the count is larger than `out`.
    """
    size = len(account)
    if not subtree:
        number = find_account(handle, account, 0, size)
        if number == MISSING:
            return 0
        out[0] = number
        return 1
    stop = 0
    while stop < size and account[stop] != 47:
        stop += 1
    number = find_root(handle, account, 0, stop)
    count = 0
    tables = tables_at(handle)
    accounts, text = tables.accounts, tables.text
    while number >= 0:
        start, length = accounts[number, TEXT_START], accounts[number, TEXT_SIZE]
        below = length > size and text[start + size] == 47
        if (length == size or below) and same_bytes(text, start, account, 0, size):
            if count < len(out):
                out[count] = number
            count += 1
        number = accounts[number, NEXT_IN_ROOT]
    return count


@njit(cache=True, _nrt=False)
def cells_of_accounts(
    handle: Array, numbers: Array, metrics: Array, period_start: int, out: Array
) -> Any:
    """Write (cell, account's position in numbers) of a metric's cells in a period into `out`.

    metrics u8[metric number]: 1 for the versions asked for.  Returns (how many, whether the
    series have seats); more than fit: the count is larger than `out`.
    """
    count = 0
    seats = False
    tables = tables_at(handle)
    accounts, series, cells = tables.accounts, tables.series, tables.cells
    for i in range(len(numbers)):
        s = accounts[numbers[i], FIRST_SERIES]
        while s >= 0:
            if metrics[series[s, METRIC]]:
                seats = seats or series[s, SEATS] != 0
                c = series[s, FIRST_CELL]
                while c >= 0:
                    if cells[c, cell_rows.PERIOD_START] == period_start:
                        if count < len(out):
                            out[count, 0], out[count, 1] = c, i
                        count += 1
                        break
                    c = cells[c, cell_rows.NEXT_CELL]
            s = series[s, NEXT_SERIES]
    return count, seats


@njit(cache=True, _nrt=False)
def cells_of_metric(
    handle: Array, metrics: Array, unique: bool, period_start: int, out: Array
) -> Any:
    """Write (cell, account number) of all cells of a metric in a period; as `cells_of_accounts`.

    A member that came in an earlier period may still be there though its series has no cell in
    this one, so seats are looked for in all series; only a `unique` metric has them.
    """
    count = 0
    seats = False
    tables = tables_at(handle)
    series, cells = tables.series, tables.cells
    if unique:
        for s in range(tables.counters[SERIES_COUNT]):
            seats = seats or (series[s, SEATS] != 0 and metrics[series[s, METRIC]] != 0)
    for c in range(tables.counters[CELLS]):
        if cells[c, cell_rows.PERIOD_START] == period_start:
            s = cells[c, cell_rows.SERIES]
            if metrics[series[s, METRIC]]:
                if count < len(out):
                    out[count, 0], out[count, 1] = c, series[s, ACCOUNT]
                count += 1
    return count, seats


@njit(cache=True, _nrt=False)
def copy_cells(handle: Array, chosen: Array, out: Any) -> None:
    """Copy chosen cells into out: (cells int64[k, 16], metric u16[k], series int64[k])."""
    tables = tables_at(handle)
    rows, metric, numbers = out
    for i in range(len(chosen)):
        c = chosen[i, 0]
        for word in range(CELL_WORDS):
            rows[i, word] = tables.cells[c, word]
        s = tables.cells[c, cell_rows.SERIES]
        numbers[i] = s
        metric[i] = tables.series[s, METRIC]


@njit(cache=True, _nrt=False)
def copy_members(handle: Array, chosen: Array, owners: Array, hashes: Array) -> int:
    """Write (position in chosen, hash) of all members of the chosen cells; return how many."""
    tables = tables_at(handle)
    count = 0
    for i in range(len(chosen)):
        member = tables.cells[chosen[i, 0], cell_rows.FIRST_MEMBER]
        while member >= 0:
            owners[count] = i
            hashes[count, 0] = tables.members[member, 0]
            hashes[count, 1] = tables.members[member, 1]
            count += 1
            following = tables.members[member, NEXT_MEMBER]
            member = np.int64(-1) if following == NO_MEMBER else np.int64(following)
    return count
