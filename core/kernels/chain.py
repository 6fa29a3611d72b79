"""Verifies the hash chain of a record that was read back: content of each slice, then its digest.

`stage.pack` and `chain_ops` compute the same when a record is made (docs/STORAGE.md, "Hash
chain").
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.foreign import entry_end
from meterd.core.kernels.hashing import (
    CHAIN_KEY_0,
    CHAIN_KEY_1,
    sip_finish,
    sip_start,
    sip_word,
)
from meterd.core.kernels.stage import content_of, content_of_bytes
from meterd.protocol.log_format import EVENTS

Array = Any

_U64 = np.uint64


@njit(cache=True)
def _chained(before: Array, index: int, term: int, fields: Array, c0: Any, c1: Any) -> Any:
    """Return the digest of an op: of the digest before, its place, u64[3] fields, its content."""
    v0, v1, v2, v3 = sip_start(CHAIN_KEY_0, CHAIN_KEY_1)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, before[0])
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, before[1])
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(index))
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(term))
    for k in range(3):
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, fields[k])
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, c0)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, c1)
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True)
def first_broken(
    slices: Array, look: Array, payload: Array, layout: Any, fields: Array, before: Array
) -> int:
    """Return the position of the first slice whose digest is not what it must be, or -1.

    look     which slices to look at
    layout   byte offsets of timestamp, value, heap_end, metric, operation and heap in the payload
    fields   u64[3]: kind, registry version, leader time
    before   u64[k, 2]: for each slice the digest of what it follows
    """
    row = byte = 0
    for i in range(len(slices)):
        first_row, first_byte = row, byte
        row += int(slices[i].count)
        byte += int(slices[i].heap_size)
        if not look[i]:
            continue
        if fields[0] == EVENTS:
            c0, c1 = content_of(payload, layout, first_row, row - first_row, first_byte, byte)
        else:
            c0, c1 = content_of_bytes(payload)
        index, term = slices[i].index, slices[i].term
        d0, d1 = _chained(before[i], index, term, fields, c0, c1)
        if d0 != slices[i].digest[0] or d1 != slices[i].digest[1]:
            return i
    return -1


@njit(cache=True, _nrt=False)
def check_rest(slices: Array, payload: Array, layout: Any, rows: int, heap_size: int) -> int:
    """Check what no digest of a record covers; return 0 when it is right.

    1: entries of the heap do not end where the column says, 2: something lies between the columns.
    layout  byte offsets of the columns, of the heap, and of its padded end
    """
    if len(payload) < layout[6]:
        return 1
    heap = layout[5]
    row = end = limit = 0
    for i in range(len(slices)):
        limit += int(slices[i].heap_size)
        if limit > heap_size:
            return 1
        for _ in range(int(slices[i].count)):
            if row >= rows:
                return 1
            at, start, end = layout[2] + 4 * row, end, 0
            for byte in range(4):
                end |= int(payload[at + byte]) << (8 * byte)
            if end > limit or entry_end(payload, heap + start, heap + end) != heap + end:
                return 1
            row += 1
        if end != limit:
            return 1
    for begin, upto in (
        (layout[2] + 4 * rows, layout[3]),
        (layout[3] + 2 * rows, layout[4]),
        (layout[4] + rows, layout[5]),
        (layout[5] + heap_size, layout[6]),
    ):
        for at in range(begin, upto):
            if payload[at]:
                return 2
    return 0


@njit(cache=True)
def chain_ops(
    before: Array, index: Array, term: Array, fields: Array, contents: Array, out: Array
) -> None:
    """Write to out u64[k, 2] the digests of ops of one record that follow digests u64[k, 2].

    index, term  int64[k]
    fields       u64[3]: kind, registry version, leader time
    contents     u64[k, 2]
    """
    for k in range(len(index)):
        out[k] = _chained(before[k], index[k], term[k], fields, contents[k, 0], contents[k, 1])


# Slice tables as words, u64[k, 5] (docs/STORAGE.md): partition, flags and count; index; digest;
# term and heap size.

_NO_FLAGS = _U64(0xFFFFFFFF0000FFFF)
_HIGH = _U64(0xFFFFFFFF00000000)


@njit(cache=True)
def read_table(table: Array, row_size: int, group: Array, size: Array) -> None:
    """Write the group of each slice and the bytes it takes, `row_size` for a row and its heap."""
    for k in range(len(table)):
        first = table[k, 0]
        group[k] = first & _U64(0xFFFF)
        size[k] = row_size * np.int64(first >> _U64(32)) + np.int64(table[k, 4] >> _U64(32))


@njit(cache=True)
def chain_table(
    before: Array, index: Array, term: Array, fields: Any, table: Array, out: Array
) -> None:
    """Do what `chain_ops` does; the contents are in the digests' place of a slice table.

    fields  kind, registry version, leader time
    """
    words = np.empty(3, np.uint64)
    for k in range(3):
        words[k] = fields[k]
    for k in range(len(table)):
        c0, c1 = table[k, 2], table[k, 3]
        out[k] = _chained(before[k], index[k], term[k], words, c0, c1)


@njit(cache=True)
def fill_table(table: Array, index: Array, term: Array, digest: Array) -> None:
    """Give each slice of a table its place: it is here now, so it has no flag."""
    for k in range(len(table)):
        table[k, 0] &= _NO_FLAGS
        table[k, 1] = index[k]
        table[k, 2], table[k, 3] = digest[k, 0], digest[k, 1]
        table[k, 4] = (table[k, 4] & _HIGH) | _U64(term[k])
