"""One hash index for everything: keys to 48-bit payloads, growing bucket by bucket.

A key is the two words of a keyed 128-bit hash, so nobody who chooses what is hashed can steer keys
into one bucket.  An entry keeps 80 bits of it, beside its payload in 16 bytes, because the bytes
that an insert touches for the first time cost more than everything else it does:

  word 0   first word of the key; 0 marks a free slot, so a key's 0 is taken for 1
  word 1   upper 16 bits of the key's second word (the tag) | payload

Two keys are taken for one with probability 2^-80.

Extendible hashing (Fagin, Nievergelt, Pippenger, Strong 1979).  A directory indexed by the top
bits of a key's *place* names a bucket of 512 slots.  The low bits of a key say at which line of
the bucket to look first: 4 slots that share a cache line, taken from the first on, compared all at
once; when it is full the next one is tried.  A line that is not in the cache costs as much as all
the rest of a look-up, so callers `ask` for lines in time, a block of keys at once.

A bucket that fills is split in two and only its own entries move, so no insert ever pays for
rehashing the table.  Places crowd twice as much at one end as at the other (`_place`).  With even
places all buckets would fill at the same time, and a table that doubles would do so within a tenth
of its inserts.  So they fill one after another, and growth costs the same at any time (the idea of
spiral storage, Martin 1979).

An index is a tuple of arrays (`make_index`), reserved at their limits:
  slots      u64[buckets * 512, 2]   entries
  directory  u32[2 ** depth]         bucket of a prefix
  depths     u8[buckets]             how many top bits of their places all keys of it share
  counts     u16[buckets]            slots in use
  head       i64[4]                  directory depth, buckets, entries, bucket limit
  scratch    u64[512, 2]             a bucket whose entries are placed anew
Removing an entry fills its bucket anew, so it is for what is rare.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import prefetch
from meterd.core.kernels.memory import column_at, reserve, rows_at

Array = Any

LINE_SLOTS = 4
BUCKET_BITS = 9
BUCKET_SLOTS = 1 << BUCKET_BITS
# Splitting at 13/16: a free slot always ends a look-up, and few keys find their line full.  At 7/8
# an insert touches 9 % fewer bytes, but more lines: it costs a fifth more.
BUCKET_FULL = 416
# Places have 31 bits, so directories cannot be deeper.
DEPTH_MAX = 30
DEPTH, BUCKETS, ENTRIES, BUCKETS_MAX = 0, 1, 2, 3
MISSING = -1

_U64 = np.uint64
_HOME_MASK = np.uint64(BUCKET_SLOTS - LINE_SLOTS)
_TAG_UNIT = np.uint64(1 << 48)
PAYLOAD_MASK = np.uint64((1 << 48) - 1)
_TAG_MASK = ~PAYLOAD_MASK


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
    # No bucket is less than half as full as when it splits, but for those of a small table.
    while buckets * BUCKET_FULL // 2 < entries_max:
        buckets *= 2
    directory_size = buckets * 16  # unlucky prefixes are up to a few bits deeper than the average
    index = Index(
        reserve((buckets * BUCKET_SLOTS, 2), np.uint64, large_pages),
        reserve((directory_size,), np.uint32),
        reserve((buckets,), np.uint8),
        reserve((buckets,), np.uint16),
        np.array([1, 2, 0, buckets], np.int64),
        np.empty((BUCKET_SLOTS, 2), np.uint64),
    )
    index.directory[:2] = (0, 1)
    index.depths[:2] = 1
    return index


@njit(cache=True, forceinline=True, _nrt=False)
def index_at(handle: Array, place: int) -> Any:
    """Return a view of the index whose arrays begin at a place of a handle."""
    return Index(
        rows_at(handle, place, 2, np.uint64),
        column_at(handle, place + 1, np.uint32),
        column_at(handle, place + 2, np.uint8),
        column_at(handle, place + 3, np.uint16),
        column_at(handle, place + 4, np.int64),
        rows_at(handle, place + 5, 2, np.uint64),
    )


@njit(cache=True, forceinline=True, _nrt=False)
def _place(k0: Any) -> Any:
    """Return where a key lies among all: 64 bits, rising with k0, at most 3/4 of 2^64.

    With x = k0 / 2^64 it is (2x + x^2) / 4: twice as dense at its beginning as at its end.
    """
    x = k0 >> _U64(33)
    return x * (x + _U64(1 << 32))


@njit(cache=True, forceinline=True, _nrt=False)
def _word_0(k0: Any) -> Any:
    """Return the first word of a key's entry: never 0."""
    return k0 + _U64(k0 == _U64(0))


