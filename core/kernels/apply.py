"""Applies one record to the tables: what happens to every event, decided in log order.

For each row: its identity is looked up first; a known one is `duplicate` when it says the same,
else `conflict`.  Only then do the other rules look at it (too old, too far ahead).  What is left
is stored: its identity is entered and its value counted into the cell of its series and period.

In blocks of a few hundred rows: a pass hashes the rows and asks for the cache lines that the next
passes will read, so the memory is never waited for row by row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.cells import CELL_WORDS, POSITION_ROW_BITS, update_cell
from meterd.core.kernels.entries import (
    account_hash,
    content_digest,
    entry_parts,
    find_property,
    identity_hash,
    member_of_text,
    member_of_value,
    write_dimensions,
)
from meterd.core.kernels.hashing import prefetch
from meterd.core.kernels.index import (
    BUCKET_SLOTS,
    ENTRIES,
    MISSING,
    bucket_of,
    find,
    insert,
    insert_at,
    place,
    probe,
)
from meterd.core.kernels.tables import (
    DAY_MASK,
    DAY_MAX,
    DAY_NS,
    DIMS_USED,
    JOURNAL,
    SEATS,
    add_account,
    add_cell,
    add_member,
    add_series,
    cell_hash,
    series_hash,
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
# Room for the dimension tuple of one row: each value with its size.
DIMS_SIZE_MAX = limits.DIMENSIONS_MAX * (2 + limits.PROPERTY_VALUE_SIZE_MAX) + 8

# Rows between asking for a cache line and reading it: few enough for all lines to be there still.
BLOCK_ROWS = 256

_SLOT_MASK = np.uint64(BUCKET_SLOTS - 1)


class MetricTable(NamedTuple):
    """Everything about metrics that apply reads."""

    rows: Array  # int64[numbers, 8]
    code_hashes: Array  # u64[numbers]
    keys: Array  # u8: dimension and unique_on keys, one after another
    places: Array  # int64[n, 2]: where each dimension key begins and ends in keys
    bounds: Array  # int64: starts of the periods kept in memory, per metric


def make_scratch() -> tuple[Array, Array, Array, Array, Array]:
    """Return what `apply` works in, for the rows of one block.

    hashes u64[b, 7] (account, identity, content digest, cell), periods int64[b] (start of the
    period kept in memory, or NOT_KEPT), cells int64[b], dims u8 (one dimension tuple), cursor
    int64[2] (the slice of the next row, and the row's place in it).
    """
    return (
        np.empty((BLOCK_ROWS, 7), np.uint64),
        np.empty(BLOCK_ROWS, np.int64),
        np.empty(BLOCK_ROWS, np.int64),
        np.empty(DIMS_SIZE_MAX, np.uint8),
        np.zeros(2, np.int64),
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
def _known(identities: Any, slot: int, digest: Any) -> Any:
    """Return the status of a row whose identity is known."""
    same = identities.slots[slot, 2] & ~DAY_MASK == digest
    return DUPLICATE if same else CONFLICT


@njit(cache=True, forceinline=True, _nrt=False)
def _period_start(bounds: Array, first: int, count: int, timestamp: int) -> Any:
    """Return (start of the period in memory that holds the timestamp, whether there is one)."""
    low, high = first, first + count - 1  # the last bound only ends the last period
    if count < 2 or timestamp < bounds[low] or timestamp >= bounds[high]:
        return NOT_KEPT, False
    while high - low > 1:
        middle = (low + high) // 2
        if bounds[middle] <= timestamp:
            low = middle
        else:
            high = middle
    return bounds[low], True


@njit(cache=True, _nrt=False)
def _hash_rows(
    columns: Any, block: Any, metrics: Any, key: Array, tables: Any, scratch: Any
) -> None:
    """Hash a block's rows and ask for the cache lines that deciding and counting will read."""
    hashes, periods, _, dims, _ = scratch
    first, last = block
    timestamp, value, heap_end, metric, operation, heap = columns
    rows, code_hashes, keys, places, bounds = metrics
    identities, cell_index = tables.identities, tables.cell_index
    k0, k1 = key[0], key[1]
    start = np.int64(heap_end[first - 1]) if first else np.int64(0)
    for i in range(first, last):
        j = i - first
        end = np.int64(heap_end[i])
        account_end, id_end = entry_parts(heap, start)
        a0, a1 = account_hash(k0, k1, heap, start + 2, account_end)
        i0, i1 = identity_hash(k0, k1, a0, a1, heap, account_end, id_end, np.int64(heap[start + 1]))
        prefetch(
            identities.slots,
            bucket_of(identities, i0) * BUCKET_SLOTS + np.int64(i1 & _SLOT_MASK),
        )
        m = np.int64(metric[i])
        at = timestamp[i]
        hashes[j, 0], hashes[j, 1], hashes[j, 2], hashes[j, 3] = a0, a1, i0, i1
        hashes[j, 4] = content_digest(
            k0,
            k1,
            code_hashes[m],
            value[i],
            rows[m, DECIMALS],
            at,
            np.int64(operation[i]),
            heap,
            id_end,
            end,
        )
        period, kept = _period_start(bounds, rows[m, BOUND_FIRST], rows[m, BOUND_COUNT], at)
        periods[j] = period
        if kept:
            size = np.int64(0)
            if rows[m, DIM_COUNT]:
                size = write_dimensions(
                    dims, 0, heap, id_end, keys, places, rows[m, DIM_FIRST], rows[m, DIM_COUNT]
                )
            c0, c1 = cell_hash(k0, k1, a0, a1, m, period, dims, 0, size)
            hashes[j, 5], hashes[j, 6] = c0, c1
            prefetch(
                cell_index.slots,
                bucket_of(cell_index, c0) * BUCKET_SLOTS + np.int64(c1 & _SLOT_MASK),
            )
        start = end


@njit(cache=True)
def _count_member(tables: Any, metrics: Any, key: Any, row: Any, cell: int) -> None:
    """Count the member that a row of a unique metric names: (metric, value, heap, properties)."""
    metric, value, heap, properties = row
    m = metrics.rows[metric]
    if m[UNIQUE_KIND] == UNIQUE_VALUES:
        m0, m1 = member_of_value(key[0], key[1], value, m[DECIMALS])
        add_member(tables, key, cell, m0, m1)
        return
    start, end = find_property(
        heap, properties, metrics.keys, m[UNIQUE_KEY_START], m[UNIQUE_KEY_END]
    )
    if end >= start:
        m0, m1 = member_of_text(key[0], key[1], heap, start, end)
        add_member(tables, key, cell, m0, m1)


@njit(cache=True, _nrt=False)
def _decide(
    columns: Any, block: Any, tables: Any, times: Any, hashes: Array, outcome: Array
) -> int:
    """Give every row its outcome and enter the identities of those stored; return their count."""
    horizon, latest = times
    begin, end = block
    identities, journal, counters = tables.identities, tables.journal, tables.counters
    timestamp = columns.timestamp
    horizon_day = horizon // DAY_NS
    n = counters[JOURNAL]
    first = n
    for i in range(begin, end):
        j = i - begin
        i0, i1, digest = hashes[j, 2], hashes[j, 3], hashes[j, 4]
        slot, known = probe(identities, i0, i1)
        at = timestamp[i]
        if known and not _expired(identities.slots[slot, 2], horizon_day):
            outcome[i] = _known(identities, slot, digest)
        elif at < horizon:
            outcome[i] = TOO_OLD
        elif at > latest:
            outcome[i] = TOO_FAR_AHEAD
        else:
            outcome[i] = STORED
            payload = digest | _U64(_day(at))
            if known:
                identities.slots[slot, 2] = payload  # the expired event's identity is free again
            else:
                insert_at(identities, slot, i0, i1, payload)
            journal[n, 0], journal[n, 1], journal[n, 2] = i0, i1, payload
            n += 1
    counters[JOURNAL] = n
    return n - first


@njit(cache=True)
def _series_of(tables: Any, metrics: Any, key: Array, columns: Any, row: Any, hashes: Array) -> Any:
    """Return the series of a row; make it, and its account, if need be.

    row: its place in the record and in the block, its heap entry, its partition.
    """
    i, j, entry, partition = row
    heap = columns.heap
    account_end, properties = entry_parts(heap, entry)
    slot = find(tables.account_index, hashes[j, 0], hashes[j, 1])
    if slot == MISSING:
        account = add_account(tables, key, heap, entry + 2, account_end)
    else:
        account = np.int64(tables.account_index.slots[slot, 2])
    m = np.int64(columns.metric[i])
    dims_start = tables.counters[DIMS_USED]
    dims_end = write_dimensions(
        tables.dims,
        dims_start,
        heap,
        properties,
        metrics.keys,
        metrics.places,
        metrics.rows[m, DIM_FIRST],
        metrics.rows[m, DIM_COUNT],
    )
    s0, s1 = series_hash(key, account, m, tables.dims, dims_start, dims_end)
    slot = find(tables.series_index, s0, s1)
    if slot != MISSING:
        return np.int64(tables.series_index.slots[slot, 2])
    series = add_series(tables, account, m, dims_end, partition)
    insert(tables.series_index, s0, s1, _U64(series))
    return series


@njit(cache=True, _nrt=False)
def _find_cells(tables: Any, block: Any, outcome: Array, scratch: Any) -> None:
    """Write the cell of every stored row, or MISSING, and ask for its cache lines."""
    hashes, periods, found, _, _ = scratch
    cell_index = tables.cell_index
    lines = tables.cells.reshape(-1, CELL_WORDS // 2)  # a cell takes two cache lines
    first, last = block
    for i in range(first, last):
        j = i - first
        found[j] = MISSING
        if outcome[i] == STORED and periods[j] != NOT_KEPT:
            slot = find(cell_index, hashes[j, 5], hashes[j, 6])
            if slot != MISSING:
                cell = np.int64(cell_index.slots[slot, 2])
                found[j] = cell
                prefetch(lines, 2 * cell)
                prefetch(lines, 2 * cell + 1)


@njit(cache=True)
def _new_cell(tables: Any, metrics: Any, key: Array, columns: Any, row: Any, scratch: Any) -> Any:
    """Return the cell of a row that had none, made unless an earlier row of the block made it."""
    hashes, periods, _, _, _ = scratch
    _, j, _, _ = row
    slot = find(tables.cell_index, hashes[j, 5], hashes[j, 6])
    if slot != MISSING:
        return np.int64(tables.cell_index.slots[slot, 2])
    series = _series_of(tables, metrics, key, columns, row, hashes)
    return add_cell(tables, series, periods[j], hashes[j, 5], hashes[j, 6])


@njit(cache=True, _nrt=False)
def _count(
    columns: Any,
    block: Any,
    slices: Array,
    tables: Any,
    metrics: Any,
    key: Array,
    outcome: Array,
    scratch: Any,
) -> None:
    """Count a block's stored rows into the cells of their series and periods."""
    hashes, periods, found, _, cursor = scratch
    timestamp, value, heap_end, metric, operation, heap = columns
    cells, rows = tables.cells, metrics.rows
    first, last = block
    s, place = cursor[0], cursor[1]
    entry = np.int64(heap_end[first - 1]) if first else np.int64(0)
    for i in range(first, last):
        if place == np.int64(slices[s, 0] >> _U64(32)):
            s, place = s + 1, np.int64(0)
        j = i - first
        m = np.int64(metric[i])
        unique = rows[m, UNIQUE_KIND] != NOT_UNIQUE
        if outcome[i] == STORED and (unique or periods[j] != NOT_KEPT):
            row = (i, j, entry, np.int64(slices[s, 0] & _U64(0xFFFF)))
            if periods[j] != NOT_KEPT:
                cell = found[j]
                if cell == MISSING:
                    cell = _new_cell(tables, metrics, key, columns, row, scratch)
                position = (np.int64(slices[s, 1]) << POSITION_ROW_BITS) + place
                update_cell(cells, cell, timestamp[i], position, value[i])
                if unique:
                    _, properties = entry_parts(heap, entry)
                    member = (m, value[i], heap, properties)
                    _count_member(tables, metrics, key, member, cell)
            if unique and operation[i] != 0:
                # Seats: only the whole history tells who is present, whichever period it is.
                series = _series_of(tables, metrics, key, columns, row, hashes)
                tables.series[series, SEATS] = 1
        entry = np.int64(heap_end[i])
        place += 1
    cursor[0], cursor[1] = s, place


@njit(cache=True)
def apply(
    columns: Any,
    slices: Array,
    tables: Any,
    metrics: Any,
    key: Array,
    times: Any,
    out: Any,
) -> int:
    """Apply one record; return how many rows were stored.

    slices u64[k, 5] as in the log; key u64[2]; times (horizon, latest timestamp taken); out
    (outcome u8[n]: status | reason << 4; scratch as `make_scratch` makes it).
    """
    outcome, scratch = out
    cursor = scratch[4]
    cursor[:] = 0
    stored = 0
    first, n = 0, len(columns.timestamp)
    while first < n:
        block = (first, min(first + BLOCK_ROWS, n))
        _hash_rows(columns, block, metrics, key, tables, scratch)
        taken = _decide(columns, block, tables, times, scratch[0], outcome)
        if taken:
            _find_cells(tables, block, outcome, scratch)
        _count(columns, block, slices, tables, metrics, key, outcome, scratch)
        stored += taken
        first += BLOCK_ROWS
    return stored


@njit(cache=True, _nrt=False)
def judge(
    rows: Array,
    heap: Array,
    code_hashes: Array,
    tables: Any,
    key: Array,
    horizon: int,
    outcome: Array,
) -> None:
    """Say what refused rows are: duplicate or conflict if their identity is known, else rejected.

    rows int64[n, 8] as kernels/stage.py leaves them (metric = position in code_hashes);
    outcome u8[n].
    """
    identities = tables.identities
    for i in range(len(rows)):
        flags = rows[i, 3]
        start, end = rows[i, 4], rows[i, 5]
        account_end, id_end = entry_parts(heap, start)
        a0, a1 = account_hash(key[0], key[1], heap, start + 2, account_end)
        i0, i1 = identity_hash(
            key[0], key[1], a0, a1, heap, account_end, id_end, np.int64(heap[start + 1])
        )
        slot = find(identities, i0, i1)
        if slot == MISSING or _expired(identities.slots[slot, 2], horizon // DAY_NS):
            outcome[i] = REJECTED | ((flags >> 16) & 0xFF) << 4
        elif (flags >> 40) & 1:
            outcome[i] = CONFLICT
        else:
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
                end,
            )
            outcome[i] = _known(identities, slot, digest)


@njit(cache=True)
def purge(index: Any, first: int, last: int, horizon: int) -> int:
    """Free the identities in buckets first..last whose events are older than the horizon.

    Returns how many there were.  Bucket by bucket, so that it can be done in small turns.
    """
    slots = index.slots
    horizon_day = horizon // DAY_NS
    freed = 0
    for bucket in range(first, last):
        base = bucket * BUCKET_SLOTS
        expired = 0
        for i in range(base, base + BUCKET_SLOTS):
            used = slots[i, 0] != 0 or slots[i, 1] != 0
            if used and _expired(slots[i, 2], horizon_day):
                expired += 1
        if expired == 0:
            continue
        held = slots[base : base + BUCKET_SLOTS].copy()
        slots[base : base + BUCKET_SLOTS] = 0
        for i in range(BUCKET_SLOTS):
            used = held[i, 0] != 0 or held[i, 1] != 0
            if used and not _expired(held[i, 2], horizon_day):
                place(slots, base, held[i, 0], held[i, 1], held[i, 2])
        index.counts[bucket] -= expired
        index.head[ENTRIES] -= expired
        freed += expired
    return freed


@njit(cache=True)
def load_identities(index: Any, entries: Array, horizon: int) -> None:
    """Enter saved identities (u64[n, 3]) that have not expired; a later one replaces an earlier."""
    horizon_day = horizon // DAY_NS
    for i in range(len(entries)):
        if _expired(entries[i, 2], horizon_day):
            continue
        slot = find(index, entries[i, 0], entries[i, 1])
        if slot == MISSING:
            insert(index, entries[i, 0], entries[i, 1], entries[i, 2])
        else:
            index.slots[slot, 2] = entries[i, 2]
