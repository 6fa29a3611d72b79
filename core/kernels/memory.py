"""Reserves memory for tables that grow in place, and hands many tables to a kernel as one.

A reservation takes address space only; pages become real when they are first written.  So a
table may be declared at its limit, never moves, and never has to be copied to grow.

numba takes an array apart at each call, a tenth of a microsecond when all is in the cache and ten
times that when it is not, and a state machine has more than forty.  So a kernel takes a *handle*,
int64[k, 2]: address and rows of each array, and makes its own views of what it uses.  A handle
keeps nothing alive: whoever made the arrays keeps them for as long as their handle is used.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

Array = Any

# Linux: do not count the reservation against the overcommit limit (module mmap lacks the name).
MAP_NORESERVE = 0x4000


def reserve(shape: tuple[int, ...], dtype: Any, large_pages: bool = False, offset: int = 0) -> Any:
    """Return a zeroed array of the given shape whose pages are not yet in memory.

    `large_pages` is for tables read at random: fewer entries of the processor's page cache
    cover them, but each first touch takes 2 MiB.  `offset`: where in its page it begins, in bytes.
    """
    count = math.prod(shape)
    size = max(offset + count * np.dtype(dtype).itemsize, 1)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    if large_pages:
        area.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(area, dtype, count, offset).reshape(shape)


def give_back(array: Any, size: int) -> None:
    """Give back the memory of the first `size` bytes of what `reserve` returned; they are zeros."""
    area = array
    while isinstance(area, np.ndarray):
        area = area.base
    if isinstance(area, memoryview):
        area = area.obj
    size &= -mmap.PAGESIZE
    if size:
        area.madvise(mmap.MADV_DONTNEED, 0, size)


def handle_of(tables: tuple[Any, ...]) -> Any:
    """Return the handle of a tuple of arrays, and of such tuples, in their order."""
    arrays: list[Any] = []
    for table in tables:
        arrays += table if isinstance(table, tuple) else [table]
    return np.array([(array.ctypes.data, len(array)) for array in arrays], np.int64)


def _view(context: Any, builder: Any, sig: Any, args: Any, width: Any) -> Any:
    """Make a view of an array: its address and rows are two words of the handle."""
    kind = sig.return_type
    words = make_array(sig.args[0])(context, builder, args[0]).data
    integer = context.get_value_type(types.intp)
    at = builder.mul(args[1], integer(2))
    address = builder.load(builder.gep(words, [at]))
    rows = builder.load(builder.gep(words, [builder.add(at, integer(1))]))
    size = integer(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    shape, strides = [rows], [size]
    if width is not None:
        shape, strides = [rows, width], [builder.mul(width, size), size]
    view = make_array(kind)(context, builder)
    populate_array(
        view,
        data=builder.inttoptr(address, view.data.type),
        shape=shape,
        strides=strides,
        itemsize=size,
        meminfo=None,
    )
    return view._getvalue()


@intrinsic
def column_at(typing_context: Any, handle: Any, place: Any, dtype: Any) -> Any:
    """Return a view of the 1-D array at a place of a handle."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _view(context, builder, sig, args, None)

    return types.Array(dtype.dtype, 1, "C")(handle, types.intp, dtype), generate


@intrinsic
def rows_at(typing_context: Any, handle: Any, place: Any, width: Any, dtype: Any) -> Any:
    """Return a view of the 2-D array with rows of `width` at a place of a handle."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _view(context, builder, sig, args, args[2])

    return types.Array(dtype.dtype, 2, "C")(handle, types.intp, types.intp, dtype), generate
