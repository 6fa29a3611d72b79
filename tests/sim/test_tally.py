"""What runs add up to: nothing is counted twice or lost, and medians are those of all seeds."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.sim.runner import Result
from tests.sim.tally import Book, Page, Tally, at_rank, two_digits

PAGE = Page("tests.some", ("crash", "pause"), ("write", "read"), ("crash",))
WORKERS, TURNS, PORTION = 3, 20, 7


def result_of(seed: int, failure: str = "") -> Result:
    """A seed that has crashed as many times as it says."""
    counts = Counter({"crash": seed, "write": 10})
    coverage = Counter({("crash", "write"): seed})
    return Result(seed, failure, 100 + seed, 0.5, 20_000, counts, coverage)


def tally_of(*seeds: int) -> Tally:
    tally = Tally(PAGE)
    for seed in seeds:
        tally.take(result_of(seed))
    return tally


def test_two_tallies_together_are_that_of_all_seeds() -> None:
    one, other = tally_of(1, 2, 9), tally_of(4)
    other.take(result_of(5, "I5: broken"))
    one.add(other)
    whole = tally_of(1, 2, 9, 4)
    whole.take(result_of(5, "I5: broken"))
    assert one.to_map() == whole.to_map()
    assert one.medians() == {"steps": 100, "healed_ms": 20, "crash": 4}
    assert one.failures == {5: "I5: broken"}
    assert set(one.empty_cells()) == {("crash", "read"), ("pause", "write"), ("pause", "read")}


def test_a_tally_is_read_as_it_was_written() -> None:
    kept = tally_of(3, 1, 400).to_map()
    assert Tally.from_map(PAGE, json.loads(json.dumps(kept))).to_map() == kept


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_a_median_is_right_to_two_digits(values: list[int]) -> None:
    spread = Counter(two_digits(value) for value in values)
    assert at_rank(spread, 1, 2) == two_digits(sorted(values)[len(values) // 2])


def run_some(path: Path) -> list[int]:
    """What one of several runs that go on at once does."""
    book = Book(path, PAGE)
    run, had = book.begin(["--seeds", "140"]), []
    for _ in range(TURNS):
        seeds = book.take_seeds(PORTION)
        book.add(run, tally_of(*seeds))
        had += seeds
    return had


def test_runs_at_once_never_have_the_same_seed(tmp_path: Path) -> None:
    path = tmp_path / "tally.json"
    with ProcessPoolExecutor(WORKERS) as pool:
        had = [seed for seeds in pool.map(run_some, [path] * WORKERS) for seed in seeds]
    count = WORKERS * TURNS * PORTION
    assert sorted(had) == list(range(1, count + 1))
    tally = Book(path, PAGE).tally()
    assert (tally.seeds, tally.counts["crash"]) == (count, sum(had))
    page = json.loads(path.read_text())["tests.some"]
    assert [run["seeds"] for run in page["runs"]] == [TURNS * PORTION] * WORKERS
    assert page["next"] == count + 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_later_run_goes_on_and_pages_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "tally.json"
    run_some(path)
    assert run_some(path)[0] == TURNS * PORTION + 1
    other = Book(path, PAGE._replace(program="tests.other"))
    assert list(other.take_seeds(2)) == [1, 2]
    assert Book(path, PAGE).tally().seeds == 2 * TURNS * PORTION
    assert other.tally().seeds == 0
