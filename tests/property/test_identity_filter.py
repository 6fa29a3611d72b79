"""The filter of all identities never denies one, whatever is flushed, merged or swept meanwhile."""

from __future__ import annotations

import mmap
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.keeping.filter_lane import FilterLane
from meterd.core.kernels import bloom as kernels
from meterd.core.kernels.bloom import STEP_LINES
from meterd.core.kernels.index import clear
from meterd.core.kernels.tables import Capacity
from meterd.core.state import identity_filter
from meterd.core.state.identity_filter import FULL_KEYS, NEW_KEYS, IdentityFilter
from meterd.core.state.identity_runs import Entries, Run
from meterd.core.state.machine import StateMachine
from tests.support.identities import merge_of, run_of

U64 = np.uint64
DAY = 20_000
ROWS = 256
# So many lines take four turns.
LINES = 4 * STEP_LINES
EXTREMES = np.array([[0, 0], [2**64 - 1, 2**64 - 1], [2**63, 7 << 48]], U64)


def entries(seed: int, count: int) -> Entries:
    """Identities with uniform keys and days from 20,000 on."""
    rows = np.random.default_rng(seed).integers(0, 2**64, (count, 2), U64)
    rows[:, 1] = rows[:, 1] >> U64(16) << U64(16) | U64(DAY) + rows[:, 1] % U64(10)
    rows[: len(EXTREMES), 0] = EXTREMES[:count, 0]
    return rows


def perhaps(filter: IdentityFilter, keys: Entries) -> int:
    """How many of the keys may be held."""
    found = 0
    for at in range(0, len(keys), ROWS):
        some = keys[at : at + ROWS]
        hashes, out = np.zeros((len(some), 4), U64), np.zeros(len(some), np.int64)
        hashes[:, 2:] = some
        kernels.ask_filter(tuple(filter.arrays), hashes, len(some))
        found += int(kernels.candidates(tuple(filter.arrays), hashes, len(some), out))
    return found


def swept(lines: int, runs: list[Run], count: int) -> IdentityFilter:
    """A filter of runs, made at once."""
    filter = IdentityFilter(lines, turn_keys=50_000)
    filter.begin(count)
    while filter.sweeping:
        filter.fill(runs, None, 0)
        filter.move_edge()
    return filter


STEPS = st.lists(
    st.sampled_from(["flush", "flushed", "sweep", "turn", "turn", "turn", "merge", "expire"]),
    min_size=5,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), STEPS)
def test_what_is_in_runs_or_on_its_way_there_is_never_denied(seed, steps):
    filter = IdentityFilter(LINES, turn_keys=0)
    runs: list[Run] = []
    held, flushing, horizon_day = np.zeros((0, 2), U64), None, DAY
    for number, step in enumerate(steps):
        if step == "flush" and flushing is None:
            flushing = entries(seed + number, 3_000)
            filter.add(flushing)
        elif step == "flushed" and flushing is not None:
            runs, held = [*runs, run_of(flushing)], np.concatenate([held, flushing])
            flushing = None
        elif step == "sweep" and not filter.sweeping:
            filter.begin(len(held) + 1)
        elif step == "turn" and filter.sweeping:
            filter.fill(runs, flushing, horizon_day)
            filter.move_edge()
        elif step == "merge" and runs:
            runs = [merge_of(runs, horizon_day)]
        elif step == "expire":
            horizon_day += 1
        held = held[(held[:, 1] & U64(0xFFFF)) >= horizon_day]
        assert perhaps(filter, held) == len(held)
        if flushing is not None:
            assert perhaps(filter, flushing) == len(flushing)


