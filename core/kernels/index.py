"""One hash index for everything: 128-bit keys to 64-bit payloads, growing bucket by bucket.

Extendible hashing (Fagin, Nievergelt, Pippenger, Strong 1979).  A directory indexed by the top
bits of the key names a bucket of 512 slots; inside, linear probing.  A bucket that fills is split
in two and only its own entries move, so no insert ever pays for rehashing the table, and a table
can be saved bucket by bucket.  Keys are keyed hashes, so nobody can steer them into one bucket.

An index is a tuple of arrays (`make_index`), reserved at their limits:
  slots      u64[buckets * 512, 3]   key word 0, key word 1, payload; both key words 0: free
  directory  u32[2 ** depth]         bucket of a prefix
  depths     u8[buckets]             how many top bits all keys of the bucket share
  counts     u16[buckets]            slots in use
  head       i64[4]                  directory depth, buckets, entries, bucket limit
  scratch    u64[512, 3]             a bucket that is being split
Entries are never removed one by one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.memory import reserve

Array = Any

BUCKET_SLOTS = 512
# Splitting at 81 % keeps unsuccessful probes short (about 4 slots on average over a bucket's life).
BUCKET_FULL = 416
DEPTH, BUCKETS, ENTRIES, BUCKETS_MAX = 0, 1, 2, 3
MISSING = -1

_U64 = np.uint64
_SLOT_MASK = np.uint64(BUCKET_SLOTS - 1)


class Index(NamedTuple):
    """The arrays of one index; see the module."""

    slots: Array
    directory: Array
    depths: Array
    counts: Array
    head: Array
    scratch: Array


def make_index(entries_max: int, large_pages: bool = False) -> Index:
    """Return an empty index with room for at least `entries_max` entries."""
    buckets = 2
    # Right after a round of splits buckets are half as full as when they split.
    while buckets * BUCKET_FULL // 2 < entries_max:
        buckets *= 2
    directory_size = buckets * 16  # unlucky prefixes are up to a few bits deeper than the average
    index = Index(
        reserve((buckets * BUCKET_SLOTS, 3), np.uint64, large_pages),
        reserve((directory_size,), np.uint32),
        reserve((buckets,), np.uint8),
        reserve((buckets,), np.uint16),
        np.array([1, 2, 0, buckets], np.int64),
        np.empty((BUCKET_SLOTS, 3), np.uint64),
    )
    index.directory[:2] = (0, 1)
    index.depths[:2] = 1
    return index


@njit(cache=True, forceinline=True, _nrt=False)
def bucket_of(index: Any, k0: Any) -> Any:
    """Return the bucket in which a key lies."""
    return np.int64(index.directory[k0 >> _U64(64 - index.head[DEPTH])])


@njit(cache=True, forceinline=True, _nrt=False)
def find(index: Any, k0: Any, k1: Any) -> Any:
    """Return the slot of a key, or MISSING."""
    base = bucket_of(index, k0) * BUCKET_SLOTS
    slot = np.int64(k1 & _SLOT_MASK)
    slots = index.slots
    while True:
        a = slots[base + slot, 0]
        b = slots[base + slot, 1]
        if a == k0 and b == k1:
            return base + slot
        if a == 0 and b == 0:
            return MISSING
        slot = (slot + 1) & (BUCKET_SLOTS - 1)


@njit(cache=True, forceinline=True, _nrt=False)
def probe(index: Any, k0: Any, k1: Any) -> Any:
    """Return (slot, True) of a key, or (the free slot where it would go, False)."""
    base = bucket_of(index, k0) * BUCKET_SLOTS
    slot = np.int64(k1 & _SLOT_MASK)
    slots = index.slots
    while True:
        a = slots[base + slot, 0]
        b = slots[base + slot, 1]
        if a == k0 and b == k1:
            return base + slot, True
        if a == 0 and b == 0:
            return base + slot, False
        slot = (slot + 1) & (BUCKET_SLOTS - 1)


@njit(cache=True, forceinline=True, _nrt=False)
def insert_at(index: Any, slot: int, k0: Any, k1: Any, payload: Any) -> None:
    """Add a key that `probe` has just not found, at the free slot it gave."""
    bucket = slot // BUCKET_SLOTS
    if index.counts[bucket] >= BUCKET_FULL:
        insert(index, k0, k1, payload)
        return
    index.counts[bucket] += 1
    index.head[ENTRIES] += 1
    index.slots[slot, 0] = k0
    index.slots[slot, 1] = k1
    index.slots[slot, 2] = payload


@njit(cache=True, _nrt=False)
def place(slots: Array, base: int, k0: Any, k1: Any, payload: Any) -> Any:
    """Write an entry into the first free slot of its bucket; return the slot."""
    slot = np.int64(k1 & _SLOT_MASK)
    while slots[base + slot, 0] != 0 or slots[base + slot, 1] != 0:
        slot = (slot + 1) & (BUCKET_SLOTS - 1)
    slots[base + slot, 0] = k0
    slots[base + slot, 1] = k1
    slots[base + slot, 2] = payload
    return base + slot


@njit(cache=True)
def _split(index: Any, k0: Any) -> None:
    """Split the bucket of `k0` by the first bit that its keys do not share."""
    head = index.head
    bucket = bucket_of(index, k0)
    depth = np.int64(index.depths[bucket])
    directory = index.directory
    if depth == head[DEPTH]:
        size = 1 << depth
        if size * 2 > len(directory) or depth >= 40:
            raise RuntimeError("index directory is full")
        for i in range(size - 1, -1, -1):
            directory[2 * i] = directory[2 * i + 1] = directory[i]
        head[DEPTH] += 1
    fresh = head[BUCKETS]
    if fresh >= head[BUCKETS_MAX]:
        raise RuntimeError("index is full")
    head[BUCKETS] += 1
    span = 1 << (head[DEPTH] - depth)
    first = (np.int64(k0 >> _U64(64 - head[DEPTH])) // span) * span
    for i in range(first + span // 2, first + span):
        directory[i] = fresh
    index.depths[bucket] = index.depths[fresh] = depth + 1
    slots = index.slots
    base, other = bucket * BUCKET_SLOTS, fresh * BUCKET_SLOTS
    held = index.scratch
    for i in range(BUCKET_SLOTS):
        for word in range(3):
            held[i, word] = slots[base + i, word]
            slots[base + i, word] = 0
    bit = _U64(63 - depth)
    moved = 0
    for i in range(BUCKET_SLOTS):
        a, b = held[i, 0], held[i, 1]
        if a == 0 and b == 0:
            continue
        if (a >> bit) & _U64(1):
            place(slots, other, a, b, held[i, 2])
            moved += 1
        else:
            place(slots, base, a, b, held[i, 2])
    index.counts[fresh] = moved
    index.counts[bucket] -= moved


@njit(cache=True)
def insert(index: Any, k0: Any, k1: Any, payload: Any) -> Any:
    """Add a key that is not there; return its slot.  (0, 0) is not a key."""
    bucket = bucket_of(index, k0)
    while index.counts[bucket] >= BUCKET_FULL:
        _split(index, k0)
        bucket = bucket_of(index, k0)
    index.counts[bucket] += 1
    index.head[ENTRIES] += 1
    return place(index.slots, bucket * BUCKET_SLOTS, k0, k1, payload)


@njit(cache=True)
def clear(index: Any) -> None:
    """Remove all entries; the buckets stay, so that filling it again does not split them."""
    used = index.head[BUCKETS]
    index.slots[: used * BUCKET_SLOTS] = 0
    index.counts[:used] = 0
    index.head[ENTRIES] = 0


def entries_free(index: Index) -> int:
    """Return how many more entries are certain to fit."""
    return int(index.head[BUCKETS_MAX]) * BUCKET_FULL // 2 - int(index.head[ENTRIES])
