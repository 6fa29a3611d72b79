"""Packs columns of integers into as few bits as each piece of them needs.

A column is cut into chunks of 128 values.  A chunk keeps its least value (the base) and the
differences to it, all in the width that the greatest needs: `width u8 · base size u8 · base
(zigzag, little-endian, so many bytes) · differences`, least significant bit first.  Widths above 56
become 64, so that one load of eight bytes always holds a whole value.

Arithmetic is modulo 2^64: any 64-bit values can be packed, and come back as they were.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import load_u64
from meterd.core.kernels.text import store_u64

Array = Any
_U64 = np.uint64

CHUNK = 128
WIDTH_MAX = 56
# A chunk takes at most so many bytes; eight more are written behind it and used again.
CHUNK_SIZE_MAX = 2 + 8 + 8 * CHUNK


@njit(cache=True, forceinline=True, _nrt=False)
def _bits(word: Any) -> Any:
    """Return how many bits a word needs."""
    bits = np.int64(0)
    if word >> _U64(32):
        bits += 32
        word >>= _U64(32)
    if word >> _U64(16):
        bits += 16
        word >>= _U64(16)
    if word >> _U64(8):
        bits += 8
        word >>= _U64(8)
    while word:
        bits += 1
        word >>= _U64(1)
    return bits


@njit(cache=True, forceinline=True, _nrt=False)
def _chunk_end(first: Any, count: Any) -> Any:
    return min(first + CHUNK, count)


@njit(cache=True, _nrt=False)
def pack_column(values: Array, count: int, out: Array, at: int) -> Any:
    """Write `count` values (int64) to out[at:]; return where they end."""
    first = np.int64(0)
    while first < count:
        last = _chunk_end(first, count)
        low = high = values[first]
        for i in range(first + 1, last):
            low = min(low, values[i])
            high = max(high, values[i])
        width = _bits(_U64(high) - _U64(low))
        if width > WIDTH_MAX:
            width = np.int64(64)
        zigzag = (_U64(low) << _U64(1)) ^ _U64(low >> np.int64(63))
        base_size = (_bits(zigzag) + 7) >> 3
        out[at] = width
        out[at + 1] = base_size
        store_u64(out, at + 2, zigzag)
        at += 2 + base_size
        if width == 64:
            for i in range(first, last):
                store_u64(out, at, _U64(values[i]) - _U64(low))
                at += 8
        elif width:
            bit = np.int64(0)
            word = _U64(0)
            for i in range(first, last):
                place = bit >> 3
                word |= (_U64(values[i]) - _U64(low)) << _U64(bit & 7)
                store_u64(out, at + place, word)
                bit += width
                word >>= _U64(((bit >> 3) - place) << 3)
            at += (bit + 7) >> 3
        first = last
    return at


@njit(cache=True, _nrt=False)
def unpack_column(data: Array, at: int, count: int, out: Array) -> Any:
    """Read `count` values from data[at:] into out (int64); return where they end.

    Up to eight bytes behind the column are looked at.
    """
    first = np.int64(0)
    while first < count:
        last = _chunk_end(first, count)
        width, base_size = np.int64(data[at]), np.int64(data[at + 1])
        zigzag = _U64(0)
        if base_size:
            zigzag = load_u64(data, at + 2) & (~_U64(0) >> _U64(64 - 8 * base_size))
        base = (zigzag >> _U64(1)) ^ (_U64(0) - (zigzag & _U64(1)))
        at += 2 + base_size
        if width == 64:
            for i in range(first, last):
                out[i] = np.int64(base + load_u64(data, at))
                at += 8
        elif width:
            mask = (_U64(1) << _U64(width)) - _U64(1)
            bit = np.int64(0)
            for i in range(first, last):
                word = load_u64(data, at + (bit >> 3)) >> _U64(bit & 7)
                out[i] = np.int64(base + (word & mask))
                bit += width
            at += (bit + 7) >> 3
        else:
            for i in range(first, last):
                out[i] = np.int64(base)
        first = last
    return at


@njit(cache=True, _nrt=False)
def skip_column(data: Array, at: int, count: int) -> Any:
    """Return where a column of `count` values ends."""
    first = np.int64(0)
    while first < count:
        size = min(np.int64(CHUNK), count - first)
        width = np.int64(data[at])
        at += 2 + np.int64(data[at + 1]) + ((size * width + 7) >> 3)
        first += CHUNK
    return at
