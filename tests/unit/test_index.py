"""The hash index against a dict, through many splits, with keys that crowd together as well."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.kernels.apply import load_identities, purge
from meterd.core.kernels.index import (
    BUCKET_FULL,
    BUCKET_SLOTS,
    BUCKETS,
    DEPTH,
    ENTRIES,
    MISSING,
    clear,
    entries_free,
    find,
    insert,
    make_index,
)
from meterd.core.state import DAY_NS

U64 = np.uint64


def keys_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**64, (count, 2), np.uint64)


def check(index, wanted: dict[tuple[int, int], int]) -> None:
    """Everything is found, nothing else is there, and the counts are right."""
    for (a, b), payload in wanted.items():
        slot = find(index, U64(a), U64(b))
        assert slot != MISSING
        assert index.slots[slot].tolist() == [a, b, payload]
    assert index.head[ENTRIES] == len(wanted)
    used = int(index.head[BUCKETS])
    slots = index.slots[: used * BUCKET_SLOTS].reshape(used, BUCKET_SLOTS, 3)
    held = (slots[:, :, 0] != 0) | (slots[:, :, 1] != 0)
    assert held.sum(axis=1).tolist() == index.counts[:used].tolist()
    assert not index.slots[used * BUCKET_SLOTS :].any()
    # Every prefix leads to a bucket all of whose keys have that prefix.
    depth = int(index.head[DEPTH])
    directory = index.directory[: 1 << depth]
    assert set(directory.tolist()) == set(range(used))
    for bucket in range(used):
        prefixes = np.flatnonzero(directory == bucket)
        assert len(prefixes) == 1 << (depth - int(index.depths[bucket]))
        found = slots[bucket, held[bucket], 0] >> U64(64 - depth)
        assert set(found.tolist()) <= set(prefixes.tolist())


def test_an_index_grows_through_many_splits():
    index = make_index(60_000)
    wanted = {}
    for number, (a, b) in enumerate(keys_of(1, 60_000).tolist()):
        assert find(index, U64(a), U64(b)) == MISSING
        insert(index, U64(a), U64(b), U64(number))
        wanted[a, b] = number
    assert index.head[DEPTH] >= 7
    check(index, wanted)
    for place, key in enumerate(list(wanted)[::7]):
        index.slots[find(index, U64(key[0]), U64(key[1])), 2] = place
        wanted[key] = place
    check(index, wanted)
    clear(index)
    check(index, {})
    for key, payload in list(wanted.items())[:5_000]:
        insert(index, U64(key[0]), U64(key[1]), U64(payload))
    check(index, dict(list(wanted.items())[:5_000]))


@settings(max_examples=30)
@given(
    st.integers(0, 2**32),
    st.integers(0, 7),
    st.sampled_from([0, 1, BUCKET_SLOTS - 1]),
    st.lists(st.integers(1, 900), min_size=1, max_size=4),
)
def test_keys_that_crowd_together(seed, shared_bits, slot_bits, sizes):
    """Keys that share their first bits split one bucket again and again; slots wrap around."""
    index = make_index(20_000)
    wanted: dict[tuple[int, int], int] = {}
    for size in sizes:
        for a, b in keys_of(seed, sum(sizes))[len(wanted) : len(wanted) + size].tolist():
            a >>= shared_bits
            b = b // BUCKET_SLOTS * BUCKET_SLOTS + slot_bits
            insert(index, U64(a), U64(b), U64(a ^ b))
            wanted[a, b] = a ^ b
        check(index, wanted)


@pytest.mark.parametrize("key", [(0, 5), (5, 0), (2**64 - 1, 2**64 - 1), (2**63, 0)])
def test_keys_at_the_edges(key):
    index = make_index(100)
    insert(index, U64(key[0]), U64(key[1]), U64(0))
    check(index, {key: 0})


def test_an_index_holds_what_it_promises_and_stops_before_it_writes_outside():
    index = make_index(1_000)
    promised = entries_free(index)
    assert promised >= 1_000
    keys = keys_of(2, 20_000).tolist()
    for a, b in keys[:promised]:
        insert(index, U64(a), U64(b), U64(1))
    assert entries_free(index) == 0
    with pytest.raises(RuntimeError, match="full"):
        for a, b in keys[promised:]:
            insert(index, U64(a), U64(b), U64(1))
    assert index.counts.max() <= BUCKET_FULL


def identities(seed: int, count: int) -> np.ndarray:
    """Entries with days 0 to 9."""
    rows = np.empty((count, 3), np.uint64)
    rows[:, :2] = keys_of(seed, count)
    rows[:, 2] = np.arange(count, dtype=np.uint64) << U64(16) | np.arange(
        count, dtype=np.uint64
    ) % U64(10)
    return rows


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 3_000), st.integers(-2, 12), st.integers(1, 7))
def test_purging_in_turns_frees_what_is_older_and_nothing_else(seed, count, day, step):
    index = make_index(20_000)
    entries = identities(seed, count)
    for a, b, payload in entries.tolist():
        insert(index, U64(a), U64(b), U64(payload))
    horizon = day * DAY_NS
    freed, first = 0, 0
    while first < index.head[BUCKETS]:
        last = min(first + step, int(index.head[BUCKETS]))
        freed += purge(index, first, last, horizon)
        first = last
    kept = {(a, b): p for a, b, p in entries.tolist() if p & 0xFFFF >= day}
    assert freed == count - len(kept)
    check(index, kept)
    for a, b, payload in entries.tolist():
        if (a, b) not in kept:
            insert(index, U64(a), U64(b), U64(payload))
    check(index, {(a, b): p for a, b, p in entries.tolist()})


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 3_000), st.integers(-2, 12))
def test_saved_identities_are_entered_unless_expired_and_the_last_one_counts(seed, count, day):
    entries = identities(seed, count)
    again = entries[::3].copy()
    again[:, 2] += U64(1 << 40)
    rows = np.concatenate([entries, again])
    rows.flags.writeable = False
    index = make_index(20_000)
    load_identities(index, rows, day * DAY_NS)
    check(index, {(a, b): p for a, b, p in rows.tolist() if p & 0xFFFF >= day})
