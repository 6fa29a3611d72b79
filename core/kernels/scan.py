"""Walks a log file from record to record and makes the keys of its index in memory.

One key a row serves every kind of question, because it is made of parts that become finer from
left to right (40 bits):

    root of the account, 20 bits | account, 12 bits | metric number, 8 bits

so the rows of an account and metric, of an account, and of a path with everything below it are
each one range of keys.  Keys only narrow the search: whoever reads a row compares the account's
bytes and the metric number, so two that share a key cost time and nothing else.

Checksums were checked when the file was opened by its writer; what is checked here is what keeps
the walk inside the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.entries import account_hash, entry_parts
from meterd.core.kernels.hashing import load_u32, load_u64, root_end

Array = Any
_U64 = np.uint64

METRIC_BITS, ACCOUNT_BITS, ROOT_BITS = 8, 12, 20

# State of a walk (int64[5]): the next header, the end of its block, records left in the block,
# the next row, where the block's header lies.
AT, BLOCK_END, RECORDS_LEFT, ROW, BLOCK_AT = range(5)

BLOCK_MAGIC = 0x4B4C424D
RECORD_MAGIC = 0x4345524D
HEADER_SIZE = 64
SLICE_SIZE = 40
SECTOR_SIZE = 512
EVENTS = 1


@njit(cache=True, forceinline=True, _nrt=False)
def pad8(size: int) -> Any:
    return (size + 7) & ~np.int64(7)


@njit(cache=True, forceinline=True, _nrt=False)
def is_refused(bitmap: Array, row: int) -> Any:
    """Return whether the bit of a row is set; rows behind the bitmap are not refused."""
    place = row >> 3
    return place < len(bitmap) and (bitmap[place] >> np.uint8(row & 7)) & 1 != 0


@njit(cache=True, forceinline=True, _nrt=False)
def columns_at(data: Array, record: int) -> Any:
    """Return (rows, heap_end, metric, operation, heap): the columns' offsets of an events record.

    Timestamps begin 16 bytes a row before heap_end, values 8 bytes a row.
    """
    n = np.int64(load_u32(data, record + 16))
    start = record + HEADER_SIZE + SLICE_SIZE * np.int64(load_u32(data, record + 12))
    heap_end = start + 16 * n
    metric = heap_end + pad8(4 * n)
    operation = metric + pad8(2 * n)
    return n, heap_end, metric, operation, operation + pad8(n)


@njit(cache=True, forceinline=True, _nrt=False)
def account_key(k0: Any, k1: Any, data: Array, start: int, end: int) -> Any:
    """Return the upper 32 bits of the keys of an account: its root and itself."""
    stop = root_end(data, start, end)
    root, _ = account_hash(k0, k1, data, start, stop)
    own = root
    if stop < end:
        own, _ = account_hash(k0, k1, data, start, end)
    own &= _U64((1 << ACCOUNT_BITS) - 1)
    return (root >> _U64(64 - ROOT_BITS)) << _U64(ACCOUNT_BITS) | own


@njit(cache=True, _nrt=False)
def key_of_account(key: Array, text: Array) -> Any:
    """Return `account_key` of a text, for callers outside kernels."""
    return account_key(key[0], key[1], text, 0, len(text))


@njit(cache=True, _nrt=False)
def next_record(data: Array, end: int, state: Array) -> Any:
    """Return the offset of the next record that ends at or before `end`, and step over it.

    Returns -1 at the end of what was written, -2 where the bytes are no log.
    """
    while state[RECORDS_LEFT] == 0:
        at = state[BLOCK_END]
        if at + HEADER_SIZE > end:
            return np.int64(-1)
        state[AT] = at  # names the place if it is no block
        magic = np.int64(load_u32(data, at))
        if magic == 0:
            return np.int64(-1)
        size = np.int64(load_u32(data, at + 16))
        if magic != BLOCK_MAGIC or size <= 0 or size % SECTOR_SIZE != 0 or at + size > len(data):
            return np.int64(-2)
        if np.int64(load_u32(data, at + 28)) != state[ROW]:
            return np.int64(-2)
        state[BLOCK_AT] = at
        state[AT] = at + HEADER_SIZE
        state[BLOCK_END] = at + size
        state[RECORDS_LEFT] = np.int64(load_u32(data, at + 20))
    at = state[AT]
    if at + HEADER_SIZE > end:
        return np.int64(-1)
    size = np.int64(load_u32(data, at + 8))
    magic = np.int64(load_u32(data, at))
    if magic != RECORD_MAGIC or size < HEADER_SIZE or at + size > state[BLOCK_END]:
        return np.int64(-2)
    if at + size > end:
        return np.int64(-1)
    state[AT] = at + size
    state[RECORDS_LEFT] -= 1
    state[ROW] += np.int64(load_u32(data, at + 16))
    return at


@njit(cache=True, _nrt=False)
def whole_blocks(data: Array) -> Any:
    """Return where the last of the blocks ends that lie wholly in a window that begins with one."""
    at = np.int64(0)
    while at + HEADER_SIZE <= len(data) and load_u32(data, at) == BLOCK_MAGIC:
        size = np.int64(load_u32(data, at + 16))
        if size <= 0 or at + size > len(data):
            break
        at += size
    return at


@njit(cache=True, _nrt=False)
def measure(data: Array, end: int, state: Array) -> Any:
    """Walk to the end; return (records of events, rows), or a negative count where it is no log."""
    first = state[ROW]
    records = 0
    while True:
        record = next_record(data, end, state)
        if record == -2:
            return np.int64(-1), state[AT]
        if record < 0:
            return np.int64(records), state[ROW] - first
        if data[record + 5] == EVENTS:
            records += 1


@njit(cache=True, _nrt=False)
def index_rows(data: Array, end: int, state: Array, key: Array, out: Any) -> None:
    """Walk to the end and write the key and timestamp of every row, and where each record lies.

    out: (keys u64[rows], timestamps i64[rows], record_row u32[records],
    record_offset u64[records]); `measure` has said how many.
    """
    keys, timestamps, record_row, record_offset = out
    k0, k1 = key[0], key[1]
    r = 0
    i = 0
    while True:
        first_row = state[ROW]
        record = next_record(data, end, state)
        if record < 0:
            return
        if data[record + 5] != EVENTS:
            continue
        record_row[r] = first_row
        record_offset[r] = record
        r += 1
        n, heap_end, metric, _, heap = columns_at(data, record)
        timestamp = heap_end - 16 * n
        entry = heap
        for row in range(n):
            account_end, _ = entry_parts(data, entry)
            number = _U64(data[metric + 2 * row])  # the low byte of a little-endian u16
            account = account_key(k0, k1, data, entry + 2, account_end)
            keys[i] = account << _U64(METRIC_BITS) | number
            timestamps[i] = np.int64(load_u64(data, timestamp + 8 * row))
            entry = heap + np.int64(load_u32(data, heap_end + 4 * row))
            i += 1
