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