@njit(cache=True, forceinline=True, _nrt=False)
def _bucket_of(index: Any, k0: Any) -> Any:
    """Return the bucket in which a key lies."""
    return np.int64(index.directory[_place(k0) >> _U64(64 - index.head[DEPTH])])


@njit(cache=True, forceinline=True, _nrt=False)
def _home(word_0: Any) -> Any:
    """Return the first slot, within its bucket, of the line at which to look for a key first."""
    return np.int64(word_0 & _HOME_MASK)


@njit(cache=True, forceinline=True, _nrt=False)
def _used(slots: Array, line: int) -> Any:
    """Return how many slots of the line that begins at a slot are in use."""
    used = np.int64(0)
    for slot in range(line, line + LINE_SLOTS):
        used += np.int64(slots[slot, 0] != _U64(0))
    return used


@njit(cache=True, forceinline=True, _nrt=False)
def ask(index: Any, k0: Any) -> None:
    """Ask for the cache line at which a key will be looked for first."""
    prefetch(index.slots, _bucket_of(index, k0) * BUCKET_SLOTS + _home(k0))


@njit(cache=True, forceinline=True, _nrt=False)
def ask_next(index: Any, k0: Any) -> None:
    """Ask for the line behind the one that `ask` has brought if that is full."""
    base, home = _bucket_of(index, k0) * BUCKET_SLOTS, _home(k0)
    full = np.int64(index.slots[base + home + LINE_SLOTS - 1, 0] != _U64(0))
    prefetch(index.slots, base + ((home + full * LINE_SLOTS) & (BUCKET_SLOTS - 1)))


@njit(cache=True, forceinline=True, _nrt=False)
def probe(index: Any, k0: Any, k1: Any) -> Any:
    """Return (slot, True) of a key, or (the free slot where it would go, False)."""
    word_0 = _word_0(k0)
    base, home = _bucket_of(index, k0) * BUCKET_SLOTS, _home(word_0)
    slots = index.slots
    while True:
        line = base + home
        there = False
        for slot in range(line, line + LINE_SLOTS):
            there |= slots[slot, 0] == word_0
        if there:
            for slot in range(line, line + LINE_SLOTS):
                if slots[slot, 0] == word_0 and slots[slot, 1] ^ k1 < _TAG_UNIT:
                    return slot, True
        used = _used(slots, line)
        if used < LINE_SLOTS:
            return line + used, False
        home = (home + LINE_SLOTS) & (BUCKET_SLOTS - 1)


@njit(cache=True, forceinline=True, _nrt=False)
def find(index: Any, k0: Any, k1: Any) -> Any:
    """Return the slot of a key, or MISSING."""
    slot, known = probe(index, k0, k1)
    return slot if known else MISSING


@njit(cache=True, forceinline=True, _nrt=False)
def payload_at(index: Any, slot: int) -> Any:
    """Return the payload of the entry in a slot."""
    return index.slots[slot, 1] & PAYLOAD_MASK


@njit(cache=True, forceinline=True, _nrt=False)
def set_payload(index: Any, slot: int, payload: Any) -> None:
    """Give the entry in a slot another payload."""
    index.slots[slot, 1] = (index.slots[slot, 1] & _TAG_MASK) | payload


@njit(cache=True, forceinline=True, _nrt=False)
def _enter(slots: Array, base: int, word_0: Any, word_1: Any) -> Any:
    """Write an entry into the first free slot for it in the bucket at `base`; return the slot."""
    home = _home(word_0)
    used = _used(slots, base + home)
    while used == LINE_SLOTS:
        home = (home + LINE_SLOTS) & (BUCKET_SLOTS - 1)
        used = _used(slots, base + home)
    slot = base + home + used
    slots[slot, 0] = word_0
    slots[slot, 1] = word_1
    return slot


@njit(cache=True, forceinline=True, _nrt=False)
def _take_out(index: Any, bucket: int) -> None:
    """Move all entries of a bucket to the scratch, side by side."""
    slots, scratch = index.slots, index.scratch
    base = bucket * BUCKET_SLOTS
    held = np.int64(0)
    for slot in range(base, base + BUCKET_SLOTS):
        scratch[held, 0], scratch[held, 1] = slots[slot, 0], slots[slot, 1]
        held += np.int64(slots[slot, 0] != _U64(0))
        slots[slot, 0] = slots[slot, 1] = _U64(0)


