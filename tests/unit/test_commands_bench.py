"""The load generator's arithmetic: percentiles, and bodies that are new events each time."""

import time

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.commands.bench_client import RANDOM_SIZE, Body, Load, Random, SharedRun
from meterd.commands.bench_report import BUCKETS, bucket_of, duration_of, percentile_us


@given(st.integers(0, 2**62))
def test_a_bucket_is_right_to_one_part_in_64(nanoseconds):
    bucket = bucket_of(nanoseconds)
    assert 0 <= bucket < BUCKETS
    assert abs(duration_of(bucket) - nanoseconds) <= nanoseconds / 64 + 0.5


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_sorted_times(times):
    counts = [0] * BUCKETS
    for nanoseconds in times:
        counts[bucket_of(nanoseconds)] += 1
    for fraction in (0.5, 0.99, 0.999):
        rank = max(1, -(-len(times) * int(fraction * 1000) // 1000))
        exact = sorted(times)[rank - 1] / 1000
        assert percentile_us(counts, fraction) == pytest.approx(exact, rel=0.02, abs=0.11)


def test_without_a_request_there_is_no_percentile():
    assert percentile_us([0] * BUCKETS, 0.5) is None


def make_load(**changes):
    shape = {"batch": 7, "clients": 2, "in_flight": 3, "accounts": 5, "metrics": 2}
    shape |= {"durability": "sync", "events_per_account": 3, "rate": 0.0, "timeout": 1.0} | changes
    return Load(nodes=("127.0.0.1:1",), **shape)


@given(st.integers(1, 300), st.integers(1, 10), st.integers(1, 50), st.integers(0, 2**32))
def test_a_body_holds_the_events_it_says_and_patching_changes_nothing_else(
    batch, run_length, accounts, seed
):
    load = make_load(batch=batch, accounts=accounts, events_per_account=run_length)
    body = Body(load, np.random.default_rng(seed))
    before = msgpack.unpackb(body.bytes)
    random, began, ids = Random(np.random.default_rng(seed)), time.time_ns(), set()
    for _ in range(RANDOM_SIZE // (16 * batch) + 2):
        body.refresh(random)
        after = msgpack.unpackb(body.bytes)
        made = after["id"]["uuid"]
        ids |= {made[at : at + 16] for at in range(0, len(made), 16)}
        assert len(made) == 16 * batch
        stamps = np.frombuffer(after["timestamp"], "<i8")
        assert len(stamps) == batch and began <= stamps.min() <= stamps.max() <= time.time_ns()
    assert len(ids) == (RANDOM_SIZE // (16 * batch) + 2) * batch
    unchanged = before.keys() - {"id", "timestamp"}
    assert {key: before[key] for key in unchanged} == {key: after[key] for key in unchanged}
    text, offsets = after["account"]["text"], np.frombuffer(after["account"]["offsets"], "<u4")
    names = [text[offsets[i] : offsets[i + 1]].decode() for i in range(batch)]
    metric = np.frombuffer(after["metric"]["index"], "<u2")
    for row, pair in enumerate(body.pairs.tolist()):
        assert names[row] == load.account(pair // load.metrics)
        assert metric[row] == pair % load.metrics
        assert names[row] == names[row - row % run_length]
    assert np.frombuffer(after["value"], "<i8").tolist() == body.values.tolist()


def test_what_one_client_writes_the_parent_reads():
    shared = SharedRun(make_load())
    shared.counts[1, 0] = 40
    shared.counts[0, 0] = 2
    shared.stored[1] = 9
    assert shared.total("requests") == 42
    assert int(shared.counts.sum()) == 42 and int(shared.latency.sum()) == 0
    assert shared.stored.sum() == 9 * 10 and not shared.undecided.any()
