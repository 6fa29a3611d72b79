"""Turns the columns of requests into staged rows, and staged rows into a payload.

`stage` takes one request, located: it checks every row, chooses its metric number, scales its value
and writes its heap entry (docs/STORAGE.md).  A row ends in one of three places:

  * *staged*: well-formed; it will be proposed.
  * *refused*: something is wrong with it, but its identity is readable: whether it is
    `duplicate`, `conflict` or `rejected` is for the state machine to say.
  * *fault*: it has no readable identity, so it is rejected here.

`pack` sorts the staged rows of many requests by partition into the columns of one record and
hashes the content of each slice.  Both kernels touch each row once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import (
    CHAIN_KEY_0,
    CHAIN_KEY_1,
    PARTITION_COUNT,
    load_u32,
    partition_of,
    prefetch,
    sip_bytes,
    sip_finish,
    sip_start,
    sip_word,
)
from meterd.core.kernels.lanes import LANES, absorb_bytes, put_state, state_of
from meterd.core.kernels.located import (
    ACCOUNT_AT,
    ACCOUNT_OFFSETS_AT,
    EXPONENT,
    EXPONENT_AT,
    FIRST_VALUE,
    ID_AT,
    ID_OFFSETS_AT,
    INDEX_AT,
    KEY_AT,
    KEY_SIZE,
    METRIC_AT,
    OPERATION_AT,
    PROPERTY_COUNT,
    REASON_AT,
    ROWS,
    TIMESTAMP_AT,
    UUID_AT,
    VALUE_AT,
    VALUE_SIZE,
    VALUE_START,
    load_i64,
    load_u16,
    locate,
)
from meterd.core.kernels.text import (
    UUID_SIZE,
    UUID_TEXT_SIZE,
    copy_bytes,
    is_utf8,
    uuid_from_text,
)
from meterd.protocol import limits
from meterd.protocol.errors import REASONS

Array = Any

# Columns of a staged or refused row (int64[n, 8]).
TIMESTAMP, VALUE, METRIC, FLAGS, ENTRY_START, ENTRY_END, REQUEST, ROW = range(8)
ROW_WORDS = 8
# FLAGS of a row: operation | exponent << 8 | reason << 16 | partition << 24 | not comparable << 40.
# METRIC is the metric number of a staged row, the position in the request's codes of a refused one.
NOT_COMPARABLE = 1 << 40

# A table of metric versions (int64[n, 4]), those of a code together in effective order.
EFFECTIVE_FROM, NUMBER, DECIMALS, ALIVE = range(4)

# State of a stage (int64[4]): rows staged, rows refused, faults, bytes of heap used.
STAGED, REFUSED, FAULTS, HEAP_USED = range(4)

BAD_ACCOUNT = REASONS.index("bad_account")
UNKNOWN_METRIC = REASONS.index("unknown_metric")
BAD_VALUE = REASONS.index("bad_value")
BAD_ID = REASONS.index("bad_id")
BAD_PROPERTIES = REASONS.index("bad_properties")

# So many rows are asked for ahead of the one that is packed.
AHEAD = 8

_ABSENT = np.uint32(0xFFFFFFFF)
_U64 = np.uint64
_POWERS = np.array([10**i for i in range(19)], np.int64)
_INT64_MAX = np.int64(2**63 - 1)


@njit(cache=True, forceinline=True, _nrt=False)
def _scale(value: int, exponent: int, decimals: int) -> Any:
    """Return (value in units of 10^-decimals, whether it fits exactly)."""
    if exponent == decimals:
        return value, True
    if exponent > decimals:
        power = _POWERS[exponent - decimals]
        scaled = value // power
        return scaled, scaled * power == value
    power = _POWERS[decimals - exponent]
    bound = _INT64_MAX // power
    if value > bound or value < -bound:
        return np.int64(0), False
    return value * power, True


@njit(cache=True, forceinline=True, _nrt=False)
def _select(versions: Array, first: int, count: int, timestamp: int) -> Any:
    """Return the row of the version in effect at `timestamp`, or -1 when none is."""
    chosen = np.int64(-1)
    for v in range(first, first + count):
        if versions[v, EFFECTIVE_FROM] <= timestamp:
            chosen = v
    if count == 0 or versions[first + count - 1, ALIVE] == 0:
        return np.int64(-1)  # a deleted metric takes no more events, whatever their time
    return chosen


@njit(cache=True, forceinline=True, _nrt=False)
def _write_id(heap: Array, at: int, text: Array, start: int, end: int) -> Any:
    """Write an id given as text; return (where it ends, its length byte, whether it is valid)."""
    size = end - start
    if size < 1 or size > limits.ID_SIZE_MAX or not is_utf8(text, start, end):
        return at, 0, False
    if size == UUID_TEXT_SIZE and uuid_from_text(heap, at, text, start):
        return at + UUID_SIZE, 0, True
    return copy_bytes(heap, at, text, start, end), size, True


@njit(cache=True, forceinline=True, _nrt=False)
def _write_properties(
    heap: Array, at: int, i: int, body: Array, count: int, keys: Array, values: Array
) -> Any:
    """Write the properties of row i (keys are sorted); return (end, whether ≤ 32)."""
    count_at = at
    at += 1
    held = 0
    for p in range(count):
        which = load_u32(body, keys[p, INDEX_AT] + 4 * i)
        if which == _ABSENT:
            continue
        held += 1
        start, size = keys[p, KEY_AT], keys[p, KEY_SIZE]
        heap[at] = size
        at = copy_bytes(heap, at + 1, body, start, start + size)
        value = keys[p, FIRST_VALUE] + np.int64(which)
        start, size = values[value, VALUE_START], values[value, VALUE_SIZE]
        heap[at] = size
        at = copy_bytes(heap, at + 1, body, start, start + size)
        if held > limits.PROPERTIES_MAX:
            return at, False
    heap[count_at] = held
    return at, True


@njit(cache=True, forceinline=True, _nrt=False)
def _put(rows: Array, n: int, timestamp: int, value: int, metric: int, flags: int) -> None:
    rows[n, TIMESTAMP] = timestamp
    rows[n, VALUE] = value
    rows[n, METRIC] = metric
    rows[n, FLAGS] = flags


@njit(cache=True, forceinline=True, _nrt=False)
def _put_place(rows: Array, n: int, start: int, end: int, request: int, row: int) -> None:
    rows[n, ENTRY_START] = start
    rows[n, ENTRY_END] = end
    rows[n, REQUEST] = request
    rows[n, ROW] = row


# The largest heap entry: two length bytes, account, id, count, and 32 properties at their largest.
ENTRY_SIZE_MAX = (
    2
    + limits.ACCOUNT_SIZE_MAX
    + limits.ID_SIZE_MAX
    + 1
    + (limits.PROPERTIES_MAX + 1)
    * (2 + limits.PROPERTY_KEY_SIZE_MAX + limits.PROPERTY_VALUE_SIZE_MAX)
)


@njit(cache=True, _nrt=False)
def stage(located: Any, versions: Array, out: Any) -> bool:
    """Stage one request; return False, with nothing changed, when the heap has no room for it.

    located    (body, places, codes, keys, values), see kernels/located.py
    versions   int64[n, 4], those of a code together in effective order
    out        (staged, refused, faults, heap, state, request number)
    """
    # Tuples are taken apart once: inside the loop every array in them would be counted anew.
    body, places, codes, keys, values = located
    staged, refused, faults, heap, state, request = out
    n_staged, n_refused, n_faults, at = (
        state[STAGED],
        state[REFUSED],
        state[FAULTS],
        state[HEAP_USED],
    )
    account_offsets, account_at = places[ACCOUNT_OFFSETS_AT], places[ACCOUNT_AT]
    exponent = places[EXPONENT]
    limit = len(heap) - ENTRY_SIZE_MAX - 8
    for i in range(places[ROWS]):
        if at > limit:
            return False
        entry = at
        reason = np.int64(body[places[REASON_AT] + i]) if places[REASON_AT] >= 0 else np.int64(0)
        comparable = reason == 0
        start = account_at + np.int64(load_u32(body, account_offsets + 4 * i))
        end = account_at + np.int64(load_u32(body, account_offsets + 4 * i + 4))
        size = end - start
        id_valid = False
        account_valid = (
            1 <= size <= limits.ACCOUNT_SIZE_MAX
            and reason != BAD_ACCOUNT
            and is_utf8(body, start, end)
        )
        if account_valid and reason != BAD_ID:
            at = copy_bytes(heap, entry + 2, body, start, end)
            id_size = 0
            if places[UUID_AT] >= 0:
                first = places[UUID_AT] + i * UUID_SIZE
                at = copy_bytes(heap, at, body, first, first + UUID_SIZE)
                id_valid = True
            else:
                offset = places[ID_OFFSETS_AT] + 4 * i
                first = places[ID_AT] + np.int64(load_u32(body, offset))
                last = places[ID_AT] + np.int64(load_u32(body, offset + 4))
                at, id_size, id_valid = _write_id(heap, at, body, first, last)
            heap[entry] = size
            heap[entry + 1] = id_size
        if not id_valid:
            faults[n_faults, 0] = request
            faults[n_faults, 1] = i
            faults[n_faults, 2] = BAD_ID if account_valid else BAD_ACCOUNT
            n_faults += 1
            at = entry
            continue
        at, fits = _write_properties(heap, at, i, body, places[PROPERTY_COUNT], keys, values)
        if not fits:
            comparable = False
            at = entry + 2 + size + (UUID_SIZE if heap[entry + 1] == 0 else heap[entry + 1])
            heap[at] = 0
            at += 1
            if reason == 0:
                reason = np.int64(BAD_PROPERTIES)
        number = load_u16(body, places[METRIC_AT] + 2 * i) if places[METRIC_AT] >= 0 else 0
        timestamp = load_i64(body, places[TIMESTAMP_AT] + 8 * i)
        value = load_i64(body, places[VALUE_AT] + 8 * i) if places[VALUE_AT] >= 0 else np.int64(1)
        if places[EXPONENT_AT] >= 0:
            exponent = np.int64(body[places[EXPONENT_AT] + i])
        if reason == 0:
            v = _select(versions, codes[number, 0], codes[number, 1], timestamp)
            if v < 0:
                reason = np.int64(UNKNOWN_METRIC)
            else:
                scaled, exact = _scale(value, exponent, versions[v, DECIMALS])
                if exact:
                    number, value = versions[v, NUMBER], scaled
                else:
                    reason = np.int64(BAD_VALUE)
        operation = body[places[OPERATION_AT] + i] if places[OPERATION_AT] >= 0 else 0
        flags = np.int64(operation) | exponent << 8 | reason << 16
        flags |= partition_of(body, start, end) << 24
        if reason == 0:
            _put(staged, n_staged, timestamp, value, number, flags)
            _put_place(staged, n_staged, entry, at, request, i)
            n_staged += 1
        else:
            if not comparable:
                flags |= NOT_COMPARABLE
            _put(refused, n_refused, timestamp, value, number, flags)
            _put_place(refused, n_refused, entry, at, request, i)
            n_refused += 1
    state[STAGED], state[REFUSED], state[FAULTS], state[HEAP_USED] = (
        n_staged,
        n_refused,
        n_faults,
        at,
    )
    return True


@njit(cache=True, _nrt=False)
def stage_body(known: Any, located: Any, versions: Array, out: Any) -> bool:
    """Stage a request as it came, if that is how most requests come and every row can be staged.

    False, with nothing changed, when it is not, or when the heap has no room.  `known` is what
    `locate` needs of the registry; located (body, and the arrays that it fills).
    """
    body, places, codes, keys, values = located
    if not locate(body, known, (places, codes, keys, values)):
        return False
    state = out[4]
    state[FAULTS] = 0
    staged, refused, heap_used = state[STAGED], state[REFUSED], state[HEAP_USED]
    if not stage(located, versions, out):
        return False
    if state[STAGED] - staged == places[ROWS]:
        return True
    state[STAGED], state[REFUSED], state[FAULTS], state[HEAP_USED] = staged, refused, 0, heap_used
    return False


@njit(cache=True, _nrt=False)
def count_slices(staged: Array, n: int, sizes: Array) -> Any:
    """Count rows and heap bytes by partition: sizes (int64[256, 2]); return (slices, heap size)."""
    sizes[:] = 0
    for i in range(n):
        p = (staged[i, FLAGS] >> 24) & 0xFFFF
        sizes[p, 0] += 1
        sizes[p, 1] += staged[i, ENTRY_END] - staged[i, ENTRY_START]
    slices = 0
    heap_size = 0
    for p in range(PARTITION_COUNT):
        if sizes[p, 0]:
            slices += 1
            heap_size += sizes[p, 1]
    return slices, heap_size


@njit(cache=True, forceinline=True, _nrt=False)
def content_of(
    payload: Array, layout: Any, first: int, count: int, heap_from: int, heap_to: int
) -> Any:
    """Hash the content of a slice: its part of every column but heap_end (docs/STORAGE.md)."""
    timestamps, values, _, metrics, operations, heap = layout
    v0, v1, v2, v3 = sip_start(CHAIN_KEY_0, CHAIN_KEY_1)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(count))
    last = first + count
    v0, v1, v2, v3 = sip_bytes(
        v0, v1, v2, v3, payload, timestamps + 8 * first, timestamps + 8 * last
    )
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, payload, values + 8 * first, values + 8 * last)
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, payload, metrics + 2 * first, metrics + 2 * last)
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, payload, operations + first, operations + last)
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, payload, heap + heap_from, heap + heap_to)
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True)
def content_of_bytes(data: Array) -> Any:
    """Hash the content of a slice that is one msgpack body."""
    v0, v1, v2, v3 = sip_start(CHAIN_KEY_0, CHAIN_KEY_1)
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, data, 0, len(data))
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True)
def pack(
    staged: Array,
    n: int,
    staged_heap: Array,
    sizes: Array,
    payload: Array,
    layout: Any,
    out: Any,
) -> None:
    """Write the columns of a record, its slice table and the map from rows back to requests.

    payload is u8; layout gives the byte offset of each column in it; out is (slices u64[k, 5] as in
    the log, with the content's hash in place of the digest, request_of_row u16[n], row_of_row
    u16[n]).
    """
    if n == 0:
        return  # everything was refused: there is no payload
    slices, request_of_row, row_of_row = out
    timestamps, values, heap_ends, metrics, operations, heap = layout
    next_row = np.empty(PARTITION_COUNT, np.int64)
    row = np.int64(0)
    for p in range(PARTITION_COUNT):
        next_row[p] = row
        row += sizes[p, 0]
    # Rows are read in the order in which they are written: what is read at random is in one place,
    # what would be written at random is in many.
    order = np.empty(n, np.uint32)
    for i in range(n):
        p = (staged[i, FLAGS] >> 24) & 0xFFFF
        order[next_row[p]] = i
        next_row[p] += 1
    # One view per width; columns start at multiples of 8, so what fills them up is in their last 8
    # bytes.
    words = payload.view(np.int64)
    for column in (metrics, operations, heap):
        words[column // 8 - 1] = 0
    words[len(words) - 1] = 0
    halves = payload.view(np.uint32)
    quarters = payload.view(np.uint16)
    lines = staged_heap[: len(staged_heap) // 64 * 64].reshape(-1, 64)
    at = heap
    for j in range(n):
        prefetch(staged, np.int64(order[min(j + 2 * AHEAD, n - 1)]))
        ahead = staged[np.int64(order[min(j + AHEAD, n - 1)]), ENTRY_START] // 64
        prefetch(lines, ahead)
        prefetch(lines, ahead + 1)
        i = np.int64(order[j])
        at = copy_bytes(payload, at, staged_heap, staged[i, ENTRY_START], staged[i, ENTRY_END])
        words[timestamps // 8 + j] = staged[i, TIMESTAMP]
        words[values // 8 + j] = staged[i, VALUE]
        halves[heap_ends // 4 + j] = at - heap
        quarters[metrics // 2 + j] = staged[i, METRIC]
        payload[operations + j] = staged[i, FLAGS] & 0xFF
        request_of_row[j] = staged[i, REQUEST]
        row_of_row[j] = staged[i, ROW]
    spans = np.empty((len(slices), 4), np.int64)
    s = 0
    row, byte = np.int64(0), np.int64(0)
    for p in range(PARTITION_COUNT):
        count, size = sizes[p, 0], sizes[p, 1]
        if count == 0:
            continue
        spans[s, 0], spans[s, 1], spans[s, 2], spans[s, 3] = row, count, byte, size
        slices[s, 0] = _U64(p) | _U64(count) << _U64(32)
        slices[s, 1] = 0
        slices[s, 4] = _U64(size) << _U64(32)
        s += 1
        row += count
        byte += size
    _hash_contents(payload, layout, spans, slices)


@njit(cache=True)
def _hash_contents(payload: Array, layout: Any, spans: Array, slices: Array) -> None:
    """Write the content's hash of every slice; spans int64[k, 4]: row, count, byte, size.

    Eight slices at a time, of about the same length, and what is left over alone.
    """
    k = len(spans)
    order = np.empty(k, np.int64)
    for s in range(k):
        order[s] = spans[s, 1] << 16 | s
    order.sort()
    together = k // LANES * LANES
    states, work = np.empty(4 * LANES, np.uint64), np.empty((2, LANES), np.int64)
    for first in range(0, together, LANES):
        chosen = order[first : first + LANES]
        for lane in range(LANES):
            count = spans[chosen[lane] & 0xFFFF, 1]
            v0, v1, v2, v3 = sip_start(CHAIN_KEY_0, CHAIN_KEY_1)
            put_state(states, lane, *sip_word(v0, v1, v2, v3, _U64(count)))
        for column, width in ((0, 8), (1, 8), (3, 2), (4, 1)):
            for lane in range(LANES):
                s = chosen[lane] & 0xFFFF
                work[0, lane] = layout[column] + width * spans[s, 0]
                work[1, lane] = width * spans[s, 1]
            absorb_bytes(states, payload, work[0], work[1])
        for lane in range(LANES):
            s = chosen[lane] & 0xFFFF
            work[0, lane], work[1, lane] = layout[5] + spans[s, 2], spans[s, 3]
        absorb_bytes(states, payload, work[0], work[1])
        for lane in range(LANES):
            s = chosen[lane] & 0xFFFF
            v0, v1, v2, v3 = state_of(states, lane)
            slices[s, 2], slices[s, 3] = sip_finish(v0, v1, v2, v3)
    for place in range(together, k):
        s = order[place] & 0xFFFF
        row, count, byte, size = spans[s, 0], spans[s, 1], spans[s, 2], spans[s, 3]
        h0, h1 = content_of(payload, layout, row, count, byte, byte + size)
        slices[s, 2], slices[s, 3] = h0, h1


@njit(cache=True)
def compact_refused(refused: Array, n: int, staged_heap: Array, heap: Array) -> Any:
    """Copy the heap entries of refused rows together; return the bytes used."""
    at = 0
    for i in range(n):
        start = at
        at = copy_bytes(heap, at, staged_heap, refused[i, ENTRY_START], refused[i, ENTRY_END])
        refused[i, ENTRY_START], refused[i, ENTRY_END] = start, at
    return at
