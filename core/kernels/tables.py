"""The state machine's tables as arrays, reserved at their limits (see kernels/memory.py).

An account, series or cell is a row of 64-bit integers, named by its number; chains of numbers
(ended by -1) tie an account to its series, a series to its cells and a cell to its members.  Hash
indexes find them by key.  Everything but the indexes is saved in a checkpoint; the indexes are
made anew.  Kernels take the tables by their handle (see kernels/memory.py) and make a view of them;
what a kernel does not use of it costs nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels import runs as run_kernels
from meterd.core.kernels.bloom import Filter, filter_at, no_filter
from meterd.core.kernels.entries import (
    CELL,
    MEMBER,
    SERIES,
    account_hash,
    pair_hash,
)
from meterd.core.kernels.hashing import root_end, sip_bytes, sip_finish, sip_start, sip_word
from meterd.core.kernels.index import (
    MISSING,
    Index,
    find,
    index_at,
    insert,
    make_index,
    payload_at,
    remove,
    set_payload,
)
from meterd.core.kernels.memory import column_at, reserve, rows_at
from meterd.core.kernels.snapshot import CellSnapshot, before_change, make_snapshot, snapshot_at

Array = Any
_U64 = np.uint64

# Columns of an account (int64[n, 4]).
TEXT_START, TEXT_SIZE, FIRST_SERIES, NEXT_IN_ROOT = range(4)
# Columns of a series (int64[n, 8]).
ACCOUNT, METRIC, DIMS_START, DIMS_SIZE, NEXT_SERIES, FIRST_CELL, SEATS, PARTITION = range(8)
# Of series of erased accounts, whose rows stay.
NO_METRIC = 0
# Columns of a member (u64[n, 3]): two words of hash, next member of the cell (all ones: none).
MEMBER_0, MEMBER_1, NEXT_MEMBER = range(3)
NO_MEMBER = np.uint64(2**64 - 1)
# Columns of the counters (int64[16]); free rows of cells and members are chained, and used again.
ACCOUNTS, TEXT_USED, SERIES_COUNT, DIMS_USED, CELLS, MEMBERS, RECENT = range(7)
FREE_CELL, FREE_CELLS, FREE_MEMBER, FREE_MEMBERS = range(8, 12)
COUNTERS = 16
# A free row's series; its period is none there can be.
NO_SERIES = -1
NO_PERIOD = np.int64(-(2**63))

# An identity's payload: 32 bits of its content's digest | the day of its event since 1970, 16 bits.
DAY_NS = 86_400_000_000_000
DAY_MASK = np.uint64(0xFFFF)
DAY_MAX = 0xFFFF
IDENTITY_WORDS = 2


class Capacity(NamedTuple):
    """How much the tables can hold."""

    recent: int  # identities that are in no run yet
    accounts: int
    series: int
    cells: int
    members: int


class Tables(NamedTuple):
    """All tables of one state machine."""

    recent: Index  # identities that are in no run yet
    flushing: Index  # and those of which one is being made
    account_index: Index
    root_index: Index
    series_index: Index
    cell_index: Index
    member_index: Index
    accounts: Array
    text: Array
    series: Array
    dims: Array
    cells: Array
    members: Array
    journal: Array  # the entries of `recent` in the order they came
    counters: Array
    key: Array  # u64[2]: of all hashes
    runs: Array  # int64[3 r, 2]: a handle of the arrays of the runs (kernels/runs.py)
    run_facts: Array  # int64[r, 8]
    filter: Filter  # of the identities in runs
    snapshot: CellSnapshot


# Odd constants without pattern: the primes of XXH64.
_MIX_0 = np.uint64(0x9E3779B185EBCA87)
_MIX_1 = np.uint64(0xC2B2AE3D27D4EB4F)
_MIX_2 = np.uint64(0x165667B19E3779F9)


# Reserved heap bytes per account and series: their texts at their largest are rare.
ACCOUNT_TEXT_BYTES = 64
SERIES_DIMS_BYTES = 128
CACHE_LINE = 64
# Kernels check no bounds: behind its capacity every table has room for one more record, the largest
# there can be.  It is address space only.
RECORD_ROWS_MAX = 1 << 20
RECORD_TEXT_MAX = 64 * 1024 * 1024


def make_tables(capacity: Capacity, key: tuple[int, int]) -> Tables:
    """Return empty tables that can grow to `capacity`, for hashes under `key`."""
    return Tables(
        recent=make_index(capacity.recent + RECORD_ROWS_MAX, large_pages=True),
        flushing=make_index(capacity.recent + RECORD_ROWS_MAX, large_pages=True),
        account_index=make_index(capacity.accounts),
        root_index=make_index(capacity.accounts),
        series_index=make_index(capacity.series),
        cell_index=make_index(capacity.cells, large_pages=True),
        member_index=make_index(capacity.members),
        accounts=reserve((capacity.accounts + RECORD_ROWS_MAX, 4), np.int64),
        text=reserve((capacity.accounts * ACCOUNT_TEXT_BYTES + RECORD_TEXT_MAX,), np.uint8),
        series=reserve((capacity.series + RECORD_ROWS_MAX, 8), np.int64),
        dims=reserve((capacity.series * SERIES_DIMS_BYTES + RECORD_TEXT_MAX,), np.uint8),
        cells=reserve(
            (capacity.cells + RECORD_ROWS_MAX, cell_rows.CELL_WORDS),
            np.int64,
            large_pages=True,
            offset=CACHE_LINE - 8 * cell_rows.HOT,
        ),
        members=reserve((capacity.members + RECORD_ROWS_MAX, 3), np.uint64),
        journal=reserve((capacity.recent + RECORD_ROWS_MAX, IDENTITY_WORDS), np.uint64),
        counters=_no_rows(),
        key=np.array(key, np.uint64),
        runs=np.zeros((0, 2), np.int64),
        run_facts=np.zeros((0, run_kernels.FACT_WORDS), np.int64),
        filter=no_filter(),
        snapshot=make_snapshot(capacity.cells + RECORD_ROWS_MAX),
    )


def _no_rows() -> Array:
    counters = np.zeros(COUNTERS, np.int64)
    counters[[FREE_CELL, FREE_MEMBER]] = MISSING
    return counters


@njit(cache=True, forceinline=True, _nrt=False)
def tables_at(handle: Array) -> Any:
    """Return a view of the tables behind their handle."""
    return Tables(
        index_at(handle, 0),
        index_at(handle, 6),
        index_at(handle, 12),
        index_at(handle, 18),
        index_at(handle, 24),
        index_at(handle, 30),
        index_at(handle, 36),
        rows_at(handle, 42, 4, np.int64),
        column_at(handle, 43, np.uint8),
        rows_at(handle, 44, 8, np.int64),
        column_at(handle, 45, np.uint8),
        rows_at(handle, 46, cell_rows.CELL_WORDS, np.int64),
        rows_at(handle, 47, 3, np.uint64),
        rows_at(handle, 48, IDENTITY_WORDS, np.uint64),
        column_at(handle, 49, np.int64),
        column_at(handle, 50, np.uint64),
        rows_at(handle, 51, 2, np.int64),
        rows_at(handle, 52, run_kernels.FACT_WORDS, np.int64),
        filter_at(handle, 53),
        snapshot_at(handle, 56),
    )


@njit(cache=True, _nrt=False)
def find_account(handle: Array, data: Array, start: int, end: int) -> Any:
    """Return the number of an account given as text, or MISSING."""
    tables = tables_at(handle)
    key = tables.key
    a0, a1 = account_hash(key[0], key[1], data, start, end)
    slot = find(tables.account_index, a0, a1)
    if slot == MISSING:
        return np.int64(MISSING)
    return np.int64(payload_at(tables.account_index, slot))


@njit(cache=True, _nrt=False)
def find_root(handle: Array, data: Array, start: int, end: int) -> Any:
    """Return the first account of a root (chain NEXT_IN_ROOT), or MISSING."""
    tables = tables_at(handle)
    key = tables.key
    r0, r1 = account_hash(key[0], key[1], data, start, end)
    slot = find(tables.root_index, r0, r1)
    if slot == MISSING:
        return np.int64(MISSING)
    return np.int64(payload_at(tables.root_index, slot))


@njit(cache=True, _nrt=False)
def link_account(handle: Array, number: int) -> None:
    """Enter an account whose row and text are written into the indexes and its root's chain."""
    tables = tables_at(handle)
    key = tables.key
    accounts, text = tables.accounts, tables.text
    start = accounts[number, TEXT_START]
    end = start + accounts[number, TEXT_SIZE]
    a0, a1 = account_hash(key[0], key[1], text, start, end)
    insert(tables.account_index, a0, a1, _U64(number))
    stop = root_end(text, start, end)
    r0, r1 = account_hash(key[0], key[1], text, start, stop)
    slot = find(tables.root_index, r0, r1)
    if slot == MISSING:
        accounts[number, NEXT_IN_ROOT] = MISSING
        insert(tables.root_index, r0, r1, _U64(number))
    else:
        accounts[number, NEXT_IN_ROOT] = np.int64(payload_at(tables.root_index, slot))
        set_payload(tables.root_index, slot, _U64(number))


