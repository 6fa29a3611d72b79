"""The table of a campaign of faults: ended and gone on with, run again, shared."""

from contextlib import nullcontext
from pathlib import Path

from bench.fault_table import REAL, SIMULATED, TOO_SLOW, VIOLATION, VIOLATIONS_MAX, Table


def run(table: Table, seeds: range, wrong: dict[int, str], kind: str = "torn write") -> list[int]:
    """Run seeds, some of which go wrong; return which were run."""
    ran = []

    def one(seed: int) -> str:
        ran.append(seed)
        if seed in wrong:
            raise AssertionError(wrong[seed])
        return "right"

    table.run(kind, SIMULATED, seeds, lambda: nullcontext(one))
    return ran


def test_it_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    assert run(Table(path), range(3), {}) == [0, 1, 2]
    assert run(Table(path), range(5), {}) == [3, 4]
    assert Table(path).document()["runs"] == 5
    assert Table(path).is_done("torn write", SIMULATED, range(5))
    assert not Table(path).is_done("torn write", REAL, range(5))


def test_what_goes_wrong_is_told_and_may_be_run_again(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    table = Table(path)
    wrong = {1: "a wrong answer", 2: "not within 60 s: it serves\nand more"}
    assert run(table, range(4), wrong) == [0, 1, 2, 3]
    (row,) = table.document()["rows"]
    assert row["outcomes"] == {"right": 2, VIOLATION: 1, TOO_SLOW: 1}
    assert table.violations == ["torn write, simulated: AssertionError: a wrong answer"]
    assert run(Table(path), range(4), {}) == []
    again = Table(path, again=True)
    assert run(again, range(5), {1: "wrong again"}) == [1, 2, 4]
    (row,) = again.document()["rows"]
    assert row["outcomes"] == {"right": 4, VIOLATION: 1}
    assert list(row["open"]) == ["1"]


def test_many_violations_end_a_kind() -> None:
    wrong = dict.fromkeys(range(100), "a wrong answer")
    assert len(run(Table(), range(100), wrong)) == VIOLATIONS_MAX


def test_no_run_begins_when_the_time_is_over(tmp_path: Path) -> None:
    assert run(Table(tmp_path / "progress", until=0.0), range(3), {}) == []


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    one, other = Table(path), Table(path)
    run(one, range(2), {}, "torn write")
    run(other, range(3), {}, "full disk")
    run(one, range(4), {}, "no inodes")
    document = Table(path).document()
    assert document["runs"] == 9
    assert [row["kind"] for row in document["rows"]] == ["full disk", "no inodes", "torn write"]
