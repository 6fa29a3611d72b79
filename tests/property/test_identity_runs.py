"""Runs of identities against a dictionary: what is found, what a merge keeps, and their files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.keeping.run_files import open_run, write_run
from meterd.core.kernels import runs as kernels
from meterd.core.state import identity_runs
from meterd.core.state.identity_runs import (
    BLOCK_LINES,
    Run,
    handle_of_runs,
    memory_source,
    merge_source,
)
from meterd.protocol.errors import Corrupt
from tests.support.identities import entries_of, merge_of, run_of

U64 = np.uint64
PAYLOAD = (1 << 48) - 1
# Enough for several blocks of lines, and two spans of them.
MANY = BLOCK_LINES * kernels.SLOTS_USED * 3


@pytest.fixture(autouse=True, scope="module")
def short_spans():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity_runs, "SPAN_BLOCKS", 2)
        yield


def entries(seed: int, count: int, days: int = 10) -> np.ndarray:
    """Identities with uniform keys and days from 20,000 on."""
    rows = np.random.default_rng(seed).integers(0, 2**64, (count, 2), np.uint64)
    rows[:, 1] = rows[:, 1] >> U64(16) << U64(16) | U64(20_000) + rows[:, 1] % U64(days)
    return rows


def found(runs: list[Run], keys: np.ndarray, horizon_day: int = 0) -> list[int | None]:
    """The payload of each key (word 1 with anything below the tag), or None."""
    hashes = np.zeros((len(keys), 4), np.uint64)
    hashes[:, 2:] = keys
    known, matches = np.zeros(len(keys), np.uint64), np.zeros(len(keys), np.int64)
    kernels.find_in_runs(
        handle_of_runs(runs), hashes, np.arange(len(keys)), horizon_day, known, matches
    )
    return [int(word) & PAYLOAD if word else None for word in known.tolist()]


def payloads(rows: np.ndarray) -> list[int]:
    return [int(word) & PAYLOAD for word in rows[:, 1].tolist()]


def by_key(rows: np.ndarray) -> dict[tuple[int, int], int]:
    return {(a, b >> 48): b & PAYLOAD for a, b in rows.tolist()}


COUNTS = st.sampled_from([1, 2, 3, 31, 32, 500, 3_000, MANY])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), COUNTS, st.sampled_from([1, 10, 255, 256, 257, 5_000]))
def test_a_run_finds_what_it_holds_and_nothing_else(seed, count, days):
    rows = entries(seed, count, days)
    run = run_of(rows)
    assert int(run.facts[kernels.COUNT]) == count
    sorted_rows = entries_of(run)
    assert (sorted_rows[:-1, 0] <= sorted_rows[1:, 0]).all()
    assert by_key(sorted_rows) == by_key(rows)
    some = rows[:2_000]
    assert found([run], some) == payloads(some)
    other = entries(seed + 1, 2_000)
    assert found([run], other) == [None] * 2_000
    # The same first word under another tag, the same tag under a neighbouring first word.
    flipped, beside = some.copy(), some.copy()
    flipped[:, 1] ^= U64(1 << 63)
    beside[:, 0] ^= U64(1 << 40)
    assert found([run], flipped) == found([run], beside) == [None] * len(some)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.lists(COUNTS, min_size=1, max_size=9), st.integers(-1, 11))
def test_a_merge_keeps_what_has_not_expired(seed, counts, day):
    parts = [entries(seed + number, count) for number, count in enumerate(counts)]
    runs = [run_of(part) for part in parts]
    horizon_day = 20_000 + day
    merged = merge_of(runs, horizon_day)
    rows = np.concatenate(parts)
    living = rows[(rows[:, 1] & U64(0xFFFF)) >= horizon_day]
    assert by_key(entries_of(merged)) == by_key(living)
    some = rows[:: len(rows) // 1_000 + 1]
    wanted = [
        payload if (int(word) & 0xFFFF) >= horizon_day else None
        for payload, word in zip(payloads(some), some[:, 1].tolist(), strict=True)
    ]
    assert found(runs, some, horizon_day) == wanted
    assert found([merged], some) == wanted


def test_an_identity_that_came_again_after_it_had_expired_is_found():
    rows = entries(1, 2_000)
    again = rows.copy()
    again[:, 1] += U64(100)
    horizon_day = 20_050
    for runs in ([run_of(rows), run_of(again)], [run_of(np.concatenate([again, rows]))]):
        assert found(runs, rows, horizon_day) == payloads(again)


def test_the_extremes_of_keys_are_found():
    rows = np.array([[0, 0], [2**64 - 1, 2**64 - 1], [1, 5], [2**63, 7 << 48]], np.uint64)
    run = run_of(rows)
    assert found([run], rows) == payloads(rows)
    assert by_key(entries_of(run)) == by_key(rows)


def test_many_entries_of_one_line_go_on_in_the_next():
    """Fuller than chance ever makes one: what is behind must be found all the same."""
    rows = entries(3, 6_000)
    rows[:150, 0] = U64(1 << 63) + rows[:150, 0] % U64(1 << 50)
    run = run_of(rows)
    assert (np.diff(np.flatnonzero(run.lines.reshape(-1, 32)[:, 31] == 31)) == 1).any()
    assert found([run], rows) == payloads(rows)
    assert by_key(entries_of(run)) == by_key(rows)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), COUNTS)
def test_a_file_gives_back_the_run(tmp_path_factory, seed, count):
    path = tmp_path_factory.mktemp("runs") / "ids-000000000001.run"
    rows = entries(seed, count)
    facts = identity_runs.facts_of_entries(rows)
    assert write_run(path, facts, memory_source(rows, facts, np.empty_like(rows))) == count
    run, wanted = open_run(path, check=True), run_of(rows)
    for array, other in zip(run, wanted, strict=True):
        assert np.array_equal(array, other)
    assert found([run], rows[:100]) == payloads(rows[:100])


def test_a_merge_of_which_nothing_is_left_makes_no_file(tmp_path):
    runs = [run_of(entries(n, 100)) for n in range(3)]
    facts = identity_runs.facts_of_merge(runs, 30_000)
    assert write_run(tmp_path / "r", facts, merge_source(runs, 30_000)) == 0
    assert list(tmp_path.iterdir()) == []


def test_every_damaged_bit_of_a_file_is_noticed(tmp_path):
    path = tmp_path / "r"
    rows = entries(5, 300)
    facts = identity_runs.facts_of_entries(rows)
    write_run(path, facts, memory_source(rows, facts, np.empty_like(rows)))
    whole, run = path.read_bytes(), open_run(path, check=True)
    used = [slice(0, 4096)]
    at = 4096
    for array in (run.lines, run.starts, run.entries):
        used.append(slice(at, at + array.nbytes))
        at += -(-array.nbytes // 4096) * 4096
    for part in used:
        for place in range(part.start, part.stop, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            with pytest.raises(Corrupt):
                open_run(path, check=True)
    for size in (0, 100, 4096, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(Corrupt):
            open_run(path, check=False)
