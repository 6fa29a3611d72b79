"""Reads the heap entry of a row (docs/STORAGE.md) and hashes what identifies things in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import (
    load_u64,
    sip_bytes,
    sip_finish,
    sip_start,
    sip_word,
    tail_word,
)
from meterd.core.kernels.text import UUID_SIZE, copy_bytes

Array = Any
_U64 = np.uint64

LONG_DIMENSION = 254
# Where the content's digest begins in an identity's payload; the day of its event lies below.
DIGEST_SHIFT = 16

# First words that keep messages of different meaning apart under one key.
ACCOUNT, IDENTITY, SERIES, CONTENT, MEMBER_VALUE, MEMBER_TEXT, CELL, MEMBER = range(1, 9)


@njit(cache=True, forceinline=True, _nrt=False)
def entry_parts(heap: Array, start: int) -> Any:
    """Return (account end, id end).

    The account begins at start + 2, the id where that ends, the properties' count behind the id.
    """
    account_end = start + 2 + np.int64(heap[start])
    id_size = np.int64(heap[start + 1])
    return account_end, account_end + (UUID_SIZE if id_size == 0 else id_size)


@njit(cache=True, forceinline=True, _nrt=False)
def account_state(k0: Any, k1: Any, heap: Array, start: int, end: int) -> Any:
    """Return the four state words of the hash after an account's text, anywhere."""
    v0, v1, v2, v3 = sip_start(k0, k1)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(ACCOUNT) | _U64(end - start) << _U64(8))
    return sip_bytes(v0, v1, v2, v3, heap, start, end)


@njit(cache=True, forceinline=True, _nrt=False)
def account_hash(k0: Any, k1: Any, heap: Array, start: int, end: int) -> Any:
    """Hash an account's text, anywhere."""
    v0, v1, v2, v3 = account_state(k0, k1, heap, start, end)
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True, forceinline=True, _nrt=False)
def identity_hash(
    v0: Any, v1: Any, v2: Any, v3: Any, heap: Array, start: int, end: int, size: int
) -> Any:
    """Hash (account, id): the account's state goes on with the id's length byte and bytes.

    The account's length comes first, so no two identities, nor an identity and an account, are one
    message.
    """
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(IDENTITY) | _U64(size) << _U64(8))
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, heap, start, end)
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True, forceinline=True, _nrt=False)
def normalise(value: int, decimals: int) -> Any:
    """Strip trailing zeros after the point: the same number has one (value, decimals)."""
    while decimals > 0 and value % 10 == 0:
        value //= 10
        decimals -= 1
    return value, decimals


@njit(cache=True, forceinline=True, _nrt=False)
def content_digest(
    k0: Any,
    k1: Any,
    code_hash: Any,
    value: int,
    decimals: int,
    timestamp: int,
    operation: int,
    heap: Array,
    start: int,
    end: int,
) -> Any:
    """Hash what an event says; start..end are its properties.  32 bits, at bit 16.

    The hash of the metric's code is keyed and has 64 bits, so the kind may share its word.
    """
    value, decimals = normalise(value, decimals)
    v0, v1, v2, v3 = sip_start(k0, k1)
    kind = _U64(CONTENT) | _U64(operation) << _U64(8) | _U64(decimals) << _U64(16)
    kind |= _U64(end - start) << _U64(32)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, code_hash ^ kind)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(value))
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(timestamp))
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, heap, start, end)
    digest, _ = sip_finish(v0, v1, v2, v3)
    return (digest >> _U64(32)) << _U64(DIGEST_SHIFT)


@njit(cache=True, forceinline=True, _nrt=False)
def same_bytes(a: Array, a_start: int, b: Array, b_start: int, size: int) -> Any:
    """Return whether two runs of bytes are equal."""
    at = 0
    while at + 8 <= size:
        if load_u64(a, a_start + at) != load_u64(b, b_start + at):
            return False
        at += 8
    return tail_word(a, a_start + at, a_start + size) == tail_word(b, b_start + at, b_start + size)


@njit(cache=True, _nrt=False)
def find_property(heap: Array, at: int, keys: Array, key_start: int, key_end: int) -> Any:
    """Return where a property's value lies, (0, -1) if absent; `at` is the properties' count."""
    count = np.int64(heap[at])
    at += 1
    size = key_end - key_start
    for _ in range(count):
        key_size = np.int64(heap[at])
        value_at = at + 1 + key_size
        value_size = np.int64(heap[value_at])
        if key_size == size and same_bytes(heap, at + 1, keys, key_start, size):
            return value_at + 1, value_at + 1 + value_size
        at = value_at + 1 + value_size
    return np.int64(0), np.int64(-1)


@njit(cache=True, _nrt=False)
def write_dimensions(
    target: Array, to: int, heap: Array, at: int, keys: Array, places: Array, first: int, count: int
) -> Any:
    """Write the dimension tuple of a row; return where it ends.

    `keys` holds the metric's dimension keys, sorted; places int64[n, 2] where each begins and ends.
    A dimension is 0 when absent, else its size + 1 and its bytes; sizes from 254 on are
    255 and the size - 254.
    """
    for d in range(first, first + count):
        start, end = find_property(heap, at, keys, places[d, 0], places[d, 1])
        size = end - start
        if size < 0:
            target[to] = 0
            to += 1
            continue
        if size < LONG_DIMENSION:
            target[to] = size + 1
            to += 1
        else:
            target[to] = 255
            target[to + 1] = size - LONG_DIMENSION
            to += 2
        to = copy_bytes(target, to, heap, start, end)
    return to


def read_dimensions(data: bytes, count: int) -> list[str | None]:
    """Read the dimension tuple that `write_dimensions` wrote."""
    values: list[str | None] = []
    at = 0
    for _ in range(count):
        size = data[at] - 1
        at += 1
        if size < 0:
            values.append(None)
            continue
        if size == LONG_DIMENSION:
            size += data[at]
            at += 1
        values.append(data[at : at + size].decode())
        at += size
    return values


@njit(cache=True, forceinline=True, _nrt=False)
def member_of_value(k0: Any, k1: Any, value: int, decimals: int) -> Any:
    """Hash a member that is a number."""
    value, decimals = normalise(value, decimals)
    v0, v1, v2, v3 = sip_start(k0, k1)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(MEMBER_VALUE) | _U64(decimals) << _U64(8))
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(value))
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True, forceinline=True, _nrt=False)
def member_of_text(k0: Any, k1: Any, heap: Array, start: int, end: int) -> Any:
    """Hash a member that is a property's value."""
    v0, v1, v2, v3 = sip_start(k0, k1)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(MEMBER_TEXT) | _U64(end - start) << _U64(8))
    v0, v1, v2, v3 = sip_bytes(v0, v1, v2, v3, heap, start, end)
    return sip_finish(v0, v1, v2, v3)


@njit(cache=True, forceinline=True, _nrt=False)
def pair_hash(k0: Any, k1: Any, meaning: int, a: Any, b: Any, c: Any) -> Any:
    """Hash three words under a meaning (keys of cells and members)."""
    v0, v1, v2, v3 = sip_start(k0, k1)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(meaning))
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, a)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, b)
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, c)
    return sip_finish(v0, v1, v2, v3)