@njit(cache=True, _nrt=False)
def add_account(handle: Array, data: Array, start: int, end: int) -> Any:
    """Make a new account from its text; return its number."""
    tables = tables_at(handle)
    counters = tables.counters
    number = counters[ACCOUNTS]
    at = counters[TEXT_USED]
    for i in range(start, end):
        tables.text[at + i - start] = data[i]
    tables.accounts[number, TEXT_START] = at
    tables.accounts[number, TEXT_SIZE] = end - start
    tables.accounts[number, FIRST_SERIES] = MISSING
    counters[ACCOUNTS] = number + 1
    counters[TEXT_USED] = at + end - start
    link_account(handle, number)
    return number


@njit(cache=True, forceinline=True, _nrt=False)
def series_hash(key: Any, account: int, metric: int, dims: Array, start: int, end: int) -> Any:
    """Hash (account number, metric number, dimension tuple)."""
    v0, v1, v2, v3 = sip_start(key[0], key[1])
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(SERIES) | _U64(end - start) << _U64(8))
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(account) << _U64(16) | _U64(metric))
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, dims, start, end)
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True, _nrt=False)
def add_series(handle: Array, account: int, metric: int, dims_end: int, partition: int) -> Any:
    """Make a series whose dimension tuple lies at the end of the dims heap; return its number."""
    tables = tables_at(handle)
    counters = tables.counters
    number = counters[SERIES_COUNT]
    row = tables.series[number]
    row[ACCOUNT] = account
    row[METRIC] = metric
    row[DIMS_START] = counters[DIMS_USED]
    row[DIMS_SIZE] = dims_end - counters[DIMS_USED]
    row[NEXT_SERIES] = tables.accounts[account, FIRST_SERIES]
    row[FIRST_CELL] = MISSING
    row[SEATS] = 0
    row[PARTITION] = partition
    tables.accounts[account, FIRST_SERIES] = number
    counters[SERIES_COUNT] = number + 1
    counters[DIMS_USED] = dims_end
    return number


