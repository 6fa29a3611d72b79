"""The hash index against a dict, through many splits, with keys that crowd together as well."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.kernels.apply import load_identities
from meterd.core.kernels.index import (
    BUCKET_FULL,
    BUCKET_SLOTS,
    BUCKETS,
    DEPTH,
    ENTRIES,
    LINE_SLOTS,
    MISSING,
    clear,
    find,
    insert,
    make_index,
    payload_at,
    set_payload,
)
from meterd.core.state.machine import DAY_NS

U64 = np.uint64
PAYLOAD = 2**48 - 1


def keys_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**64, (count, 2), np.uint64)


def words(a: int, b: int, payload: int) -> list[int]:
    """The entry of a key."""
    return [a or 1, b >> 48 << 48 | payload]


def place(a: int) -> int:
    """Where a key lies among all: see the kernel."""
    return (a >> 33) * ((a >> 33) + 2**32)


def check(index, wanted: dict[tuple[int, int], int]) -> None:
    """Everything is found, nothing else is there, and the counts are right."""
    for (a, b), payload in wanted.items():
        slot = find(index, U64(a), U64(b))
        assert slot != MISSING
        assert index.slots[slot].tolist() == words(a, b, payload)
        assert payload_at(index, slot) == payload
    assert index.head[ENTRIES] == len(wanted)
    used = int(index.head[BUCKETS])
    slots = index.slots[: used * BUCKET_SLOTS].reshape(used, BUCKET_SLOTS, 2)
    held = slots[:, :, 0] != 0
    assert held.sum(axis=1).tolist() == index.counts[:used].tolist()
    assert not index.slots[used * BUCKET_SLOTS :].any()
    # The slots of a line are taken from its first.
    lines = held.reshape(used, -1, LINE_SLOTS)
    assert not (lines[:, :, 1:] & ~lines[:, :, :-1]).any()
    # Every prefix leads to a bucket all of whose keys have that prefix.
    depth = int(index.head[DEPTH])
    directory = index.directory[: 1 << depth]
    assert set(directory.tolist()) == set(range(used))
    for bucket in range(used):
        prefixes = np.flatnonzero(directory == bucket)
        assert len(prefixes) == 1 << (depth - int(index.depths[bucket]))
        found = {place(a) >> (64 - depth) for a in slots[bucket, held[bucket], 0].tolist()}
        assert found <= set(prefixes.tolist())


def test_an_index_grows_through_many_splits():
    index = make_index(60_000)
    wanted = {}
    for number, (a, b) in enumerate(keys_of(1, 60_000).tolist()):
        assert find(index, U64(a), U64(b)) == MISSING
        insert(index, U64(a), U64(b), U64(number))
        wanted[a, b] = number
    assert index.head[DEPTH] >= 7
    check(index, wanted)
    for number, key in enumerate(list(wanted)[::7]):
        set_payload(index, find(index, U64(key[0]), U64(key[1])), U64(number))
        wanted[key] = number
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
    st.sampled_from([0, LINE_SLOTS, BUCKET_SLOTS - 1]),
    st.lists(st.integers(1, 900), min_size=1, max_size=4),
)
def test_keys_that_crowd_together(seed, shared_bits, slot_bits, sizes):
    """Keys that share their first bits split one bucket again and again; lines wrap around."""
    index = make_index(20_000)
    wanted: dict[tuple[int, int], int] = {}
    for size in sizes:
        for a, b in keys_of(seed, sum(sizes))[len(wanted) : len(wanted) + size].tolist():
            a = (a >> shared_bits) // BUCKET_SLOTS * BUCKET_SLOTS + slot_bits
            payload = (a ^ b) >> 16
            insert(index, U64(a), U64(b), U64(payload))
            wanted[a, b] = payload
        check(index, wanted)


@pytest.mark.parametrize("key", [(0, 5), (5, 0), (2**64 - 1, 2**64 - 1), (2**63, 0)])
def test_keys_at_the_edges(key):
    index = make_index(100)
    insert(index, U64(key[0]), U64(key[1]), U64(0))
    check(index, {key: 0})


def test_keys_are_told_apart_by_their_tags():
    index = make_index(100)
    wanted = {(5, tag << 48): tag for tag in range(20)}
    for (a, b), payload in wanted.items():
        assert find(index, U64(a), U64(b)) == MISSING
        insert(index, U64(a), U64(b), U64(payload))
    check(index, wanted)
    assert find(index, U64(5), U64(19 << 48 | 7)) != MISSING  # the rest of the word is not kept


def test_a_table_grows_evenly():
    """Splits come at any time; with even places most of them would come at once."""
    index = make_index(200_000)
    buckets = []
    for number, (a, b) in enumerate(keys_of(3, 160_000).tolist()):
        insert(index, U64(a), U64(b), U64(0))
        if number % 8_000 == 0:
            buckets.append(int(index.head[BUCKETS]))
    splits = np.diff(buckets[10:])
    assert splits.max() < 3 * splits.min()


def test_an_index_holds_what_it_promises_and_stops_before_it_writes_outside():
    index = make_index(1_000)
    promised = 1_000
    keys = keys_of(2, 20_000).tolist()
    for a, b in keys[:promised]:
        insert(index, U64(a), U64(b), U64(1))
    with pytest.raises(RuntimeError, match="full"):
        for a, b in keys[promised:]:
            insert(index, U64(a), U64(b), U64(1))
    assert index.counts.max() <= BUCKET_FULL


def identities(seed: int, count: int) -> np.ndarray:
    """Entries with days 0 to 9."""
    rows = keys_of(seed, count)
    number = np.arange(count, dtype=np.uint64)
    rows[:, 1] = rows[:, 1] >> U64(48) << U64(48) | number << U64(16) | number % U64(10)
    return rows


def payloads(entries: np.ndarray) -> dict[tuple[int, int], int]:
    """The last payload of each key."""
    return {(a, b >> 48 << 48): b & PAYLOAD for a, b in entries.tolist()}


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 3_000), st.integers(-2, 12))
def test_saved_identities_are_entered_unless_expired_and_the_last_one_counts(seed, count, day):
    entries = identities(seed, count)
    again = entries[::3].copy()
    again[:, 1] += U64(1 << 40)
    rows = np.concatenate([entries, again])
    index = make_index(20_000)
    load_identities(index, rows, day * DAY_NS)
    living = (rows[:, 1] & U64(0xFFFF)).astype(np.int64) >= day
    check(index, payloads(rows[living]))
