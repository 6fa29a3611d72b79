"""Where the columns of a record's rows lie, and what stands in them (docs/STORAGE.md)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import load_u16, load_u32, load_u64
from meterd.core.kernels.scan import pad8

Array = Any


class Columns(NamedTuple):
    """The payload of a record and the offsets of its columns."""

    data: Array  # u8
    rows: int
    value: int
    heap_end: int
    metric: int
    operation: int
    heap: int


@njit(cache=True, forceinline=True, _nrt=False)
def columns_of(payload: Array, n: int) -> Any:
    """Find the columns of a payload (docs/STORAGE.md); timestamps begin it."""
    metric = 16 * n + pad8(4 * n)
    operation = metric + pad8(2 * n)
    return Columns(payload, n, 8 * n, 16 * n, metric, operation, operation + pad8(n))


@njit(cache=True, forceinline=True, _nrt=False)
def timestamp_at(columns: Any, i: int) -> Any:
    return np.int64(load_u64(columns.data, 8 * i))


@njit(cache=True, forceinline=True, _nrt=False)
def value_at(columns: Any, i: int) -> Any:
    return np.int64(load_u64(columns.data, columns.value + 8 * i))


@njit(cache=True, forceinline=True, _nrt=False)
def metric_at(columns: Any, i: int) -> Any:
    return np.int64(load_u16(columns.data, columns.metric + 2 * i))


@njit(cache=True, forceinline=True, _nrt=False)
def entry_at(columns: Any, i: int) -> Any:
    """Return where the heap entry of a row begins; that of the row behind the last: its end."""
    if i == 0:
        return np.int64(columns.heap)
    return columns.heap + np.int64(load_u32(columns.data, columns.heap_end + 4 * (i - 1)))


@njit(cache=True, _nrt=False)
def cut_slices(
    slices: Array, payload: Array, source: Any, numbers: Array, out: Array, target: Any
) -> None:
    """Copy the rows of some slices of a record into the payload of another one.

    numbers         int64[k]: which slices, ascending
    source, target  byte offsets of the columns of both (`log_format.PayloadLayout`)
    out             u8[size of the other payload], zero
    """
    row = heap = out_row = out_heap = wanted = 0
    for number in range(len(slices)):
        if wanted == len(numbers):
            return
        rows, size = int(slices[number].count), int(slices[number].heap_size)
        if number == numbers[wanted]:
            for column, width in ((0, 8), (1, 8), (3, 2), (4, 1)):
                begin, at = source[column] + width * row, target[column] + width * out_row
                for byte in range(width * rows):
                    out[at + byte] = payload[begin + byte]
            for k in range(rows):
                end = load_u32(payload, source[2] + 4 * (row + k)) - heap + out_heap
                for byte in range(4):
                    out[target[2] + 4 * (out_row + k) + byte] = (end >> (8 * byte)) & 0xFF
            for byte in range(size):
                out[target[5] + out_heap + byte] = payload[source[5] + heap + byte]
            out_row += rows
            out_heap += size
            wanted += 1
        row += rows
        heap += size