@njit(cache=True, forceinline=True, _nrt=False)
def mixed(word: Any) -> Any:
    """Spread the bits of a word over all of it (the finaliser of XXH64)."""
    word = (word ^ (word >> _U64(33))) * _MIX_1
    word = (word ^ (word >> _U64(29))) * _MIX_2
    return word ^ (word >> _U64(32))


@njit(cache=True, forceinline=True, _nrt=False)
def cell_hash(
    k0: Any,
    k1: Any,
    a0: Any,
    a1: Any,
    metric: int,
    period_start: int,
    dims: Array,
    start: int,
    end: int,
) -> Any:
    """Hash (account's hash, metric number, period, dimension tuple): a row finds its cell at once.

    The account's hash is keyed and has all 128 bits of randomness; what is mixed in only has to
    keep the cells of one account apart, and its dimension tuples, which clients choose, are
    hashed too.
    """
    d0 = d1 = _U64(0)
    if end > start:
        v0, v1, v2, v3 = sip_start(k0, k1)
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(CELL) | _U64(end - start) << _U64(8))
        v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, dims, start, end)
        d0, d1 = sip_finish(v0, v1, v2, v3)
    period, number = _U64(period_start), _U64(metric)
    c0 = a0 ^ mixed(period * _MIX_0 + number * _MIX_1 + d0)
    return c0, a1 ^ mixed(period * _MIX_2 + number * _MIX_0 + d1)


