"""Reads the rows of a log file that an index has found, and counts those that a question is about.

The index only narrows the search, so every row is compared in full here: the account's bytes,
metric number, time, and that it was stored.  What matches is counted with `update_cell`, the kernel
that also keeps the totals in memory, into cells keyed by (account where wanted, metric number,
dimension tuple, window).  Dimensions that the question does not mention are left out of the tuple,
so a total over a metric with many series takes one cell.

Rows that add or remove a member are kept as they are, from the beginning of the log, because who is
present depends on their order; they refer to a cell of no window, which counts nothing.

Two kernels: `match_rows` finds what matches, for listings too; `count_rows` counts it.  Each stops
before a row for which room might be short; its caller makes more and goes on there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels.apply import NOT_UNIQUE, UNIQUE_VALUES
from meterd.core.kernels.cells import POSITION_ROW_BITS, clear_cell, merge_cell, update_cell
from meterd.core.kernels.entries import (
    account_hash,
    entry_parts,
    find_property,
    member_of_text,
    member_of_value,
    pair_hash,
    same_bytes,
    write_dimensions,
)
from meterd.core.kernels.hashing import (
    load_u32,
    load_u64,
    sip_bytes,
    sip_finish,
    sip_start,
    sip_word,
)
from meterd.core.kernels.index import (
    BUCKET_SLOTS,
    BUCKETS,
    MISSING,
    PAYLOAD_MASK,
    Index,
    find,
    insert,
    payload_at,
)
from meterd.core.kernels.scan import HEADER_SIZE, SLICE_SIZE, columns_at, is_refused

Array = Any
_U64 = np.uint64
_SLASH = 47

ANY_ACCOUNT, ONE_ACCOUNT, SUBTREE = range(3)

# Columns of what is wanted of a metric version (int64[k, 6]).
KIND, DECIMALS, DIM_FIRST, DIM_COUNT, MEMBER_START, MEMBER_END = range(6)
# Columns of a row that matches (int64[n, 7]); ENTRY is the offset of its heap entry in the file.
TIMESTAMP, POSITION, ROW, NUMBER, OPERATION, VALUE, ENTRY = range(7)
MATCH_WORDS = 7
# Columns of a seat row (int64[n, 4]): its cell and what orders and explains it.
SEAT_CELL, SEAT_TIMESTAMP, SEAT_POSITION, SEAT_OPERATION = range(4)
# Columns of a member (u64[n, 3]): its cell and its hash.
MEMBER_CELL, MEMBER_0, MEMBER_1 = range(3)
# Counters of what was found (int64[6]).
CELLS, DIMS_USED, MEMBERS, SEATS, ACCOUNTS, TEXT_USED = range(6)

NO_WINDOW = -1
# Cells that were counted into last: two places for each.
RECENT_BITS = 13
RECENT = 1 << RECENT_BITS
# The longest dimension tuple (8 values of 255 bytes) and account, with their sizes.
DIMS_SIZE_MAX = 8 * 257
ACCOUNT_SIZE_MAX = 128


class LogRows(NamedTuple):
    """A log file as kernels read it."""

    data: Array  # u8: the whole file
    record_row: Array  # u32[r]
    record_offset: Array  # u64[r]
    refused: Array  # u8: bitmap


class Wanted(NamedTuple):
    """What a question is about."""

    account: Array  # u8
    mode: int  # ANY_ACCOUNT, ONE_ACCOUNT or SUBTREE
    by_account: bool  # a cell for each account
    local: Array  # i32 by metric number: row of metrics, or -1
    metrics: Array  # int64[k, 6]
    keys: Array  # u8: dimension and member keys, one after another
    places: Array  # int64[n, 2]: where each dimension key begins and ends in keys
    needed: Array  # u8[n]: whether the question looks at that dimension
    edges: Array  # int64: start, boundaries of windows, end


class Found(NamedTuple):
    """What was counted so far."""

    cell_index: Index
    cells: Array  # int64[c, 16]
    metric: Array  # u16[c]
    window: Array  # i32[c]
    dims: Array  # u8
    dims_end: Array  # int64[c]
    member_index: Index
    members: Array  # u64[m, 3]
    seats: Array  # int64[s, 4]
    seat_members: Array  # u64[s, 2]
    account_index: Index
    text: Array  # u8
    text_end: Array  # int64[a]
    counters: Array  # int64[6]


@njit(cache=True, forceinline=True)
def is_account(data: Array, start: int, end: int, account: Array, mode: int) -> Any:
    """Return whether the account at start..end is the one asked for, or below it."""
    if mode == ANY_ACCOUNT:
        return True
    size, wanted = end - start, len(account)
    if size < wanted or (mode == ONE_ACCOUNT and size != wanted):
        return False
    if size > wanted and data[start + wanted] != _SLASH:
        return False
    return same_bytes(data, start, account, 0, wanted)


@njit(cache=True, forceinline=True)
def _has_room(found: Any) -> Any:
    """Return whether one more row is certain to fit."""
    counters = found.counters
    return (
        counters[CELLS] + 2 <= len(found.cells)
        and counters[DIMS_USED] + DIMS_SIZE_MAX <= len(found.dims)
        and counters[MEMBERS] < len(found.members)
        and counters[SEATS] < len(found.seats)
        and counters[ACCOUNTS] < len(found.text_end)
        and counters[TEXT_USED] + ACCOUNT_SIZE_MAX <= len(found.text)
    )


@njit(cache=True, forceinline=True)
def _account_number(data: Array, start: int, end: int, key: Array, found: Any) -> Any:
    """Return the number of an account, giving it one if it is new."""
    a0, a1 = account_hash(key[0], key[1], data, start, end)
    slot = find(found.account_index, a0, a1)
    if slot != MISSING:
        return np.int64(payload_at(found.account_index, slot))
    counters = found.counters
    number = counters[ACCOUNTS]
    at = counters[TEXT_USED]
    for i in range(start, end):
        found.text[at + i - start] = data[i]
    counters[ACCOUNTS] = number + 1
    counters[TEXT_USED] = found.text_end[number] = at + end - start
    insert(found.account_index, a0, a1, _U64(number))
    return number


@njit(cache=True, forceinline=True)
def _write_needed(data: Array, properties: int, metric: Array, wanted: Any, found: Any) -> Any:
    """Write the dimension tuple of a row behind the last one; return where it ends."""
    to = found.counters[DIMS_USED]
    first = metric[DIM_FIRST]
    for d in range(first, first + metric[DIM_COUNT]):
        if wanted.needed[d]:
            to = write_dimensions(
                found.dims, to, data, properties, wanted.keys, wanted.places, d, 1
            )
        else:
            found.dims[to] = 0
            to += 1
    return to


@njit(cache=True, forceinline=True)
def _cell_of(which: Any, dims_end: int, key: Array, found: Any) -> Any:
    """Return the cell of (account, metric number, window) and the dimension tuple just written."""
    account, number, window = which
    counters = found.counters
    start = counters[DIMS_USED]
    v0, v1, v2, v3 = sip_start(key[0], key[1])
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(account) << _U64(16) | _U64(number))
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(window + 1) << _U64(32) | _U64(dims_end - start))
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, found.dims, start, dims_end)
    c0, c1 = sip_finish(v0, v1, v2, v3)
    slot = find(found.cell_index, c0, c1)
    if slot != MISSING:
        return np.int64(payload_at(found.cell_index, slot))
    cell = counters[CELLS]
    clear_cell(found.cells, cell)
    found.cells[cell, cell_rows.SERIES] = account
    found.metric[cell] = number
    found.window[cell] = window
    found.dims_end[cell] = dims_end
    counters[CELLS] = cell + 1
    counters[DIMS_USED] = dims_end
    insert(found.cell_index, c0, c1, _U64(cell))
    return cell


@njit(cache=True, forceinline=True)
def _member(
    data: Array, properties: int, value: int, metric: Array, wanted: Any, key: Array
) -> Any:
    """Return (hash words of the member that a row names, whether it names one)."""
    if metric[KIND] == UNIQUE_VALUES:
        m0, m1 = member_of_value(key[0], key[1], value, metric[DECIMALS])
        return m0, m1, True
    start, end = find_property(
        data, properties, wanted.keys, metric[MEMBER_START], metric[MEMBER_END]
    )
    if end < start:
        return _U64(0), _U64(0), False
    m0, m1 = member_of_text(key[0], key[1], data, start, end)
    return m0, m1, True


@njit(cache=True, forceinline=True)
def _add_member(cell: int, m0: Any, m1: Any, key: Array, found: Any) -> None:
    """Keep a member of a cell once."""
    h0, h1 = pair_hash(key[0], key[1], 0, _U64(cell), m0, m1)
    if find(found.member_index, h0, h1) != MISSING:
        return
    n = found.counters[MEMBERS]
    found.members[n, MEMBER_CELL] = cell
    found.members[n, MEMBER_0], found.members[n, MEMBER_1] = m0, m1
    found.counters[MEMBERS] = n + 1
    insert(found.member_index, h0, h1, _U64(n))


@njit(cache=True, forceinline=True)
def _add_seat(cell: int, row: Any, m0: Any, m1: Any, found: Any) -> None:
    """Keep a row that adds or removes a member; row is (timestamp, position, operation)."""
    n = found.counters[SEATS]
    found.seats[n, SEAT_CELL] = cell
    found.seats[n, SEAT_TIMESTAMP] = row[0]
    found.seats[n, SEAT_POSITION] = row[1]
    found.seats[n, SEAT_OPERATION] = row[2]
    found.seat_members[n, 0], found.seat_members[n, 1] = m0, m1
    found.counters[SEATS] = n + 1


@njit(cache=True, forceinline=True)
def window_of(edges: Array, timestamp: int) -> Any:
    """Return the window of a timestamp within the range."""
    low, high = 0, len(edges) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if edges[middle] <= timestamp:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True)
def match_rows(log: Any, rows: Array, wanted: Any, out: Array) -> Any:
    """Write the rows (numbers, rising) that match into out; return (matches, rows looked at).

    Stops when out is full.  Rows before the range match if they add or remove a member.
    """
    data, edges = log.data, wanted.edges
    start, end = edges[0], edges[len(edges) - 1]
    r = s = -1
    first = row_end = slice_first = slice_end = np.int64(0)
    record = n = heap_end = metric_at = operation_at = heap = index = np.int64(0)
    found = 0
    for k in range(len(rows)):
        if found == len(out):
            return found, k
        row = np.int64(rows[k])
        while row >= row_end:
            r += 1
            first, record = np.int64(log.record_row[r]), np.int64(log.record_offset[r])
            row_end = first + np.int64(load_u32(data, record + 16))
            n, heap_end, metric_at, operation_at, heap = columns_at(data, record)
            s, slice_end = -1, np.int64(0)
        i = row - first
        number = np.int64(data[metric_at + 2 * i]) | np.int64(data[metric_at + 2 * i + 1]) << 8
        m = np.int64(wanted.local[number]) if number < len(wanted.local) else np.int64(-1)
        if m < 0 or is_refused(log.refused, row):
            continue
        timestamp = np.int64(load_u64(data, heap_end - 16 * n + 8 * i))
        operation = np.int64(data[operation_at + i])
        if timestamp >= end or (
            timestamp < start and (operation == 0 or wanted.metrics[m, KIND] == NOT_UNIQUE)
        ):
            continue
        entry = heap
        if i > 0:
            entry += np.int64(load_u32(data, heap_end + 4 * (i - 1)))
        account_end, _ = entry_parts(data, entry)
        if not is_account(data, entry + 2, account_end, wanted.account, wanted.mode):
            continue
        while i >= slice_end:
            s += 1
            at = record + HEADER_SIZE + SLICE_SIZE * s
            slice_first = slice_end
            slice_end += np.int64(load_u32(data, at + 4))
            index = np.int64(load_u64(data, at + 8))
        match = out[found]
        match[TIMESTAMP] = timestamp
        match[POSITION] = index << POSITION_ROW_BITS | (i - slice_first)
        match[ROW], match[NUMBER], match[OPERATION] = row, number, operation
        match[VALUE] = np.int64(load_u64(data, heap_end - 8 * n + 8 * i))
        match[ENTRY] = entry
        found += 1
    return found, len(rows)


@njit(cache=True)
def count_rows(
    data: Array, matches: Array, wanted: Any, key: Array, found: Any, recent: Array
) -> Any:
    """Count rows that match; return how many were, fewer than all when room is short.

    recent int64[RECENT, 3]: the cells that were counted into last, by entry and metric number with
    window.  It belongs to these entries: rows that share one share everything a cell depends on.
    """
    edges = wanted.edges
    for k in range(len(matches)):
        match = matches[k]
        timestamp, position, value = match[TIMESTAMP], match[POSITION], match[VALUE]
        number, operation, entry = match[NUMBER], match[OPERATION], match[ENTRY]
        metric = wanted.metrics[wanted.local[number]]
        window, which = np.int64(0), number
        if timestamp >= edges[0]:
            window = window_of(edges, timestamp)
            which |= window << 16
            mixed = (_U64(entry) ^ _U64(which) << _U64(40)) * _U64(0x9E3779B97F4A7C15)
            slot = np.int64(mixed >> _U64(64 - RECENT_BITS))
            if recent[slot, 0] != entry or recent[slot, 1] != which:
                slot ^= 1
            known = recent[slot, 0] == entry and recent[slot, 1] == which
            if known and metric[KIND] == NOT_UNIQUE:
                update_cell(found.cells, recent[slot, 2], timestamp, position, value)
                continue
        if not _has_room(found):
            return k
        account_end, properties = entry_parts(data, entry)
        account = np.int64(0)
        if wanted.by_account:
            account = _account_number(data, entry + 2, account_end, key, found)
        cell = np.int64(-1)
        if timestamp >= edges[0]:
            dims_end = _write_needed(data, properties, metric, wanted, found)
            cell = _cell_of((account, number, window), dims_end, key, found)
            update_cell(found.cells, cell, timestamp, position, value)
            if recent[slot, 0] >= 0:
                slot ^= 1
            recent[slot, 0], recent[slot, 1], recent[slot, 2] = entry, which, cell
        if metric[KIND] == NOT_UNIQUE:
            continue
        m0, m1, is_member = _member(data, properties, value, metric, wanted, key)
        if is_member and operation != 0:
            dims_end = _write_needed(data, properties, metric, wanted, found)
            cell = _cell_of((account, number, NO_WINDOW), dims_end, key, found)
            _add_seat(cell, (timestamp, position, operation), m0, m1, found)
        elif is_member:
            _add_member(cell, m0, m1, key, found)
    return len(matches)


@njit(cache=True)
def add_cells(cells: Array, wanted: Any, numbers: Array, key: Array, found: Any) -> Any:
    """Add what was counted by metric and window alone (segment_match.fold_runs).

    numbers int64: of each metric of `wanted`.  Returns how many cells were added, fewer than all
    when room is short.
    """
    windows = len(wanted.edges) - 1
    for c in range(len(numbers) * windows):
        if cells[c, cell_rows.COUNT] == 0:
            continue
        if not _has_room(found):
            return c
        m, window = c // windows, c % windows
        to = found.counters[DIMS_USED]
        dims_end = to + wanted.metrics[m, DIM_COUNT]
        for d in range(to, dims_end):
            found.dims[d] = 0
        cell = _cell_of((np.int64(0), numbers[m], window), dims_end, key, found)
        merge_cell(found.cells, cell, cells, c)
        cells[c, cell_rows.COUNT] = 0
    return len(numbers) * windows


@njit(cache=True)
def copy_entries(old: Any, new: Any) -> None:
    """Enter everything an index holds into a larger one."""
    slots = old.slots
    for slot in range(old.head[BUCKETS] * BUCKET_SLOTS):
        if slots[slot, 0] != 0:
            insert(new, slots[slot, 0], slots[slot, 1], slots[slot, 1] & PAYLOAD_MASK)
