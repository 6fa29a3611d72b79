"""Applies one record to the tables: what happens to every event, decided in log order.

For each row: its identity is looked up first; a known one is `duplicate` when it says the same,
else `conflict`.  Only then do the other rules look at it (too old, too far ahead).  What is left
is stored: its identity is entered and its value counted into the cell of its series and period.

Two passes: the first hashes every row and asks for the cache lines that the second will read.
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

_SLOT_MASK = np.uint64(BUCKET_SLOTS - 1)


class MetricTable(NamedTuple):
    """Everything about metrics that apply reads."""

    rows: Array  # int64[numbers, 8]
    code_hashes: Array  # u64[numbers]
    keys: Array  # u8: dimension and unique_on keys, one after another
    places: Array  # int64[n, 2]: where each dimension key begins and ends in keys
    bounds: Array  # int64: starts of the periods kept in memory, per metric


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
def _hash_rows(columns: Any, metrics: Any, key: Array, tables: Any, scratch: Any) -> None:
    """Hash every row into scratch and ask for the cache lines that deciding and counting will read.

    scratch: hashes u64[n, 7] (account, identity, content digest, cell), periods int64[n] (start of
    the period kept in memory, or NOT_KEPT), dims u8 (room for one dimension tuple).
    """
    hashes, periods, dims = scratch
    timestamp, value, heap_end, metric, operation, heap = columns
    rows, code_hashes, keys, places, bounds = metrics
    identities, cell_index = tables.identities, tables.cell_index
    k0, k1 = key[0], key[1]
    start = np.int64(0)
    for i in range(len(timestamp)):
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
        hashes[i, 0], hashes[i, 1], hashes[i, 2], hashes[i, 3] = a0, a1, i0, i1
        hashes[i, 4] = content_digest(
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
        periods[i] = period
        if kept:
            size = np.int64(0)
            if rows[m, DIM_COUNT]:
                size = write_dimensions(
                    dims, 0, heap, id_end, keys, places, rows[m, DIM_FIRST], rows[m, DIM_COUNT]
                )
            c0, c1 = cell_hash(k0, k1, a0, a1, m, period, dims, 0, size)
            hashes[i, 5], hashes[i, 6] = c0, c1
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
def _decide(columns: Any, tables: Any, horizon: int, latest: int, out: Any) -> int:
    """Give every row its outcome and enter the identities of those stored; return their count."""
    hashes, outcome = out
    identities, journal, counters = tables.identities, tables.journal, tables.counters
    timestamp = columns.timestamp
    horizon_day = horizon // DAY_NS
    n = counters[JOURNAL]
    first = n
    for i in range(len(timestamp)):
        i0, i1, digest = hashes[i, 2], hashes[i, 3], hashes[i, 4]
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
    """Return the series of a row (i, entry, partition); make it, and its account, if need be."""
    i, entry, partition = row
    heap = columns.heap
    account_end, properties = entry_parts(heap, entry)
    slot = find(tables.account_index, hashes[i, 0], hashes[i, 1])
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
def _find_cells(tables: Any, outcome: Array, hashes: Array, periods: Array, found: Array) -> None:
    """Write the cell of every stored row, or MISSING, and ask for its cache lines."""
    cell_index = tables.cell_index
    lines = tables.cells.reshape(-1, CELL_WORDS // 2)  # a cell takes two cache lines
    for i in range(len(outcome)):
        found[i] = MISSING
        if outcome[i] == STORED and periods[i] != NOT_KEPT:
            slot = find(cell_index, hashes[i, 5], hashes[i, 6])
            if slot != MISSING:
                cell = np.int64(cell_index.slots[slot, 2])
                found[i] = cell
                prefetch(lines, 2 * cell)
                prefetch(lines, 2 * cell + 1)


@njit(cache=True, _nrt=False)
def _count(
    columns: Any, slices: Array, tables: Any, metrics: Any, key: Array, scratch: Any
) -> None:
    """Count every stored row into the cell of its series and period."""
    hashes, periods, found, outcome = scratch
    timestamp, value, heap_end, metric, operation, heap = columns
    cells, cell_index, rows = tables.cells, tables.cell_index, metrics.rows
    i = 0
    entry = np.int64(0)
    for s in range(len(slices)):
        partition = np.int64(slices[s, 0] & _U64(0xFFFF))
        position = np.int64(slices[s, 1]) << POSITION_ROW_BITS
        for _ in range(np.int64(slices[s, 0] >> _U64(32))):
            m = np.int64(metric[i])
            unique = rows[m, UNIQUE_KIND] != NOT_UNIQUE
            if outcome[i] == STORED:
                cell = found[i]
                if periods[i] != NOT_KEPT:
                    if cell == MISSING:  # unless an earlier row of this record made it
                        slot = find(cell_index, hashes[i, 5], hashes[i, 6])
                        if slot != MISSING:
                            cell = np.int64(cell_index.slots[slot, 2])
                    if cell == MISSING:
                        row = (i, entry, partition)
                        series = _series_of(tables, metrics, key, columns, row, hashes)
                        cell = add_cell(tables, series, periods[i], hashes[i, 5], hashes[i, 6])
                    update_cell(cells, cell, timestamp[i], position, value[i])
                    if unique:
                        _, properties = entry_parts(heap, entry)
                        member = (m, value[i], heap, properties)
                        _count_member(tables, metrics, key, member, cell)
                if unique and operation[i] != 0:
                    # Seats: only the whole history tells who is present, whichever period it is.
                    row = (i, entry, partition)
                    series = _series_of(tables, metrics, key, columns, row, hashes)
                    tables.series[series, SEATS] = 1
            entry = np.int64(heap_end[i])
            position += 1
            i += 1


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
    (outcome u8[n]: status | reason << 4; for scratch hashes u64[n, 7], periods int64[n],
    cells int64[n], dims u8).
    """
    horizon, latest = times
    outcome, hashes, periods, found, dims = out
    _hash_rows(columns, metrics, key, tables, (hashes, periods, dims))
    stored = _decide(columns, tables, horizon, latest, (hashes, outcome))
    if stored:
        _find_cells(tables, outcome, hashes, periods, found)
        _count(columns, slices, tables, metrics, key, (hashes, periods, found, outcome))
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