@njit(cache=True, _nrt=False)
def add_cell(handle: Array, series: int, period_start: int, c0: Any, c1: Any) -> Any:
    """Make the cell of a series in a period under its hash; return its number."""
    tables = tables_at(handle)
    counters, cells = tables.counters, tables.cells
    number = counters[FREE_CELL]
    if number >= 0:
        before_change(tables.snapshot, cells, number)
        counters[FREE_CELL] = cells[number, cell_rows.NEXT_CELL]
        counters[FREE_CELLS] -= 1
    else:
        number = counters[CELLS]
        counters[CELLS] = number + 1
    cell_rows.clear_cell(cells, number)
    cells[number, cell_rows.SERIES] = series
    cells[number, cell_rows.PERIOD_START] = period_start
    cells[number, cell_rows.NEXT_CELL] = tables.series[series, FIRST_CELL]
    tables.series[series, FIRST_CELL] = number
    insert(tables.cell_index, c0, c1, _U64(number))
    return number


@njit(cache=True, _nrt=False)
def add_member(handle: Array, cell: int, m0: Any, m1: Any) -> None:
    """Count a member into a cell unless it is there."""
    tables = tables_at(handle)
    key = tables.key
    h0, h1 = pair_hash(key[0], key[1], MEMBER, _U64(cell), m0, m1)
    if find(tables.member_index, h0, h1) != MISSING:
        return
    counters = tables.counters
    number = counters[FREE_MEMBER]
    if number >= 0:
        following = tables.members[number, NEXT_MEMBER]
        counters[FREE_MEMBER] = MISSING if following == NO_MEMBER else np.int64(following)
        counters[FREE_MEMBERS] -= 1
    else:
        number = counters[MEMBERS]
        counters[MEMBERS] = number + 1
    insert(tables.member_index, h0, h1, _U64(number))
    cells = tables.cells
    tables.members[number, MEMBER_0] = m0
    tables.members[number, MEMBER_1] = m1
    first = cells[cell, cell_rows.FIRST_MEMBER]
    tables.members[number, NEXT_MEMBER] = NO_MEMBER if first < 0 else _U64(first)
    cells[cell, cell_rows.FIRST_MEMBER] = number
    cells[cell, cell_rows.UNIQUE] += 1


@njit(cache=True, forceinline=True, _nrt=False)
def key_of_cell(tables: Any, number: int) -> Any:
    """Return the hash of a cell whose row is written."""
    key = tables.key
    row = tables.series[tables.cells[number, cell_rows.SERIES]]
    account = tables.accounts[row[ACCOUNT]]
    start = account[TEXT_START]
    a0, a1 = account_hash(key[0], key[1], tables.text, start, start + account[TEXT_SIZE])
    start = row[DIMS_START]
    return cell_hash(
        key[0],
        key[1],
        a0,
        a1,
        row[METRIC],
        tables.cells[number, cell_rows.PERIOD_START],
        tables.dims,
        start,
        start + row[DIMS_SIZE],
    )


@njit(cache=True, _nrt=False)
def free_cell(handle: Array, number: int) -> None:
    """Take a cell and its members out of the tables; its rows are free.

    Not while a snapshot is under way that is to be kept: what a free row of a member was is lost.
    """
    tables = tables_at(handle)
    key, cells, members, counters = tables.key, tables.cells, tables.members, tables.counters
    c0, c1 = key_of_cell(tables, number)
    remove(tables.cell_index, c0, c1)
    _unchain(tables, number)
    member = cells[number, cell_rows.FIRST_MEMBER]
    while member >= 0:
        m0, m1 = members[member, MEMBER_0], members[member, MEMBER_1]
        h0, h1 = pair_hash(key[0], key[1], MEMBER, _U64(number), m0, m1)
        remove(tables.member_index, h0, h1)
        following = members[member, NEXT_MEMBER]
        free_member(members, counters, member)
        member = np.int64(MISSING) if following == NO_MEMBER else np.int64(following)
    _free_row(cells, counters, number)


@njit(cache=True, forceinline=True, _nrt=False)
def _unchain(tables: Any, number: int) -> None:
    """Take a cell out of the chain of its series, which has few."""
    series, cells = tables.series, tables.cells
    s, following = cells[number, cell_rows.SERIES], cells[number, cell_rows.NEXT_CELL]
    before = series[s, FIRST_CELL]
    if before == number:
        series[s, FIRST_CELL] = following
        return
    while cells[before, cell_rows.NEXT_CELL] != number:
        before = cells[before, cell_rows.NEXT_CELL]
    cells[before, cell_rows.NEXT_CELL] = following


