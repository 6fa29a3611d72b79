"""Copies and checks text inside kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from meterd.core.kernels.hashing import load_u32, load_u64, tail_word

Array = Any

_U64 = np.uint64
_HIGH_BITS = np.uint64(0x8080808080808080)
UUID_TEXT_SIZE = 36
UUID_SIZE = 16


def _store(bits: int, context: Any, builder: Any, sig: Any, args: Any) -> Any:
    data = make_array(sig.args[0])(context, builder, args[0]).data
    pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(bits).as_pointer())
    builder.store(args[2], pointer).align = 1
    return context.get_dummy_value()


@intrinsic
def store_u64(typing_context: Any, array: Any, index: Any, word: Any) -> Any:
    """Store 8 bytes into a uint8 array at any (unaligned) index; the caller checks the bounds."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _store(64, context, builder, sig, args)

    return types.void(array, types.int64, types.uint64), generate


@intrinsic
def store_u32(typing_context: Any, array: Any, index: Any, word: Any) -> Any:
    """Store 4 bytes into a uint8 array at any (unaligned) index; the caller checks the bounds."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _store(32, context, builder, sig, args)

    return types.void(array, types.int64, types.uint32), generate


@njit(cache=True, forceinline=True, _nrt=False)
def copy_bytes(target: Array, at: int, source: Array, start: int, end: int) -> Any:
    """Copy source[start:end] to target[at:]; return where it ends.  Texts here are short."""
    size = end - start
    stop = at + size
    if size >= 8:  # whole words, the last one overlapping the one before
        while start + 8 < end:
            store_u64(target, at, load_u64(source, start))
            at += 8
            start += 8
        store_u64(target, stop - 8, load_u64(source, end - 8))
    elif size >= 4:
        head, tail = load_u32(source, start), load_u32(source, end - 4)
        store_u32(target, at, head)
        store_u32(target, stop - 4, tail)
    else:
        while start < end:
            target[at] = source[start]
            at += 1
            start += 1
    return stop


@njit(cache=True, _nrt=False)
def _is_utf8_slow(data: Array, at: int, end: int) -> Any:
    """Check UTF-8 as in RFC 3629: shortest form, no surrogates, at most U+10FFFF."""
    while at < end:
        lead = data[at]
        if lead < 0x80:
            at += 1
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        more = 1 if lead < 0xE0 else (2 if lead < 0xF0 else 3)
        if at + more >= end:
            return False
        second = data[at + 1]
        if (
            (lead == 0xE0 and second < 0xA0)
            or (lead == 0xED and second > 0x9F)
            or (lead == 0xF0 and second < 0x90)
            or (lead == 0xF4 and second > 0x8F)
        ):
            return False
        for i in range(1, more + 1):
            if data[at + i] & 0xC0 != 0x80:
                return False
        at += more + 1
    return True


@njit(cache=True, forceinline=True, _nrt=False)
def is_utf8(data: Array, start: int, end: int) -> Any:
    """Return whether the bytes start..end are UTF-8; eight at a time while they are ASCII."""
    at = start
    while at + 8 <= end:
        if load_u64(data, at) & _HIGH_BITS:
            return _is_utf8_slow(data, at, end)
        at += 8
    if tail_word(data, at, end) & _HIGH_BITS:
        return _is_utf8_slow(data, at, end)
    return True


@njit(cache=True, forceinline=True, _nrt=False)
def _hex_digit(byte: int) -> Any:
    """Return the value of a lower-case hexadecimal digit, or -1."""
    if 48 <= byte <= 57:
        return np.int64(byte) - 48
    if 97 <= byte <= 102:
        return np.int64(byte) - 87
    return np.int64(-1)


@njit(cache=True, _nrt=False)
def uuid_from_text(target: Array, at: int, source: Array, start: int) -> Any:
    """Write the 16 bytes of a canonical UUID text of 36 bytes; return whether it is one.

    Only the canonical form (lower case, dashes at 8, 13, 18, 23) is taken, so that text and
    bytes name one identity and nothing else does.
    """
    place = start
    for i in range(UUID_SIZE):
        if i == 4 or i == 6 or i == 8 or i == 10:
            if source[place] != 45:
                return False
            place += 1
        high = _hex_digit(source[place])
        low = _hex_digit(source[place + 1])
        if high < 0 or low < 0:
            return False
        target[at + i] = np.uint8(high * 16 + low)
        place += 2
    return True
