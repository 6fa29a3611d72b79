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

from meterd.core.kernels.cells import POSITION_ROW_BITS, update_cell
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
from meterd.core.kernels.index import BUCKET_SLOTS, MISSING, bucket_of, find, insert
from meterd.core.kernels.tables import (
    DIMS_USED,
    HOUR_MASK,
    HOUR_NS,
    JOURNAL,
    SEATS,
    add_account,
    add_cell,
    add_member,
    add_series,
    cell_hash,
    series_hash,
)
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

_SLOT_MASK = np.uint64(BUCKET_SLOTS - 1)


class MetricTable(NamedTuple):
    """Everything about metrics that apply reads."""

    rows: Array  # int64[numbers, 8]
    code_hashes: Array  # u64[numbers]
    keys: Array  # u8: dimension and unique_on keys, one after another
    places: Array  # int64[n, 2]: where each dimension key begins and ends in keys
    bounds: Array  # int64: starts of the periods kept in memory, per metric


class Columns(NamedTuple):
    """The columns of a record's payload."""

    timestamp: Array
    value: Array
    heap_end: Array
    metric: Array
    operation: Array
    heap: Array


@njit(cache=True, forceinline=True)
def _known(identities: Any, slot: int, digest: Any) -> Any:
    """Return the status of a row whose identity is known."""
    same = identities.slots[slot, 2] & ~HOUR_MASK == digest
    return DUPLICATE if same else CONFLICT


@njit(cache=True)
def _hash_rows(columns: Any, metrics: Any, key: Any, hashes: Array, identities: Any) -> None:
    """Write (account hash, identity, content digest) of every row into hashes (u64[n, 5])."""
    timestamp, value, heap_end, metric, operation, heap = columns
    rows, code_hashes = metrics.rows, metrics.code_hashes
    k0, k1 = key[0], key[1]
    start = np.int64(0)
    for i in range(len(timestamp)):
        end = np.int64(heap_end[i])
        account_end, id_end = entry_parts(heap, start)
        a0, a1 = account_hash(k0, k1, heap, start + 2, account_end)
        i0, i1 = identity_hash(k0, k1, a0, a1, heap, account_end, id_end, np.int64(heap[start + 1]))
        m = np.int64(metric[i])
        hashes[i, 0], hashes[i, 1], hashes[i, 2], hashes[i, 3] = a0, a1, i0, i1
        hashes[i, 4] = content_digest(
            k0,
            k1,
            code_hashes[m],
            value[i],
            rows[m, DECIMALS],
            timestamp[i],
            np.int64(operation[i]),
            heap,
            id_end,
            end,
        )
        prefetch(
            identities.slots,
            bucket_of(identities, i0) * BUCKET_SLOTS + np.int64(i1 & _SLOT_MASK),
        )
        start = end


@njit(cache=True, forceinline=True)
def _period_start(bounds: Array, first: int, count: int, timestamp: int) -> Any:
    """Return (start of the period in memory that holds the timestamp, whether there is one)."""
    low, high = first, first + count - 1  # the last bound only ends the last period
    if count < 2 or timestamp < bounds[low] or timestamp >= bounds[high]:
        return np.int64(0), False
    while high - low > 1:
        middle = (low + high) // 2
        if bounds[middle] <= timestamp:
            low = middle
        else:
            high = middle
    return bounds[low], True


@njit(cache=True)
def _new_series(tables: Any, hashes: Any, account: int, metric: int, rest: Any) -> Any:
    """Make the series of a row whose dimension tuple has just been written; return its number."""
    dims_end, partition = rest
    series = add_series(tables, account, metric, dims_end, partition)
    insert(tables.series_index, hashes[0], hashes[1], _U64(series))
    return series


@njit(cache=True)
def _count_member(tables: Any, metrics: Any, key: Any, row: Any, cell: int) -> None:
    """Count the member that a row of a unique metric names; row is (metric, value, heap, properties)."""
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


