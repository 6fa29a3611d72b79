"""Checks the rows of a record that another node has packed, before they are ordered here.

Checksums say that they are what that node has sent; this says that kernels may walk through them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import partition_of
from meterd.core.kernels.stage import content_of, content_of_bytes
from meterd.core.kernels.text import UUID_SIZE, is_utf8
from meterd.protocol import limits

Array = Any

OPERATION_MAX = 2


@njit(cache=True, _nrt=False)
def entry_end(heap: Array, start: int, end: int) -> int:
    """Return where the heap entry at `start` ends; -1: it is none, or ends behind `end`."""
    if end - start < 2:
        return -1
    account, id_size = np.int64(heap[start]), np.int64(heap[start + 1])
    if not 1 <= account <= limits.ACCOUNT_SIZE_MAX or id_size > limits.ID_SIZE_MAX:
        return -1
    id_start = start + 2 + account
    at = id_start + (id_size if id_size else UUID_SIZE)
    if at + 1 > end or not is_utf8(heap, start + 2, id_start):
        return -1
    if id_size and not is_utf8(heap, id_start, at):
        return -1
    count = np.int64(heap[at])
    at += 1
    if count > limits.PROPERTIES_MAX:
        return -1
    for _ in range(2 * count):
        if at + 1 > end:
            return -1
        at += 1 + np.int64(heap[at])
    return at if at <= end else -1


@njit(cache=True, _nrt=False)
def first_bad_content(slices: Array, payload: Array, layout: Any, events: bool) -> int:
    """Return the first slice whose content's hash, in place of its digest, is not right, or -1.

    layout  byte offsets of timestamp, value, heap_end, metric, operation and heap in the payload
    events  whether the payload is columns; else it is one body
    """
    row = byte = np.int64(0)
    for s in range(len(slices)):
        last_row = row + np.int64(slices[s].count)
        last_byte = byte + np.int64(slices[s].heap_size)
        if events:
            c0, c1 = content_of(payload, layout, row, last_row - row, byte, last_byte)
        else:
            c0, c1 = content_of_bytes(payload)
        if c0 != slices[s].digest[0] or c1 != slices[s].digest[1]:
            return s
        row, byte = last_row, last_byte
    return -1


@njit(cache=True, _nrt=False)
def first_bad_row(slices: Array, heap_ends: Array, operations: Array, heap: Array) -> int:
    """Return the first row that does not lie where slices and heap_end say, or -1.

    slices      the slice table; its counts and heap sizes add up to those of the record
    heap_ends   u32[n], operations u8[n], heap u8[heap size]: columns of the record
    """
    row, start = 0, np.int64(0)
    for s in range(len(slices)):
        last = row + np.int64(slices[s].count)
        limit = start + np.int64(slices[s].heap_size)
        while row < last:
            end = np.int64(heap_ends[row])
            if end > limit or entry_end(heap, start, end) != end:
                return row
            account = np.int64(heap[start])
            if partition_of(heap, start + 2, start + 2 + account) != slices[s].partition:
                return row
            if operations[row] > OPERATION_MAX:
                return row
            start = end
            row += 1
        if start != limit:
            return row - 1
    return -1


@njit(cache=True, _nrt=False)
def first_bad_refusal(places: Array, heap: Array, code_count: int) -> int:
    """Return the first refused row that does not lie where it says, or -1.

    places  int64[k, 3]: where its heap entry begins and ends, and its code's position
    """
    for i in range(len(places)):
        start, end, code = places[i, 0], places[i, 1], places[i, 2]
        if not (0 <= start <= end <= len(heap) and 0 <= code < code_count):
            return i
        if entry_end(heap, start, end) != end:
            return i
    return -1
