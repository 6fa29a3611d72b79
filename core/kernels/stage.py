"""Turns the decoded columns of requests into staged rows, and staged rows into a payload.

`stage` takes one request: it checks every row, chooses its metric number, scales its value and
writes its heap entry (docs/STORAGE.md).  A row ends in one of three places:

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
    partition_of,
    sip_bytes,
    sip_finish,
    sip_start,
    sip_word,
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
# What a request's codes are (int64[codes, 2]): first row in the table of versions, how many or 0.
FIRST_VERSION, VERSION_COUNT = range(2)

# State of a stage (int64[4]): rows staged, rows refused, faults, bytes of heap used.
STAGED, REFUSED, FAULTS, HEAP_USED = range(4)

BAD_ACCOUNT = REASONS.index("bad_account")
UNKNOWN_METRIC = REASONS.index("unknown_metric")
BAD_VALUE = REASONS.index("bad_value")
BAD_ID = REASONS.index("bad_id")
BAD_PROPERTIES = REASONS.index("bad_properties")

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
    heap: Array,
    at: int,
    i: int,
    key_ends: Array,
    keys: Array,
    value_bases: Array,
    value_offsets: Array,
    values: Array,
    index: Array,
    rows: int,
) -> Any:
    """Write the properties of row i (columns are sorted by key); return (end, whether ≤ 32)."""
    count_at = at
    at += 1
    count = 0
    key_start = np.int64(0)
    for p in range(len(key_ends)):
        key_end = np.int64(key_ends[p])
        which = index[p * rows + i]
        if which != _ABSENT:
            count += 1
            base = np.int64(value_bases[p]) + np.int64(which)
            start, end = np.int64(value_offsets[base]), np.int64(value_offsets[base + 1])
            heap[at] = key_end - key_start
            at = copy_bytes(heap, at + 1, keys, key_start, key_end)
            heap[at] = end - start
            at = copy_bytes(heap, at + 1, values, start, end)
            if count > limits.PROPERTIES_MAX:
                return at, False
        key_start = key_end
    heap[count_at] = count
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
def stage(
    events: Any,
    accounts: Any,
    ids: Any,
    uuids: Array,
    properties: Any,
    registry: Any,
    out: Any,
) -> bool:
    """Stage one request; return False, with nothing changed, when the heap has no room for it.

    events     (timestamp, value, exponent, metric_index, operation, reason), n each
    accounts   (offsets u32[n + 1], text u8)
    ids        the same, empty when uuids (u8[16 n]) is not
    properties (key_ends, keys, value_bases, value_offsets, values, index, n) of all columns
    registry   (versions, codes)
    out        (staged, refused, faults, heap, state, request number)
    """
    timestamp, value, exponent, metric_index, operation, reasons = events
    account_offsets, account_text = accounts
    id_offsets, id_text = ids
    uuid_form = len(uuids) > 0
    # Tuples are taken apart once: inside the loop every array in them would be counted anew.
    key_ends, keys, value_bases, value_offsets, values, index, rows = properties
    versions, codes = registry
    staged, refused, faults, heap, state, request = out
    n_staged, n_refused, n_faults, at = (
        state[STAGED],
        state[REFUSED],
        state[FAULTS],
        state[HEAP_USED],
    )
    limit = len(heap) - ENTRY_SIZE_MAX - 8
    for i in range(len(timestamp)):
        if at > limit:
            return False
        entry = at
        reason = np.int64(reasons[i])
        comparable = reason == 0
        start, end = np.int64(account_offsets[i]), np.int64(account_offsets[i + 1])
        size = end - start
        id_valid = False
        account_valid = (
            1 <= size <= limits.ACCOUNT_SIZE_MAX
            and reason != BAD_ACCOUNT
            and is_utf8(account_text, start, end)
        )
        if account_valid and reason != BAD_ID:
            at = copy_bytes(heap, entry + 2, account_text, start, end)
            id_size = 0
            if uuid_form:
                at = copy_bytes(heap, at, uuids, i * UUID_SIZE, (i + 1) * UUID_SIZE)
                id_valid = True
            else:
                first, last = np.int64(id_offsets[i]), np.int64(id_offsets[i + 1])
                at, id_size, id_valid = _write_id(heap, at, id_text, first, last)
            heap[entry] = size
            heap[entry + 1] = id_size
        if not id_valid:
            faults[n_faults, 0] = request
            faults[n_faults, 1] = i
            faults[n_faults, 2] = BAD_ID if account_valid else BAD_ACCOUNT
            n_faults += 1
            at = entry
            continue
        at, fits = _write_properties(
            heap, at, i, key_ends, keys, value_bases, value_offsets, values, index, rows
        )
        if not fits:
            comparable = False
            at = entry + 2 + size + (UUID_SIZE if heap[entry + 1] == 0 else heap[entry + 1])
            heap[at] = 0
            at += 1
            if reason == 0:
                reason = np.int64(BAD_PROPERTIES)
        code = np.int64(metric_index[i])
        scaled = value[i]
        number = code
        if reason == 0:
            v = _select(
                versions, codes[code, FIRST_VERSION], codes[code, VERSION_COUNT], timestamp[i]
            )
            if v < 0:
                reason = np.int64(UNKNOWN_METRIC)
            else:
                scaled, exact = _scale(value[i], np.int64(exponent[i]), versions[v, DECIMALS])
                if exact:
                    number = versions[v, NUMBER]
                else:
                    reason = np.int64(BAD_VALUE)
                    scaled = value[i]
        flags = np.int64(operation[i]) | np.int64(exponent[i]) << 8 | reason << 16
        flags |= partition_of(account_text, start, end) << 24
        if reason == 0:
            _put(staged, n_staged, timestamp[i], scaled, number, flags)
            _put_place(staged, n_staged, entry, at, request, i)
            n_staged += 1
        else:
            if not comparable:
                flags |= NOT_COMPARABLE
            _put(refused, n_refused, timestamp[i], scaled, number, flags)
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

    payload is u8 and zeroed; layout gives the byte offset of each column in it; out is
    (slices u64[k, 5] as in the log, with the content's hash in place of the digest,
    request_of_row u32[n], row_of_row u32[n]).
    """
    slices, request_of_row, row_of_row = out
    timestamps, values, heap_ends, metrics, operations, heap = layout
    next_row = np.empty(PARTITION_COUNT, np.int64)
    next_byte = np.empty(PARTITION_COUNT, np.int64)
    row, byte = np.int64(0), np.int64(0)
    for p in range(PARTITION_COUNT):
        next_row[p], next_byte[p] = row, byte
        row += sizes[p, 0]
        byte += sizes[p, 1]
    # One view per width; columns start at multiples of 8.
    words = payload.view(np.int64)
    halves = payload.view(np.uint32)
    quarters = payload.view(np.uint16)
    for i in range(n):
        flags = staged[i, FLAGS]
        p = (flags >> 24) & 0xFFFF
        j = next_row[p]
        next_row[p] = j + 1
        start, end = staged[i, ENTRY_START], staged[i, ENTRY_END]
        at = copy_bytes(payload, heap + next_byte[p], staged_heap, start, end) - heap
        next_byte[p] = at
        words[timestamps // 8 + j] = staged[i, TIMESTAMP]
        words[values // 8 + j] = staged[i, VALUE]
        halves[heap_ends // 4 + j] = at
        quarters[metrics // 2 + j] = staged[i, METRIC]
        payload[operations + j] = flags & 0xFF
        request_of_row[j] = staged[i, REQUEST]
        row_of_row[j] = staged[i, ROW]
    s = 0
    row, byte = np.int64(0), np.int64(0)
    for p in range(PARTITION_COUNT):
        count, size = sizes[p, 0], sizes[p, 1]
        if count == 0:
            continue
        h0, h1 = content_of(payload, layout, row, count, byte, byte + size)
        slices[s, 0] = _U64(p) | _U64(count) << _U64(32)
        slices[s, 1] = 0
        slices[s, 2], slices[s, 3] = h0, h1
        slices[s, 4] = _U64(size) << _U64(32)
        s += 1
        row += count
        byte += size


@njit(cache=True)
def compact_refused(refused: Array, n: int, staged_heap: Array, heap: Array) -> Any:
    """Copy the heap entries of refused rows together; return the bytes used."""
    at = 0
    for i in range(n):
        start = at
        at = copy_bytes(heap, at, staged_heap, refused[i, ENTRY_START], refused[i, ENTRY_END])
        refused[i, ENTRY_START], refused[i, ENTRY_END] = start, at
    return at


@njit(cache=True)
def chain(slices: Array, constants: Array, last_index: Array, last_digest: Array) -> None:
    """Give every slice the next (term, index) of its group; chain its content to the digest before.

    slices     u64[k, 5] as `pack` leaves them
    constants  u64[4]: kind, registry version, leader time, term
    last_index u64[257], last_digest u64[257, 2]: per group; advanced
    """
    for s in range(len(slices)):
        group = np.int64(slices[s, 0] & _U64(0xFFFF))
        index = last_index[group] + _U64(1)
        v0, v1, v2, v3 = sip_start(CHAIN_KEY_0, CHAIN_KEY_1)
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, last_digest[group, 0])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, last_digest[group, 1])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, index)
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, constants[3])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, constants[0])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, constants[1])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, constants[2])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, slices[s, 2])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, slices[s, 3])
        slices[s, 2], slices[s, 3] = sip_finish(v0, v1, v2, v3)
        slices[s, 1] = index
        slices[s, 4] |= constants[3]
        last_index[group] = index
        last_digest[group, 0], last_digest[group, 1] = slices[s, 2], slices[s, 3]