@pytest.mark.parametrize(("keys", "share"), [(NEW_KEYS, 0.005), (FULL_KEYS, 0.02)])
def test_few_others_are_let_through(keys, share):
    lines, others = 4_096, entries(2, 50_000)
    rows = entries(1, lines * keys)
    filter = swept(lines, [run_of(part) for part in np.array_split(rows, 3)], 1)
    assert perhaps(filter, rows) == len(rows)
    assert perhaps(filter, others) <= share * len(others)
    assert not filter.is_full(lines * FULL_KEYS)
    assert filter.is_full(lines * FULL_KEYS + 1)


def test_it_is_made_large_enough():
    filter = IdentityFilter(1)
    assert not filter.is_full(0) and filter.is_full(1)
    assert perhaps(filter, entries(1, 100)) == 100
    filter.begin(100_000)
    assert not filter.is_full(100_000)
    assert filter.arrays.words.nbytes <= 2 * 100_000


def test_many_more_than_it_was_begun_for(monkeypatch):
    """They come while it is swept: it is full at once, and right."""
    monkeypatch.setattr(identity_filter, "ROOM", 1)
    rows = entries(1, 50_000)
    filter = swept(1, [run_of(rows)], 1)
    assert perhaps(filter, rows) == len(rows)
    assert filter.is_full(len(rows))


def test_a_second_sweep_gives_the_first_ones_memory_back_as_it_goes():
    rows = entries(1, 200_000)
    runs = [run_of(rows)]
    filter = swept(1, runs, len(rows))
    older = filter.arrays.words
    filter.begin(3 * len(rows))
    assert perhaps(filter, rows) == len(rows)
    edges = []
    while filter.sweeping:
        filter.fill(runs, None, 0)
        filter.move_edge()
        assert perhaps(filter, rows) == len(rows)
        edges.append(int(filter.arrays.facts[kernels.EDGE]))
        if filter.sweeping:
            size = older.nbytes * edges[-1] // (len(filter.arrays.words) // 8) & -mmap.PAGESIZE
            assert not older[: size // 8].any() and older[size // 8 + 512 :].any()
    assert len(edges) > 5
    assert len(filter.arrays.older) == 0


def lane_of(runs: list[Run]) -> tuple[StateMachine, FilterLane]:
    state = StateMachine((1, 2), Capacity(100_000, 10, 10, 10, 10))
    state.use_runs(runs)
    return state, FilterLane(state, LINES)


def test_the_lane_fills_it_and_waits_for_what_is_flushed():
    rows = entries(1, 20_000)
    state, lane = lane_of([run_of(rows)])
    lane.settle(lambda: None)
    state.restore_identities(entries(2, 5_000))
    flushing = state.begin_flush()
    lane.begin_flush(flushing)
    assert not lane.has_flushing
    lane.step(wait=True)
    assert lane.has_flushing
    state.use_runs([*state.runs, run_of(flushing)])
    clear(state.end_flush())
    lane.end_flush()
    lane.finish()
    filter = lane._filter
    assert not filter.sweeping
    assert perhaps(filter, rows) == len(rows) and perhaps(filter, entries(2, 5_000)) == 5_000


def test_the_lane_lets_nobody_have_the_memory_that_a_turn_reads(monkeypatch):
    """A flush that ends while a turn reads its entries: the next flush would write over them."""
    rows, may_go_on = entries(1, 5_000), threading.Event()
    state, lane = lane_of([])
    fill = lane._filter.fill

    def slow(*args: Any) -> None:
        may_go_on.wait(30)
        fill(*args)

    monkeypatch.setattr(lane._filter, "fill", slow)
    state.restore_identities(rows)
    flushing = state.begin_flush()
    lane.begin_flush(flushing)
    lane.step(wait=True)  # they are added, and a turn of the first sweep begins
    assert lane.has_flushing and not lane.may_begin_flush
    state.use_runs([run_of(flushing)])
    clear(state.end_flush())
    lane.end_flush()
    assert not lane.may_begin_flush
    may_go_on.set()
    lane.settle(lambda: None)
    assert lane.may_begin_flush
    assert perhaps(lane._filter, rows) == len(rows)