@njit(cache=True, _nrt=False)
def _split(index: Any, k0: Any) -> None:
    """Split the bucket of `k0` by the first bit that its places do not share."""
    head = index.head
    bucket = _bucket_of(index, k0)
    depth = np.int64(index.depths[bucket])
    directory = index.directory
    if depth == head[DEPTH]:
        size = 1 << depth
        if size * 2 > len(directory) or depth >= DEPTH_MAX:
            raise RuntimeError("index directory is full")
        for i in range(size - 1, -1, -1):
            directory[2 * i] = directory[2 * i + 1] = directory[i]
        head[DEPTH] += 1
    fresh = head[BUCKETS]
    if fresh >= head[BUCKETS_MAX]:
        raise RuntimeError("index is full")
    head[BUCKETS] += 1
    span = 1 << (head[DEPTH] - depth)
    first = (np.int64(_place(k0) >> _U64(64 - head[DEPTH])) // span) * span
    for i in range(first + span // 2, first + span):
        directory[i] = fresh
    index.depths[bucket] = index.depths[fresh] = depth + 1
    slots, scratch, held = index.slots, index.scratch, np.int64(index.counts[bucket])
    base, other = bucket * BUCKET_SLOTS, fresh * BUCKET_SLOTS
    for line in range(0, BUCKET_SLOTS, LINE_SLOTS):
        prefetch(slots, base + line)
        prefetch(slots, other + line)
    _take_out(index, bucket)
    bit = _U64(63 - depth)
    moved = np.int64(0)
    for i in range(held):
        goes = np.int64((_place(scratch[i, 0]) >> bit) & _U64(1))
        _enter(slots, base + goes * (other - base), scratch[i, 0], scratch[i, 1])
        moved += goes
    index.counts[fresh] = moved
    index.counts[bucket] = held - moved


@njit(cache=True, _nrt=False)
def insert(index: Any, k0: Any, k1: Any, payload: Any) -> Any:
    """Add a key that is not there; return its slot."""
    bucket = _bucket_of(index, k0)
    while index.counts[bucket] >= BUCKET_FULL:
        _split(index, k0)
        bucket = _bucket_of(index, k0)
    index.counts[bucket] += 1
    index.head[ENTRIES] += 1
    return _enter(index.slots, bucket * BUCKET_SLOTS, _word_0(k0), (k1 & _TAG_MASK) | payload)


@njit(cache=True, forceinline=True, _nrt=False)
def insert_at(index: Any, slot: int, k0: Any, k1: Any, payload: Any) -> None:
    """Add a key that `probe` has just not found, at the free slot it gave."""
    bucket = slot >> BUCKET_BITS
    if index.counts[bucket] >= BUCKET_FULL:
        insert(index, k0, k1, payload)
        return
    index.counts[bucket] += 1
    index.head[ENTRIES] += 1
    index.slots[slot, 0] = _word_0(k0)
    index.slots[slot, 1] = (k1 & _TAG_MASK) | payload


@njit(cache=True, _nrt=False)
def remove(index: Any, k0: Any, k1: Any) -> None:
    """Remove a key; its bucket is filled anew, because a free slot ends a look-up."""
    slot = find(index, k0, k1)
    if slot == MISSING:
        return
    word_0, word_1 = index.slots[slot, 0], index.slots[slot, 1]
    bucket = slot >> BUCKET_BITS
    held = np.int64(index.counts[bucket])
    _take_out(index, bucket)
    for i in range(held):
        if index.scratch[i, 0] != word_0 or index.scratch[i, 1] != word_1:
            _enter(index.slots, bucket * BUCKET_SLOTS, index.scratch[i, 0], index.scratch[i, 1])
    index.counts[bucket] = held - 1
    index.head[ENTRIES] -= 1


@njit(cache=True, nogil=True, _nrt=False)
def clear(index: Any) -> None:
    """Remove all entries; the buckets stay, so that filling it again does not split them."""
    used = index.head[BUCKETS]
    for slot in range(used * BUCKET_SLOTS):
        index.slots[slot, 0] = index.slots[slot, 1] = _U64(0)
    for bucket in range(used):
        index.counts[bucket] = 0
    index.head[ENTRIES] = 0
