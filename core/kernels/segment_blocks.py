"""Encodes and decodes the blocks of a segment: columns, ids, and the pages of its index.

A column block (docs/STORAGE.md, "Segment") has a head of 32 bytes, then packed columns: series
start, timestamp, value, ordinal, operation, property set.  A row that starts a series has its
distance to the block's least timestamp and ordinal, every other one its distance to the row before.
Times and values are divided by the greatest power of a thousand, or of ten, that divides all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import load_u32, load_u64, partition_of, prefetch
from meterd.core.kernels.packing import pack_column, skip_column, unpack_column
from meterd.core.kernels.segment_rows import (
    AHEAD,
    ID_0,
    ID_1,
    KEY,
    PLACE,
    TEXT_ID,
    TIMESTAMP,
    VALUE,
)
from meterd.core.kernels.text import copy_bytes, store_u32, store_u64

Array = Any
_U64 = np.uint64

# Decoded columns (int64[6, rows]).
START, AT, AMOUNT, ORDINAL, OPERATION, SET = range(6)
COLUMN_COUNT = 6
HEAD_SIZE = 32
TAIL_SIZE = 8
# Facts about an encoded block (int64[6]).
SIZE, ID_SIZE, MIN_AT, MAX_AT, HAS_OPERATIONS, HAS_TEXT, FACT_WORDS = range(7)
# Series listed (int64[3]): runs and accounts so far, account << 16 | metric number of the last run.
RUNS, ACCOUNTS, LAST_SERIES = range(3)
TEXT_MASK = (1 << 32) - 1


@njit(cache=True, nogil=True, _nrt=False)
def encode_blocks(
    rows: Array, order: Array, id_text: Array, sets: Any, series: Any, columns: Array, out: Any
) -> None:
    """Encode the blocks of the rows in `order` to out: (columns u8, ids u8, facts int64[b, 6]).

    sets: (map int64[old sets] to new numbers or -1, old numbers of those that get one here int64,
    state int64[2] new numbers given so far, and here).  series: (runs int64[n, 2] of metric number
    and rows, first run of each account int64[a], account number in rows int64[a], state int64[3]
    of runs and accounts so far, and the last run's series).  columns: int64[6, rows of a block].
    """
    blocks, ids, facts = out
    n, size = len(order), columns.shape[1]
    sets[2][1] = 0
    at = id_at = np.int64(0)
    for b in range(len(facts)):
        part = order[b * size : min(b * size + size, n)]
        end = _encode_block(rows, part, sets, series, columns, blocks, at, facts[b])
        id_end = _ids(rows, part, id_text, facts[b, HAS_TEXT], ids, id_at)
        facts[b, SIZE], facts[b, ID_SIZE] = end - at, id_end - id_at
        at, id_at = end, id_end


@njit(cache=True, _nrt=False)
def _encode_block(
    rows: Array,
    order: Array,
    sets: Any,
    series: Any,
    columns: Array,
    block: Array,
    at: int,
    facts: Array,
) -> Any:
    """Write a column block to block[at:]; return where it ends."""
    n = len(order)
    low = high = rows[order[0], TIMESTAMP]
    least = rows[order[0], PLACE] & TEXT_MASK
    seen, texts = np.int64(0), np.int64(0)
    for k in range(n):
        prefetch(rows, order[min(k + AHEAD, n - 1)])
        row = rows[order[k]]
        low, high = min(low, row[TIMESTAMP]), max(high, row[TIMESTAMP])
        least = min(least, row[PLACE] & TEXT_MASK)
        seen |= row[KEY] & 0xFF00
        texts |= row[KEY] & TEXT_ID
    _columns(rows, order, low, least, sets, series, columns)
    time_unit = _unit(columns[AT], n, _U64(1_000_000_000), _U64(1_000))
    value_unit = _value_unit(columns[AMOUNT], n)
    store_u64(block, at, _U64(low))
    store_u64(block, at + 8, time_unit)
    store_u64(block, at + 16, value_unit)
    store_u32(block, at + 24, np.uint32(least))
    store_u32(block, at + 28, np.uint32(n))
    at += HEAD_SIZE
    for column in range(COLUMN_COUNT):
        at = pack_column(columns[column], n, block, at)
    store_u64(block, at, _U64(0))
    facts[MIN_AT], facts[MAX_AT] = low, high
    facts[HAS_OPERATIONS], facts[HAS_TEXT] = seen != 0, texts
    return at + TAIL_SIZE


@njit(cache=True, _nrt=False)
def _columns(
    rows: Array, order: Array, low: int, least: int, sets: Any, series: Any, columns: Array
) -> None:
    """Write the columns of a block as they are packed, but for their units; list its series."""
    set_map, set_order, state = sets
    runs, _, _, listed = series
    last = np.int64(-1)
    before = place = begun = np.int64(0)
    for k in range(len(order)):
        row = rows[order[k]]
        timestamp, ordinal = row[TIMESTAMP], row[PLACE] & TEXT_MASK
        starts = row[KEY] >> 16 != last
        if starts:
            last = row[KEY] >> 16
            before, place = low, least
            if last != listed[LAST_SERIES]:
                runs[listed[RUNS] - 1, 1] += k - begun
                begun = np.int64(k)
                _begin_run(last, series)
        columns[START, k] = starts
        columns[AT, k] = np.int64(_U64(timestamp) - _U64(before))
        columns[AMOUNT, k] = row[VALUE]
        columns[ORDINAL, k] = ordinal - place
        columns[OPERATION, k] = (row[KEY] >> 8) & 0xFF
        old = row[PLACE] >> 32
        if set_map[old] < 0:
            set_map[old] = state[0]
            set_order[state[1]] = old
            state[0] += 1
            state[1] += 1
        columns[SET, k] = set_map[old]
        before, place = timestamp, ordinal
    runs[listed[RUNS] - 1, 1] += len(order) - begun


@njit(cache=True, forceinline=True, _nrt=False)
def _begin_run(found: int, series: Any) -> None:
    runs, first_run, numbers, listed = series
    if found >> 16 != listed[LAST_SERIES] >> 16:
        first_run[listed[ACCOUNTS]] = listed[RUNS]
        numbers[listed[ACCOUNTS]] = found >> 16
        listed[ACCOUNTS] += 1
    runs[listed[RUNS], 0] = found & 0xFFFF
    runs[listed[RUNS], 1] = 0
    listed[RUNS] += 1
    listed[LAST_SERIES] = found


@njit(cache=True, _nrt=False)
def _unit(values: Array, n: int, unit: Any, step: Any) -> Any:
    """Return the greatest of unit, unit / step, … that divides all values; divide them by it."""
    for k in range(n):
        while unit > _U64(1) and _U64(values[k]) % unit != _U64(0):
            unit //= step
        if unit == _U64(1):
            return unit
    for k in range(n):
        values[k] = np.int64(_U64(values[k]) // unit)
    return unit


@njit(cache=True, _nrt=False)
def _value_unit(values: Array, n: int) -> Any:
    """Return the greatest power of ten, at most 10^9, that divides all values; divide by it."""
    unit = np.int64(1_000_000_000)
    for k in range(n):
        while unit > 1 and values[k] % unit != 0:
            unit //= 10
        if unit == 1:
            return _U64(1)
    for k in range(n):
        values[k] //= unit
    return _U64(unit)


@njit(cache=True, _nrt=False)
def _ids(rows: Array, order: Array, id_text: Array, texts: int, ids: Array, begin: int) -> Any:
    """Write the ids of a block: 16 bytes each, or if any is text all sizes (0: UUID) before.

    Returns where they end.
    """
    n = len(order)
    at = begin + np.int64(n if texts else 0)
    for k in range(n):
        row = rows[order[k]]
        if row[KEY] & TEXT_ID:
            ids[begin + k] = row[ID_1] - row[ID_0]
            at = copy_bytes(ids, at, id_text, row[ID_0], row[ID_1])
            continue
        if texts:
            ids[begin + k] = 0
        store_u64(ids, at, _U64(row[ID_0]))
        store_u64(ids, at + 8, _U64(row[ID_1]))
        at += 16
    return at


@njit(cache=True, _nrt=False)
def decode_block(data: Array, at: int, with_sets: bool, columns: Array) -> Any:
    """Read the column block at data[at:] into columns (int64[6, rows]); return its rows."""
    low = load_u64(data, at)
    time_unit, value_unit = load_u64(data, at + 8), np.int64(load_u64(data, at + 16))
    least, n = np.int64(load_u32(data, at + 24)), np.int64(load_u32(data, at + 28))
    at += HEAD_SIZE
    for column in range(SET):
        at = unpack_column(data, at, n, columns[column])
    if with_sets:
        unpack_column(data, at, n, columns[SET])
    starts, times, ordinals = columns[START], columns[AT], columns[ORDINAL]
    before, place = low, least
    for k in range(n):
        if starts[k]:
            before, place = low, least
        before += _U64(times[k]) * time_unit
        place += ordinals[k]
        times[k], ordinals[k] = np.int64(before), place
    if value_unit != 1:
        values = columns[AMOUNT]
        for k in range(n):
            values[k] *= value_unit
    return n


@njit(cache=True, _nrt=False)
def decode_ordinals(data: Array, at: int, columns: Array) -> Any:
    """Read only the ordinals of the column block at data[at:]; return its rows."""
    least, n = np.int64(load_u32(data, at + 24)), np.int64(load_u32(data, at + 28))
    at = unpack_column(data, at + HEAD_SIZE, n, columns[START])
    at = skip_column(data, skip_column(data, at, n), n)
    unpack_column(data, at, n, columns[ORDINAL])
    starts, ordinals = columns[START], columns[ORDINAL]
    place = least
    for k in range(n):
        if starts[k]:
            place = least
        place += ordinals[k]
        ordinals[k] = place
    return n


@njit(cache=True, forceinline=True, _nrt=False)
def _write_varint(out: Array, at: int, value: int) -> Any:
    while value >= 128:
        out[at] = value & 127 | 128
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@njit(cache=True, forceinline=True, _nrt=False)
def read_varint(data: Array, at: int) -> Any:
    """Return (value, where it ends)."""
    value, shift = np.int64(0), np.int64(0)
    while data[at] >= 128:
        value |= np.int64(data[at] & 127) << shift
        shift += 7
        at += 1
    return value | np.int64(data[at]) << shift, at + 1


@njit(cache=True, nogil=True, _nrt=False)
def write_pages(
    text: Array, text_end: Array, first_run: Array, runs: Array, page_accounts: int, out: Any
) -> Any:
    """Write the pages of an index; return where they end.

    out: (bytes u8, pages int64[p, 6]: offset, size, first row, runs, partition, text).
    An account: shared size u8 (with the one before) · size of the rest u8 · the rest · its runs
    (varint), each run: metric number less the one before (varint) · rows (varint).
    """
    data, pages = out
    at, row = np.int64(0), np.int64(0)
    n = len(text_end)
    start, before, before_end = np.int64(0), np.int64(0), np.int64(0)
    page = -1
    for account in range(n):
        end = text_end[account]
        shared = np.int64(0)
        if account % page_accounts == 0:
            page += 1
            pages[page, 0], pages[page, 1], pages[page, 2] = at, 0, row
            pages[page, 3], pages[page, 5] = 0, 0
            pages[page, 4] = partition_of(text, start, end)
        else:
            most = min(end - start, before_end - before)
            while shared < most and text[start + shared] == text[before + shared]:
                shared += 1
        data[at], data[at + 1] = shared, end - start - shared
        at = copy_bytes(data, at + 2, text, start + shared, end)
        last = first_run[account + 1]
        at = _write_varint(data, at, last - first_run[account])
        number = np.int64(0)
        for run in range(first_run[account], last):
            at = _write_varint(data, at, runs[run, 0] - number)
            at = _write_varint(data, at, runs[run, 1])
            number = runs[run, 0]
            row += runs[run, 1]
        pages[page, 1] = at - pages[page, 0]
        pages[page, 3] += last - first_run[account]
        pages[page, 5] += end - start
        before, before_end = start, end
        start = end
    return at


@njit(cache=True, nogil=True, _nrt=False)
def pack_slices(slices: Array, order: Array, columns: Array, out: Array) -> Any:
    """Write one group's slices (first ordinal, index, term; each less the one before) to out;
    return how many bytes.  `order` names its rows in slices int64[k, 4]; columns int64[3, k]."""
    n = len(order)
    ordinal = index = term = np.int64(0)
    for k in range(n):
        row = slices[order[k]]
        columns[0, k], columns[1, k], columns[2, k] = (
            row[1] - ordinal,
            row[2] - index,
            row[3] - term,
        )
        ordinal, index, term = row[1], row[2], row[3]
    at = np.int64(0)
    for column in range(3):
        at = pack_column(columns[column], n, out, at)
    return at


@njit(cache=True, _nrt=False)
def unpack_slices(data: Array, at: int, n: int, out: Array) -> None:
    """Read a group's slices into out: int64[3, n] of first ordinal, index, term."""
    for column in range(3):
        at = unpack_column(data, at, n, out[column])
        for k in range(1, n):
            out[column, k] += out[column, k - 1]