@njit(cache=True)
def _decide(columns: Any, slices: Array, tables: Any, horizon: int, latest: int, out: Any) -> int:
    """Give every row its outcome and enter the identities of those stored; return their count."""
    hashes, outcome = out
    identities, journal, counters = tables.identities, tables.journal, tables.counters
    timestamp = columns.timestamp
    n = counters[JOURNAL]
    first = n
    for i in range(len(timestamp)):
        i0, i1, digest = hashes[i, 2], hashes[i, 3], hashes[i, 4]
        slot = find(identities, i0, i1)
        at = timestamp[i]
        if slot != MISSING:
            outcome[i] = _known(identities, slot, digest)
        elif at < horizon:
            outcome[i] = TOO_OLD
        elif at > latest:
            outcome[i] = TOO_FAR_AHEAD
        else:
            outcome[i] = STORED
            payload = digest | (_U64(at // HOUR_NS) & HOUR_MASK)
            insert(identities, i0, i1, payload)
            journal[n, 0], journal[n, 1], journal[n, 2] = i0, i1, payload
            n += 1
    counters[JOURNAL] = n
    return n - first


@njit(cache=True)
def _count(columns: Any, slices: Array, tables: Any, metrics: Any, key: Any, out: Any) -> None:
    """Count every stored row into the cell of its series and period."""
    hashes, outcome = out
    timestamp, value, heap_end, metric, operation, heap = columns
    # Taken apart once: passing the tables on costs more than all that is done to a row.
    account_index, series_index = tables.account_index, tables.series_index
    cell_index, cells, dims, counters = (
        tables.cell_index,
        tables.cells,
        tables.dims,
        tables.counters,
    )
    rows, bounds, keys, places = metrics.rows, metrics.bounds, metrics.keys, metrics.places
    i = 0
    entry = np.int64(0)
    for s in range(len(slices)):
        partition = np.int64(slices[s, 0] & _U64(0xFFFF))
        position = np.int64(slices[s, 1]) << POSITION_ROW_BITS
        for _ in range(np.int64(slices[s, 0] >> _U64(32))):
            if outcome[i] == STORED:
                account_end, properties = entry_parts(heap, entry)
                slot = find(account_index, hashes[i, 0], hashes[i, 1])
                if slot == MISSING:
                    account = add_account(tables, key, heap, entry + 2, account_end)
                else:
                    account = np.int64(account_index.slots[slot, 2])
                m = np.int64(metric[i])
                dims_start = dims_end = counters[DIMS_USED]
                if rows[m, DIM_COUNT]:
                    dims_end = write_dimensions(
                        dims,
                        dims_start,
                        heap,
                        properties,
                        keys,
                        places,
                        rows[m, DIM_FIRST],
                        rows[m, DIM_COUNT],
                    )
                s0, s1 = series_hash(key, account, m, dims, dims_start, dims_end)
                slot = find(series_index, s0, s1)
                if slot == MISSING:
                    series = _new_series(tables, (s0, s1), account, m, (dims_end, partition))
                else:
                    series = np.int64(series_index.slots[slot, 2])
                if rows[m, UNIQUE_KIND] != NOT_UNIQUE and operation[i] != 0:
                    tables.series[series, SEATS] = 1
                period, kept = _period_start(
                    bounds, rows[m, BOUND_FIRST], rows[m, BOUND_COUNT], timestamp[i]
                )
                if kept:
                    c0, c1 = cell_hash(key, series, period)
                    slot = find(cell_index, c0, c1)
                    if slot == MISSING:
                        cell = add_cell(tables, key, series, period)
                    else:
                        cell = np.int64(cell_index.slots[slot, 2])
                    update_cell(cells, cell, timestamp[i], position, value[i])
                    if rows[m, UNIQUE_KIND] != NOT_UNIQUE:
                        row = (m, value[i], heap, properties)
                        _count_member(tables, metrics, key, row, cell)
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
    (hashes u64[n, 5] for scratch, outcome u8[n]: status | reason << 4).
    """
    horizon, latest = times
    _hash_rows(columns, metrics, key, out[0], tables.identities)
    stored = _decide(columns, slices, tables, horizon, latest, out)
    if stored:
        _count(columns, slices, tables, metrics, key, out)
    return stored


@njit(cache=True)
def judge(
    rows: Array, heap: Array, code_hashes: Array, tables: Any, key: Any, outcome: Array
) -> None:
    """Say what refused rows are: duplicate or conflict if their identity is known, else rejected.

    rows int64[n, 8] as kernels/stage.py leaves them (metric = position in code_hashes); outcome u8[n].
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
        if slot == MISSING:
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