@njit(cache=True, forceinline=True, _nrt=False)
def _free_row(cells: Array, counters: Array, number: int) -> None:
    cells[number, :] = 0
    cells[number, cell_rows.SERIES] = NO_SERIES
    cells[number, cell_rows.PERIOD_START] = NO_PERIOD
    cells[number, cell_rows.FIRST_MEMBER] = MISSING
    cells[number, cell_rows.NEXT_CELL] = counters[FREE_CELL]
    counters[FREE_CELL] = number
    counters[FREE_CELLS] += 1


@njit(cache=True, forceinline=True, _nrt=False)
def free_member(members: Array, counters: Array, member: int) -> None:
    """Put the row of a member among the free ones."""
    members[member, MEMBER_0] = members[member, MEMBER_1] = _U64(0)
    following = counters[FREE_MEMBER]
    members[member, NEXT_MEMBER] = NO_MEMBER if following < 0 else _U64(following)
    counters[FREE_MEMBER] = member
    counters[FREE_MEMBERS] += 1


@njit(cache=True, _nrt=False)
def evict_cells(handle: Array, first_kept: Array, first: int, last: int) -> Any:
    """Free those of the cells first..last - 1 whose period is before first_kept[metric number].

    Returns how many.  As with `free_cell`, not while a snapshot is under way.
    """
    tables = tables_at(handle)
    cells, series = tables.cells, tables.series
    freed = np.int64(0)
    for c in range(first, last):
        s = cells[c, cell_rows.SERIES]
        if s >= 0 and cells[c, cell_rows.PERIOD_START] < first_kept[series[s, METRIC]]:
            free_cell(handle, c)
            freed += 1
    return freed


@njit(cache=True, _nrt=False)
def _link_series(handle: Array) -> None:
    """Enter all series into their index and their accounts' chains."""
    tables = tables_at(handle)
    key, accounts, series = tables.key, tables.accounts, tables.series
    for number in range(tables.counters[SERIES_COUNT]):
        row = series[number]
        row[FIRST_CELL] = MISSING
        if row[METRIC] == NO_METRIC:
            continue
        start = row[DIMS_START]
        h0, h1 = series_hash(
            key, row[ACCOUNT], row[METRIC], tables.dims, start, start + row[DIMS_SIZE]
        )
        insert(tables.series_index, h0, h1, _U64(number))
        row[NEXT_SERIES] = accounts[row[ACCOUNT], FIRST_SERIES]
        accounts[row[ACCOUNT], FIRST_SERIES] = number


@njit(cache=True, _nrt=False)
def _link_cell(handle: Array, number: int, used: Array) -> None:
    """Enter a cell into its index and its series' chain; note which members' rows are used."""
    tables = tables_at(handle)
    key, cells, members = tables.key, tables.cells, tables.members
    c0, c1 = key_of_cell(tables, number)
    insert(tables.cell_index, c0, c1, _U64(number))
    s = cells[number, cell_rows.SERIES]
    cells[number, cell_rows.NEXT_CELL] = tables.series[s, FIRST_CELL]
    tables.series[s, FIRST_CELL] = number
    member = cells[number, cell_rows.FIRST_MEMBER]
    while member >= 0:
        used[member] = 1
        m0, m1 = members[member, MEMBER_0], members[member, MEMBER_1]
        h0, h1 = pair_hash(key[0], key[1], MEMBER, _U64(number), m0, m1)
        insert(tables.member_index, h0, h1, _U64(member))
        following = members[member, NEXT_MEMBER]
        member = np.int64(MISSING) if following == NO_MEMBER else np.int64(following)


@njit(cache=True, _nrt=False)
def rebuild(handle: Array, used: Array) -> None:
    """Make indexes, chains and free rows anew (after a load); used: u8[members], zeros.

    What a checkpoint says of them counts for nothing: it is written while they change.
    """
    tables = tables_at(handle)
    counters, cells = tables.counters, tables.cells
    for number in range(counters[ACCOUNTS]):
        tables.accounts[number, FIRST_SERIES] = MISSING
        if tables.accounts[number, TEXT_SIZE]:
            link_account(handle, number)
    _link_series(handle)
    counters[FREE_CELL] = counters[FREE_MEMBER] = MISSING
    counters[FREE_CELLS] = counters[FREE_MEMBERS] = 0
    for number in range(counters[CELLS]):
        s = cells[number, cell_rows.SERIES]
        if s < 0 or tables.series[s, METRIC] == NO_METRIC:
            _free_row(cells, counters, number)
        else:
            _link_cell(handle, number, used)
    for number in range(counters[MEMBERS]):
        if not used[number]:
            free_member(tables.members, counters, number)
