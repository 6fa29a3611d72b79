"""Applies one record to the tables: what happens to every event, decided in log order.

For each row: its identity is looked up first; a known one is `duplicate` when it says the same,
else `conflict`.  Only then do the other rules look at it (too old, too far ahead).  What is left
is stored: its identity is entered and its value counted into the cell of its series and period.

In blocks of a few hundred rows: a pass hashes the rows, the next asks for the cache lines that
deciding and counting will read, so the memory is never waited for row by row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.bloom import HAS_FLUSHING, ask_filter, candidates
from meterd.core.kernels.cells import CELL_WORDS, HOT, POSITION_ROW_BITS, update_cell
from meterd.core.kernels.entries import (
    account_state,
    content_digest,
    entry_parts,
    find_property,
    identity_hash,
    member_of_text,
    member_of_value,
    write_dimensions,
)
from meterd.core.kernels.hashing import load_u16, load_u32, load_u64, prefetch, sip_finish
from meterd.core.kernels.index import (
    ENTRIES,
    MISSING,
    PAYLOAD_MASK,
    ask,
    ask_next,
    find,
    insert,
    insert_at,
    payload_at,
    probe,
    set_payload,
)
from meterd.core.kernels.memory import column_at, rows_at
from meterd.core.kernels.row_columns import (
    columns_of,
    entry_at,
    metric_at,
    timestamp_at,
    value_at,
)
from meterd.core.kernels.row_hashes import (
    BLOCK_ROWS,
    HASH_ARRAYS,
    WORD_ARRAYS,
    has_room,
    hash_contents,
    hash_identities,
    is_short,
    put_content,
    put_identity,
    words_of,
)
from meterd.core.kernels.runs import FOUND, NOT_FOUND, find_in_runs
from meterd.core.kernels.scan import SLICE_SIZE
from meterd.core.kernels.snapshot import before_change
from meterd.core.kernels.tables import (
    DAY_MASK,
    DAY_MAX,
    DAY_NS,
    DIMS_USED,
    RECENT,
    SEATS,
    add_account,
    add_cell,
    add_member,
    add_series,
    cell_hash,
    series_hash,
    tables_at,
)
from meterd.protocol import limits
from meterd.protocol.errors import CONFLICT, DUPLICATE, REASONS, REJECTED, STORED

Array = Any
_U64 = np.uint64

# Columns of what apply must know of a metric, by metric number (int64[numbers, 8]).
(
    UNIQUE_KIND,
    DECIMALS,
    DIM_FIRST,
    DIM_COUNT,
    BOUND_FIRST,
    BOUND_COUNT,
    UNIQUE_KEY_START,
    UNIQUE_KEY_END,
) = range(8)
NOT_UNIQUE, UNIQUE_VALUES, UNIQUE_PROPERTY = range(3)

# Outcome of a row: status | reason << 4.
TOO_OLD = REJECTED | REASONS.index("too_old") << 4
TOO_FAR_AHEAD = REJECTED | REASONS.index("too_far_ahead") << 4

# Instead of a period's start: the row lies in no period that memory keeps.
NOT_KEPT = np.int64(-(2**63))
# Instead of a metric's first bound: it has none (number 0, which no metric is given).
NO_BOUNDS = np.int64(-1)
# Room for the dimension tuple of one row: each value with its size.
DIMS_SIZE_MAX = limits.DIMENSIONS_MAX * (2 + limits.PROPERTY_VALUE_SIZE_MAX) + 8

# Instead of the number of rows stored: a row names a metric that was never given a number.
UNKNOWN_METRIC = -1
NEVER = np.int64(-(2**63))


class MetricTable(NamedTuple):
    """Everything about metrics that apply reads; kernels take its handle."""

    rows: Array  # int64[numbers, 8]
    code_hashes: Array  # u64[numbers]
    keys: Array  # u8: dimension and unique_on keys, one after another
    places: Array  # int64[n, 2]: where each dimension key begins and ends in keys
    bounds: Array  # int64: starts of the periods kept in memory, per metric


class Scratch(NamedTuple):
    """What `apply` works in, for the rows of one block but for the outcome; as a handle."""

    hashes: Array  # u64[b, 7]: account, identity, content digest, cell
    periods: Array  # int64[b]: start of the period kept in memory, or NOT_KEPT
    cells: Array  # int64[b]
    dims: Array  # u8: one dimension tuple
    cursor: Array  # int64[2]: the slice of the next row, and the row's place in it
    known: Array  # u64[b]: payload | FOUND of an identity that is older than `recent`
    wanted: Array  # int64[b]: rows whose identity may be older
    matches: Array  # int64[b]: what looking for them works in
    outcome: Array  # u8[rows of a record]: status | reason << 4
    words: Array  # u64: what is hashed of the rows, see kernels/row_hashes.py
    lanes: Array  # u64: its hashes, in its form


def make_scratch(rows_max: int) -> Scratch:
    """Return room to work in for records of at most `rows_max` rows."""
    return Scratch(
        np.empty((BLOCK_ROWS, 7), np.uint64),
        np.empty(BLOCK_ROWS, np.int64),
        np.empty(BLOCK_ROWS, np.int64),
        np.empty(DIMS_SIZE_MAX, np.uint8),
        np.zeros(2, np.int64),
        np.empty(BLOCK_ROWS, np.uint64),
        np.empty(BLOCK_ROWS, np.int64),
        np.empty(BLOCK_ROWS, np.int64),
        np.empty(rows_max, np.uint8),
        np.zeros(WORD_ARRAYS * BLOCK_ROWS, np.uint64),
        np.zeros(HASH_ARRAYS * BLOCK_ROWS, np.uint64),
    )


@njit(cache=True, forceinline=True, _nrt=False)
def _metrics_at(handle: Array) -> Any:
    return MetricTable(
        rows_at(handle, 0, 8, np.int64),
        column_at(handle, 1, np.uint64),
        column_at(handle, 2, np.uint8),
        rows_at(handle, 3, 2, np.int64),
        column_at(handle, 4, np.int64),
    )


@njit(cache=True, forceinline=True, _nrt=False)
def _scratch_at(handle: Array) -> Any:
    return Scratch(
        rows_at(handle, 0, 7, np.uint64),
        column_at(handle, 1, np.int64),
        column_at(handle, 2, np.int64),
        column_at(handle, 3, np.uint8),
        column_at(handle, 4, np.int64),
        column_at(handle, 5, np.uint64),
        column_at(handle, 6, np.int64),
        column_at(handle, 7, np.int64),
        column_at(handle, 8, np.uint8),
        column_at(handle, 9, np.uint64),
        column_at(handle, 10, np.uint64),
    )


@njit(cache=True, forceinline=True, _nrt=False)
def _expired(payload: Any, horizon_day: int) -> Any:
    """Is an identity's event older than the horizon, which is the beginning of a day?"""
    return np.int64(payload & DAY_MASK) < horizon_day


