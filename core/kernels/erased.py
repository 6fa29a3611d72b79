"""Leaves out the rows of erased accounts, and takes erased accounts out of the tables."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.entries import account_hash, entry_parts
from meterd.core.kernels.gather import ENTRY, POSITION
from meterd.core.kernels.hashing import root_end
from meterd.core.kernels.index import MISSING, Index, find, payload_at, remove, set_payload
from meterd.core.kernels.tables import (
    DIMS_SIZE,
    DIMS_START,
    FIRST_CELL,
    FIRST_SERIES,
    METRIC,
    NEXT_IN_ROOT,
    NEXT_SERIES,
    SEATS,
    TEXT_SIZE,
    TEXT_START,
    free_cell,
    series_hash,
    tables_at,
)

Array = Any
_U64 = np.uint64
_SLASH = 47


class Erased(NamedTuple):
    """Erased accounts by the hash of their text."""

    index: Index
    floors: Array  # int64[n, 2]: positions before which the account itself, what is below, is gone


@njit(cache=True)
def floor_of(data: Array, start: int, end: int, key: Array, erased: Any) -> Any:
    """Return the position before which what the account at start..end has is erased, or 0."""
    floor = np.int64(0)
    for stop in range(start + 1, end + 1):
        if stop == end or data[stop] == _SLASH:
            a0, a1 = account_hash(key[0], key[1], data, start, stop)
            slot = find(erased.index, a0, a1)
            if slot != MISSING:
                place = np.int64(payload_at(erased.index, slot))
                floor = max(floor, erased.floors[place, 1])
                if stop == end:
                    floor = max(floor, erased.floors[place, 0])
    return floor


@njit(cache=True)
def floors_of(text: Array, ends: Array, first: int, key: Array, erased: Any, out: Array) -> None:
    """Write what `floor_of` says of texts that lie one after another, from number `first` on."""
    for k in range(len(out)):
        place = first + k
        start = ends[place - 1] if place > 0 else np.int64(0)
        out[k] = floor_of(text, start, ends[place], key, erased)


@njit(cache=True)
def keep_matches(data: Array, matches: Array, key: Array, erased: Any) -> Any:
    """Move the matches that are not erased to the front, in their order; return how many."""
    kept = 0
    for k in range(len(matches)):
        entry = matches[k, ENTRY]
        account_end, _ = entry_parts(data, entry)
        if matches[k, POSITION] >= floor_of(data, entry + 2, account_end, key, erased):
            for word in range(matches.shape[1]):
                matches[kept, word] = matches[k, word]
            kept += 1
    return kept


@njit(cache=True, _nrt=False)
def accounts_of_root(handle: Array, root: Array, out: Array) -> int:
    """Write the numbers of all accounts of a root, given by its hash; return how many."""
    tables = tables_at(handle)
    slot = find(tables.root_index, root[0], root[1])
    if slot == MISSING:
        return 0
    number = np.int64(payload_at(tables.root_index, slot))
    count = 0
    while number >= 0:
        if count < len(out):
            out[count] = number
        count += 1
        number = tables.accounts[number, NEXT_IN_ROOT]
    return count


@njit(cache=True, _nrt=False)
def erase_account(handle: Array, number: int) -> None:
    """Take an account's text, series, cells and members out of the tables.

    The rows of account and series stay, as rows of nothing: number 0 of a metric is given to none.
    Not while a snapshot is under way that is to be kept.
    """
    tables = tables_at(handle)
    key, accounts, text = tables.key, tables.accounts, tables.text
    start = accounts[number, TEXT_START]
    end = start + accounts[number, TEXT_SIZE]
    a0, a1 = account_hash(key[0], key[1], text, start, end)
    series = accounts[number, FIRST_SERIES]
    while series >= 0:
        _erase_series(handle, series, number)
        series = tables.series[series, NEXT_SERIES]
    remove(tables.account_index, a0, a1)
    r0, r1 = account_hash(key[0], key[1], text, start, root_end(text, start, end))
    slot = find(tables.root_index, r0, r1)
    before = np.int64(payload_at(tables.root_index, slot))
    following = accounts[number, NEXT_IN_ROOT]
    if before != number:
        while accounts[before, NEXT_IN_ROOT] != number:
            before = accounts[before, NEXT_IN_ROOT]
        accounts[before, NEXT_IN_ROOT] = following
    elif following >= 0:
        set_payload(tables.root_index, slot, _U64(following))
    else:
        remove(tables.root_index, r0, r1)
    text[start:end] = 0
    accounts[number, TEXT_SIZE] = 0
    accounts[number, FIRST_SERIES] = MISSING
    accounts[number, NEXT_IN_ROOT] = MISSING


@njit(cache=True, _nrt=False)
def _erase_series(handle: Array, number: int, account: int) -> None:
    tables = tables_at(handle)
    key, dims, row = tables.key, tables.dims, tables.series[number]
    while row[FIRST_CELL] >= 0:
        free_cell(handle, row[FIRST_CELL])
    start = row[DIMS_START]
    end = start + row[DIMS_SIZE]
    s0, s1 = series_hash(key, account, row[METRIC], dims, start, end)
    remove(tables.series_index, s0, s1)
    dims[start:end] = 0
    row[METRIC] = row[SEATS] = row[DIMS_SIZE] = 0