@njit(cache=True, forceinline=True, _nrt=False)
def _day(timestamp: int) -> Any:
    """Return the day of a moment, within what 16 bits hold (1970 to 2149)."""
    return min(max(timestamp // DAY_NS, 0), DAY_MAX)


@njit(cache=True, forceinline=True, _nrt=False)
def _known(payload: Any, digest: Any) -> Any:
    """Return the status of a row whose identity is known."""
    return DUPLICATE if payload & ~DAY_MASK == digest else CONFLICT


@njit(cache=True, _nrt=False)
def _period_of(bounds: Array, first: int, count: int, timestamp: int) -> Any:
    """Return (start, end) of the period in memory that holds the timestamp, or NOT_KEPT twice."""
    low, high = first, first + count - 1  # the last bound only ends the last period
    if count < 2 or timestamp < bounds[low] or timestamp >= bounds[high]:
        return NOT_KEPT, NOT_KEPT
    while high - low > 1:
        middle = (low + high) // 2
        if bounds[middle] <= timestamp:
            low = middle
        else:
            high = middle
    return bounds[low], bounds[high]


@njit(cache=True, _nrt=False)
def _lay_out_rows(columns: Any, block: Any, metrics: Array, scratch: Array) -> Any:
    """Lay out what is hashed of a block's rows, and find their periods.

    Returns how many words the longest account or id has, and how many rows have no room for
    theirs, or for their properties.
    Neighbouring rows often lie in the same period: what was found for the last row is kept.
    """
    work = _scratch_at(scratch)
    words, periods = work.words, work.periods
    rows, code_hashes, _, _, bounds = _metrics_at(metrics)
    data = columns.data
    first, last = block
    start = entry_at(columns, first)
    bounds_of, period, period_end = NO_BOUNDS, NOT_KEPT, NOT_KEPT
    longest = long_names = long_contents = np.int64(0)
    for i in range(first, last):
        j = i - first
        end = entry_at(columns, i + 1)
        account_end, id_end = entry_parts(data, start)
        longest = max(longest, max(account_end - start - 2, id_end - account_end))
        long_names += 1 - np.int64(put_identity(words, j, data, start, account_end, id_end))
        m, at = metric_at(columns, i), timestamp_at(columns, i)
        metric = rows[m]
        fits = put_content(
            words,
            j,
            code_hashes[m],
            value_at(columns, i),
            metric[DECIMALS],
            at,
            np.int64(data[columns.operation + i]),
            data,
            id_end,
            end,
        )
        long_contents += 1 - np.int64(fits)
        bounds_first = metric[BOUND_FIRST] if metric[BOUND_COUNT] else NO_BOUNDS
        if bounds_first != bounds_of or at < period or at >= period_end:
            bounds_of = bounds_first
            period, period_end = _period_of(bounds, bounds_of, metric[BOUND_COUNT], at)
        periods[j] = period
        start = end
    return words_of(longest), long_names, long_contents


@njit(cache=True, _nrt=False)
def _hash_rows(columns: Any, block: Any, handle: Array, metrics: Array, scratch: Array) -> None:
    """Hash a block's rows and find their periods."""
    work = _scratch_at(scratch)
    key = tables_at(handle).key
    k0, k1 = key[0], key[1]
    first, last = block
    most, long_names, long_contents = _lay_out_rows(columns, block, metrics, scratch)
    if long_names < last - first:
        hash_identities(k0, k1, work.words, last - first, work.lanes, most)
    if long_contents < last - first:
        hash_contents(k0, k1, work.words, last - first, work.lanes)
    if long_names:
        _hash_long_names(columns, block, k0, k1, scratch)
    if long_contents:
        _hash_long_contents(columns, block, k0, k1, metrics, scratch)
    _hash_cells(columns, block, k0, k1, metrics, scratch)


@njit(cache=True, _nrt=False)
def _hash_long_names(columns: Any, block: Any, k0: Any, k1: Any, scratch: Array) -> None:
    """Hash account and identity of the rows that had no room for them."""
    work = _scratch_at(scratch)
    lanes, data = work.lanes, columns.data
    first, last = block
    for i in range(first, last):
        j = i - first
        start = entry_at(columns, i)
        account_end, id_end = entry_parts(data, start)
        if has_room(account_end - start - 2) and has_room(id_end - account_end):
            continue
        v0, v1, v2, v3 = account_state(k0, k1, data, start + 2, account_end)
        lanes[j], lanes[BLOCK_ROWS + j] = sip_finish(v0, v1, v2, v3)
        id_size = np.int64(data[start + 1])
        lanes[2 * BLOCK_ROWS + j], lanes[3 * BLOCK_ROWS + j] = identity_hash(
            v0, v1, v2, v3, data, account_end, id_end, id_size
        )


@njit(cache=True, _nrt=False)
def _hash_long_contents(
    columns: Any, block: Any, k0: Any, k1: Any, metrics: Array, scratch: Array
) -> None:
    """Hash the content of the rows that had no room for their properties."""
    work = _scratch_at(scratch)
    rows, code_hashes, _, _, _ = _metrics_at(metrics)
    data = columns.data
    first, last = block
    start = entry_at(columns, first)
    for i in range(first, last):
        end = entry_at(columns, i + 1)
        _, id_end = entry_parts(data, start)
        if not is_short(end - id_end):
            m = metric_at(columns, i)
            work.lanes[4 * BLOCK_ROWS + i - first] = content_digest(
                k0,
                k1,
                code_hashes[m],
                value_at(columns, i),
                rows[m, DECIMALS],
                timestamp_at(columns, i),
                np.int64(data[columns.operation + i]),
                data,
                id_end,
                end,
            )
        start = end


@njit(cache=True, _nrt=False)
def _hash_cells(columns: Any, block: Any, k0: Any, k1: Any, metrics: Array, scratch: Array) -> None:
    """Put the hashes of each row side by side, with that of its cell."""
    work = _scratch_at(scratch)
    hashes, lanes, periods, dims = work.hashes, work.lanes, work.periods, work.dims
    rows, _, keys, places, _ = _metrics_at(metrics)
    first, last = block
    for i in range(first, last):
        j = i - first
        a0, a1 = lanes[j], lanes[BLOCK_ROWS + j]
        hashes[j, 0], hashes[j, 1] = a0, a1
        hashes[j, 2], hashes[j, 3] = lanes[2 * BLOCK_ROWS + j], lanes[3 * BLOCK_ROWS + j]
        hashes[j, 4] = lanes[4 * BLOCK_ROWS + j]
        if periods[j] == NOT_KEPT:
            continue
        m, size = metric_at(columns, i), np.int64(0)
        if rows[m, DIM_COUNT]:
            _, id_end = entry_parts(columns.data, entry_at(columns, i))
            size = write_dimensions(
                dims,
                0,
                columns.data,
                id_end,
                keys,
                places,
                rows[m, DIM_FIRST],
                rows[m, DIM_COUNT],
            )
        hashes[j, 5], hashes[j, 6] = cell_hash(k0, k1, a0, a1, m, periods[j], dims, 0, size)


@njit(cache=True, _nrt=False)
def _ask_for_lines(rows: int, handle: Array, scratch: Array) -> None:
    """Ask for the cache lines that a block's rows will read in the two largest indexes."""
    tables = tables_at(handle)
    work = _scratch_at(scratch)
    hashes, periods = work.hashes, work.periods
    recent, cell_index = tables.recent, tables.cell_index
    ask_filter(tables.filter, hashes, rows)
    for j in range(rows):
        ask(recent, hashes[j, 2])
        if periods[j] != NOT_KEPT:
            ask(cell_index, hashes[j, 5])
    for j in range(rows):
        ask_next(recent, hashes[j, 2])


@njit(cache=True, _nrt=False)
def _find_older(rows: int, handle: Array, horizon: int, scratch: Array) -> None:
    """Look for a block's identities where none is added: what is being flushed, and the runs.

    Writes payload | FOUND of those that have not expired, and NOT_FOUND.
    """
    tables = tables_at(handle)
    work = _scratch_at(scratch)
    hashes, known = work.hashes, work.known
    horizon_day = horizon // DAY_NS
    flushing = tables.flushing
    known[:rows] = NOT_FOUND
    perhaps = candidates(tables.filter, hashes, rows, work.wanted)
    if flushing.head[ENTRIES]:
        few = tables.filter.facts[HAS_FLUSHING] != 0
        for i in range(perhaps if few else rows):
            ask(flushing, hashes[work.wanted[i] if few else i, 2])
        for i in range(perhaps if few else rows):
            j = work.wanted[i] if few else i
            slot = find(flushing, hashes[j, 2], hashes[j, 3])
            if slot != MISSING and not _expired(payload_at(flushing, slot), horizon_day):
                known[j] = payload_at(flushing, slot) | FOUND
    runs = (tables.runs, tables.run_facts)
    find_in_runs(runs, hashes, work.wanted[:perhaps], horizon_day, known, work.matches)


@njit(cache=True, _nrt=False)
def _count_member(handle: Array, metrics: Array, row: Any, cell: int) -> None:
    """Count the member that a row of a unique metric names: (metric, value, data, properties)."""
    metric, value, data, properties = row
    table = _metrics_at(metrics)
    m = table.rows[metric]
    key = tables_at(handle).key
    if m[UNIQUE_KIND] == UNIQUE_VALUES:
        m0, m1 = member_of_value(key[0], key[1], value, m[DECIMALS])
        add_member(handle, cell, m0, m1)
        return
    start, end = find_property(data, properties, table.keys, m[UNIQUE_KEY_START], m[UNIQUE_KEY_END])
    if end >= start:
        m0, m1 = member_of_text(key[0], key[1], data, start, end)
        add_member(handle, cell, m0, m1)


@njit(cache=True, _nrt=False)
def _decide(columns: Any, block: Any, handle: Array, times: Any, scratch: Array) -> Any:
    """Give every row its outcome and enter the identities of those stored.

    Returns (how many were stored, the newest timestamp among them or NEVER).
    """
    tables = tables_at(handle)
    work = _scratch_at(scratch)
    hashes, older, outcome = work.hashes, work.known, work.outcome
    horizon, latest = times
    begin, end = block
    recent, journal, counters = tables.recent, tables.journal, tables.counters
    horizon_day = horizon // DAY_NS
    n = first = counters[RECENT]
    newest = NEVER
    for i in range(begin, end):
        j = i - begin
        i0, i1, digest = hashes[j, 2], hashes[j, 3], hashes[j, 4]
        slot, known = probe(recent, i0, i1)
        at = timestamp_at(columns, i)
        if known and not _expired(payload_at(recent, slot), horizon_day):
            outcome[i] = _known(payload_at(recent, slot), digest)
        elif older[j] != NOT_FOUND:
            outcome[i] = _known(older[j] & PAYLOAD_MASK, digest)
        elif at < horizon:
            outcome[i] = TOO_OLD
        elif at > latest:
            outcome[i] = TOO_FAR_AHEAD
        else:
            outcome[i] = STORED
            newest = max(newest, at)
            payload = digest | _U64(_day(at))
            if known:
                set_payload(recent, slot, payload)  # the expired event's identity is free again
            else:
                insert_at(recent, slot, i0, i1, payload)
            journal[n, 0], journal[n, 1] = i0, (i1 & ~PAYLOAD_MASK) | payload
            n += 1
    counters[RECENT] = n
    return n - first, newest


@njit(cache=True, _nrt=False)
def _series_of(handle: Array, metrics: Array, data: Array, row: Any, hashes: Array) -> Any:
    """Return the series of a row; make it, and its account, if need be.

    row: its place in the block, its metric, its heap entry, its partition.
    """
    tables = tables_at(handle)
    table = _metrics_at(metrics)
    j, m, entry, partition = row
    account_end, properties = entry_parts(data, entry)
    slot = find(tables.account_index, hashes[j, 0], hashes[j, 1])
    if slot == MISSING:
        account = add_account(handle, data, entry + 2, account_end)
    else:
        account = np.int64(payload_at(tables.account_index, slot))
    dims_start = tables.counters[DIMS_USED]
    dims_end = write_dimensions(
        tables.dims,
        dims_start,
        data,
        properties,
        table.keys,
        table.places,
        table.rows[m, DIM_FIRST],
        table.rows[m, DIM_COUNT],
    )
    s0, s1 = series_hash(tables.key, account, m, tables.dims, dims_start, dims_end)
    slot = find(tables.series_index, s0, s1)
    if slot != MISSING:
        return np.int64(payload_at(tables.series_index, slot))
    series = add_series(handle, account, m, dims_end, partition)
    insert(tables.series_index, s0, s1, _U64(series))
    return series


@njit(cache=True, _nrt=False)
def _find_cells(block: Any, handle: Array, scratch: Array) -> None:
    """Write the cell of every stored row, or MISSING, and ask for its cache lines."""
    tables = tables_at(handle)
    work = _scratch_at(scratch)
    hashes, periods, found, outcome = work.hashes, work.periods, work.cells, work.outcome
    cell_index = tables.cell_index
    hot = tables.cells.reshape(-1, HOT)
    first, last = block
    for i in range(first, last):
        j = i - first
        found[j] = MISSING
        if outcome[i] == STORED and periods[j] != NOT_KEPT:
            slot = find(cell_index, hashes[j, 5], hashes[j, 6])
            if slot != MISSING:
                cell = np.int64(payload_at(cell_index, slot))
                found[j] = cell
                prefetch(hot, cell * (CELL_WORDS // HOT) + 1)


@njit(cache=True, _nrt=False)
def _new_cell(handle: Array, metrics: Array, data: Array, row: Any, scratch: Array) -> Any:
    """Return the cell of a row that had none, made unless an earlier row of the block made it."""
    tables = tables_at(handle)
    work = _scratch_at(scratch)
    hashes, periods = work.hashes, work.periods
    j, _, _, _ = row
    slot = find(tables.cell_index, hashes[j, 5], hashes[j, 6])
    if slot != MISSING:
        return np.int64(payload_at(tables.cell_index, slot))
    series = _series_of(handle, metrics, data, row, hashes)
    return add_cell(handle, series, periods[j], hashes[j, 5], hashes[j, 6])


@njit(cache=True, _nrt=False)
def _count(
    columns: Any, block: Any, slices: Array, handle: Array, metrics: Array, scratch: Array
) -> None:
    """Count a block's stored rows into the cells of their series and periods."""
    tables = tables_at(handle)
    rows = _metrics_at(metrics).rows
    work = _scratch_at(scratch)
    hashes, periods, found, cursor = work.hashes, work.periods, work.cells, work.cursor
    outcome = work.outcome
    data, cells = columns.data, tables.cells
    first, last = block
    s, place = cursor[0], cursor[1]
    for i in range(first, last):
        if place == np.int64(load_u32(slices, SLICE_SIZE * s + 4)):
            s, place = s + 1, np.int64(0)
        j = i - first
        m = metric_at(columns, i)
        unique = rows[m, UNIQUE_KIND] != NOT_UNIQUE
        if outcome[i] == STORED and (unique or periods[j] != NOT_KEPT):
            entry = entry_at(columns, i)
            row = (j, m, entry, np.int64(load_u16(slices, SLICE_SIZE * s)))
            if periods[j] != NOT_KEPT:
                cell = found[j]
                if cell == MISSING:
                    cell = _new_cell(handle, metrics, data, row, scratch)
                index = np.int64(load_u64(slices, SLICE_SIZE * s + 8))
                position = (index << POSITION_ROW_BITS) + place
                value = value_at(columns, i)
                before_change(tables.snapshot, cells, cell)
                update_cell(cells, cell, timestamp_at(columns, i), position, value)
                if unique:
                    _, properties = entry_parts(data, entry)
                    _count_member(handle, metrics, (m, value, data, properties), cell)
            if unique and data[columns.operation + i] != 0:
                # Seats: only the whole history tells who is present, whichever period it is.
                series = _series_of(handle, metrics, data, row, hashes)
                tables.series[series, SEATS] = 1
        place += 1
    cursor[0], cursor[1] = s, place


@njit(cache=True, nogil=True, _nrt=False)
def apply(
    payload: Array, n: int, slices: Array, tables: Array, metrics: Array, scratch: Array, times: Any
) -> Any:
    """Apply one record of n rows: (rows stored, newest timestamp among them or NEVER).

    payload and slices are u8, as in the log; tables, metrics and scratch handles (of Tables,
    MetricTable, Scratch, where the outcome is left); times (horizon, latest timestamp taken).
    A record that names a metric without a number changes nothing: (UNKNOWN_METRIC, NEVER).
    """
    columns = columns_of(payload, n)
    unknown = np.int64(0)
    for i in range(n):
        unknown += np.int64(metric_at(columns, i) >= metrics[0, 1])
    if unknown:
        return np.int64(UNKNOWN_METRIC), NEVER
    cursor = _scratch_at(scratch).cursor
    cursor[0] = cursor[1] = 0
    stored, newest = np.int64(0), NEVER
    first = 0
    while first < n:
        rows = min(BLOCK_ROWS, n - first)
        block = (first, first + rows)
        _hash_rows(columns, block, tables, metrics, scratch)
        _ask_for_lines(rows, tables, scratch)
        _find_older(rows, tables, times[0], scratch)
        taken, at = _decide(columns, block, tables, times, scratch)
        if taken:
            _find_cells(block, tables, scratch)
        _count(columns, block, slices, tables, metrics, scratch)
        stored += taken
        newest = max(newest, at)
        first += BLOCK_ROWS
    return stored, newest


@njit(cache=True, _nrt=False)
def _hash_refused(rows: Array, heap: Array, block: Any, handle: Array, hashes: Array) -> None:
    """Hash the identities of a block of refused rows."""
    key = tables_at(handle).key
    for i in range(block[0], block[1]):
        start = rows[i, 4]
        account_end, id_end = entry_parts(heap, start)
        v0, v1, v2, v3 = account_state(key[0], key[1], heap, start + 2, account_end)
        j = i - block[0]
        hashes[j, 2], hashes[j, 3] = identity_hash(
            v0, v1, v2, v3, heap, account_end, id_end, np.int64(heap[start + 1])
        )


@njit(cache=True, _nrt=False)
def judge(
    rows: Array, heap: Array, code_hashes: Array, handles: Any, horizon: int, outcome: Array
) -> None:
    """Say what refused rows are: duplicate or conflict if their identity is known, else rejected.

    rows int64[n, 8] as kernels/stage.py leaves them (metric = position in code_hashes);
    handles of Tables and Scratch; outcome u8[n].
    """
    handle, scratch = handles
    tables = tables_at(handle)
    work = _scratch_at(scratch)
    recent, key = tables.recent, tables.key
    first = 0
    while first < len(rows):
        last = min(first + BLOCK_ROWS, len(rows))
        _hash_refused(rows, heap, (first, last), handle, work.hashes)
        _find_older(last - first, handle, horizon, scratch)
        for i in range(first, last):
            j = i - first
            flags, payload = rows[i, 3], work.known[j]
            slot = find(recent, work.hashes[j, 2], work.hashes[j, 3])
            if slot != MISSING and not _expired(payload_at(recent, slot), horizon // DAY_NS):
                payload = payload_at(recent, slot) | FOUND
            if payload == NOT_FOUND:
                outcome[i] = REJECTED | ((flags >> 16) & 0xFF) << 4
            elif (flags >> 40) & 1:
                outcome[i] = CONFLICT
            else:
                _, id_end = entry_parts(heap, rows[i, 4])
                digest = content_digest(
                    key[0],
                    key[1],
                    code_hashes[rows[i, 2]],
                    rows[i, 1],
                    (flags >> 8) & 0xFF,
                    rows[i, 0],
                    flags & 0xFF,
                    heap,
                    id_end,
                    rows[i, 5],
                )
                outcome[i] = _known(payload & PAYLOAD_MASK, digest)
        first = last


@njit(cache=True, _nrt=False)
def load_identities(index: Any, entries: Array, horizon: int) -> None:
    """Enter saved identities (u64[n, 2]) that have not expired; a later one replaces an earlier."""
    horizon_day = horizon // DAY_NS
    for i in range(len(entries)):
        word_0, word_1 = entries[i, 0], entries[i, 1]
        if _expired(word_1, horizon_day):
            continue
        slot = find(index, word_0, word_1)
        if slot == MISSING:
            insert(index, word_0, word_1, word_1 & PAYLOAD_MASK)
        else:
            set_payload(index, slot, word_1 & PAYLOAD_MASK)
