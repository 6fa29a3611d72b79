"""Checkpoints: saved, merged, loaded, damaged, and interrupted at every call to the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meterd.actors.checkpoints import CURRENT, PREVIOUS, RUNS_PER_LEVEL, Checkpoints
from meterd.actors.direct_file import PIECE_SIZE
from meterd.core.state import DAY_NS, Saved
from meterd.protocol.errors import Corrupt, FsyncFailed

BEGINNING = -(2**63)


def identities(number: int, count: int = 3, day: int = 100) -> np.ndarray:
    """Identities that say which save they came with."""
    rows = [[number, (place & 0xFFFF) << 48 | number << 16 | day] for place in range(1, count + 1)]
    return np.array(rows, np.uint64).reshape(-1, 2)


def saved(number: int, horizon: int = BEGINNING, entries: np.ndarray | None = None) -> Saved:
    arrays = {"counters": np.full(8, number, np.int64), "text": np.zeros(number, np.uint8)}
    if entries is None:
        entries = identities(number)
    newest = int((entries[:, 1] & 0xFFFF).max()) * DAY_NS if len(entries) else BEGINNING
    state = {"number": number, "horizon": horizon, "newest_event": newest}
    return Saved(state, arrays, entries)


def save(checkpoints: Checkpoints, number: int, **kwargs: Any) -> None:
    checkpoints.save(saved(number, **kwargs), {"position": [number]})
    checkpoints.wait()


def load(directory: Path) -> tuple[int, list[int]]:
    """What a start finds: the number of the checkpoint, and of the saves whose ids it has."""
    checkpoints = Checkpoints(str(directory))
    found = checkpoints.load()
    if found is None:
        return 0, []
    state, arrays = found
    number = state["number"]
    assert state["position"] == [number]
    assert arrays["counters"].tolist() == [number] * 8
    assert len(arrays["text"]) == number
    entries = [entry for run in checkpoints.identities() for entry in run.tolist()]
    numbers = sorted({entry[0] for entry in entries})
    assert len(entries) == 3 * len(numbers)
    return number, numbers


def runs(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("ids-*.run")}


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert Checkpoints(str(tmp_path)).load() is None


def test_what_was_saved_is_loaded_and_only_needed_runs_stay(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    named: list[set[str]] = [set()]
    for number in range(1, RUNS_PER_LEVEL**2 + 3):
        save(checkpoints, number)
        assert load(tmp_path) == (number, list(range(1, number + 1)))
        named.append({name for name, *_ in checkpoints.saved["runs"]})
        assert runs(tmp_path) == named[-1] | named[-2]
        assert len(named[-1]) < 2 * RUNS_PER_LEVEL
    levels = [level for _, level, _ in checkpoints.saved["runs"]]
    assert levels == [2, 0, 0]


def test_a_start_goes_on_where_the_last_one_ended(tmp_path):
    for number in range(1, 20):
        checkpoints = Checkpoints(str(tmp_path))
        checkpoints.load()
        save(checkpoints, number)
    assert load(tmp_path) == (19, list(range(1, 20)))
    assert sorted(level for _, level, _ in checkpoints.saved["runs"]) == [0, 0, 0, 1, 1]


def test_a_save_without_new_identities_writes_no_run(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    save(checkpoints, 1)
    before = runs(tmp_path)
    save(checkpoints, 2, entries=identities(2, 0))
    assert runs(tmp_path) == before
    assert load(tmp_path) == (2, [1])


def test_merging_drops_what_has_expired_and_keeps_the_order(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    for number in range(1, RUNS_PER_LEVEL):
        save(checkpoints, number, entries=identities(number, day=number))
    number = RUNS_PER_LEVEL
    save(checkpoints, number, horizon=3 * DAY_NS, entries=identities(number, day=number))
    ((name, level, count),) = checkpoints.saved["runs"]
    assert (level, count) == (1, 3 * (RUNS_PER_LEVEL - 2))
    again = Checkpoints(str(tmp_path))
    again.load()
    entries = np.concatenate(list(again.identities()))
    wanted = [identities(n, day=n) for n in range(3, RUNS_PER_LEVEL + 1)]
    assert np.array_equal(entries, np.concatenate(wanted))
    assert (tmp_path / name).exists()


def test_a_merge_copies_runs_larger_than_a_piece(tmp_path):
    many = PIECE_SIZE // 16 + 5
    checkpoints = Checkpoints(str(tmp_path))
    for number in range(1, RUNS_PER_LEVEL + 1):
        save(checkpoints, number, entries=identities(number, many + number))
    again = Checkpoints(str(tmp_path))
    again.load()
    wanted = [identities(n, many + n) for n in range(1, RUNS_PER_LEVEL + 1)]
    assert np.array_equal(np.concatenate(list(again.identities())), np.concatenate(wanted))
    assert [run[1] for run in checkpoints.saved["runs"]] == [1]


@pytest.mark.parametrize("how", ["missing", "front", "section", "another"])
def test_a_run_that_does_not_check_is_not_merged(tmp_path, how):
    checkpoints = Checkpoints(str(tmp_path))
    for number in range(1, RUNS_PER_LEVEL):
        save(checkpoints, number)
    damaged = tmp_path / checkpoints.saved["runs"][2][0]
    if how == "missing":
        damaged.unlink()
    elif how == "another":
        checkpoints._write_run(3, identities(9, 1), 100)
    else:
        flip(damaged, 30 if how == "front" else damaged.stat().st_size - 64)
    with pytest.raises(Corrupt) as caught:
        save(checkpoints, RUNS_PER_LEVEL)
    assert caught.value.path == str(damaged)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    checkpoints = Checkpoints(str(tmp_path))
    for number in (1, 2, 3):
        save(checkpoints, number)
    flip(tmp_path / CURRENT, 100)
    assert load(tmp_path) == (2, [1, 2])
    assert "falling back" in caplog.text


@pytest.mark.parametrize("how", ["missing", "damaged", "another"])
def test_a_checkpoint_whose_run_is_not_what_it_was_falls_back(tmp_path, how):
    checkpoints = Checkpoints(str(tmp_path))
    for number in (1, 2, 3):
        save(checkpoints, number)
    newest = tmp_path / checkpoints.saved["runs"][-1][0]
    if how == "missing":
        newest.unlink()
    elif how == "damaged":
        flip(newest, newest.stat().st_size - 64)
    else:
        other = Checkpoints(str(tmp_path / ".."))
        run = other._write_run(999, identities(9, 1), 100)
        (tmp_path / ".." / run.name).replace(newest)
    assert load(tmp_path) == (2, [1, 2])


def test_both_damaged_is_corruption(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    for number in (1, 2):
        save(checkpoints, number)
    flip(tmp_path / CURRENT, 0)
    flip(tmp_path / PREVIOUS, 30)
    with pytest.raises(Corrupt) as caught:
        Checkpoints(str(tmp_path)).load()
    assert caught.value.path == str(tmp_path / PREVIOUS)


def test_every_damaged_byte_is_noticed(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    save(checkpoints, 5)
    save(checkpoints, 6)
    whole = (tmp_path / CURRENT).read_bytes()
    answers = set()
    for at in range(len(whole)):
        flip(tmp_path / CURRENT, at)
        answers.add(load(tmp_path)[0])
        (tmp_path / CURRENT).write_bytes(whole)
        if at % 64 == 63:
            (tmp_path / CURRENT).write_bytes(whole[:at])
            answers.add(load(tmp_path)[0])
            (tmp_path / CURRENT).write_bytes(whole)
    assert answers <= {5, 6}  # zeros between the sections carry nothing
    assert load(tmp_path) == (6, [5, 6])


def test_after_a_fall_back_the_whole_one_is_kept(tmp_path):
    """The damaged checkpoint must not take the place of the only one that is whole."""
    checkpoints = Checkpoints(str(tmp_path))
    for number in (1, 2, 3):
        save(checkpoints, number)
    flip(tmp_path / CURRENT, 100)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.load()
    save(checkpoints, 4)
    assert load(tmp_path) == (4, [1, 2, 4])
    flip(tmp_path / CURRENT, 100)
    assert load(tmp_path) == (2, [1, 2])


def test_the_previous_one_is_known_after_a_start(tmp_path):
    """Log files that only the previous checkpoint needs are not free to go."""
    checkpoints = Checkpoints(str(tmp_path))
    for number in (1, 2, 3):
        save(checkpoints, number)
    again = Checkpoints(str(tmp_path))
    again.load()
    assert (again.saved["number"], again.previous["number"]) == (3, 2)
    flip(tmp_path / PREVIOUS, 100)
    again = Checkpoints(str(tmp_path))
    again.load()
    assert (again.saved["number"], again.previous["number"]) == (3, 3)


class Stopped(BaseException):
    """The process ended here."""


CALLS = ("open", "pwrite", "preadv", "fsync", "rename", "replace", "link", "unlink")


class Countdown:
    """Lets the file system end the process, or fail, at the n-th call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.error: type[BaseException] = Stopped
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.left is not None:
                if self.left == 0:
                    raise self.error
                self.left -= 1
            return call(*args, **kwargs)

        return counted


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("error", [Stopped, OSError])
def test_a_save_that_ends_anywhere_leaves_a_checkpoint(tmp_path, monkeypatch, damaged, error):
    """Also the merge of runs, and a save after a fall back; then the next save works."""
    countdown = Countdown(monkeypatch)
    countdown.error = error
    last = RUNS_PER_LEVEL
    ended = 0
    for calls in range(1_000):
        directory = tmp_path / str(calls)
        directory.mkdir()
        checkpoints = Checkpoints(str(directory))
        for number in range(1, last):
            save(checkpoints, number)
        newest = last - 1
        if damaged:
            flip(directory / CURRENT, 100)
            checkpoints = Checkpoints(str(directory))
            checkpoints.load()
            newest = last - 2
        old = list(range(1, newest + 1))
        countdown.left = calls
        try:
            save(checkpoints, last)
        except (Stopped, OSError, FsyncFailed):
            ended += 1
        done = countdown.left > 0
        countdown.left = None
        found = load(directory)
        assert found in ((newest, old), (last, [*old, last]))
        again = Checkpoints(str(directory))
        again.load()
        save(again, last + 1, entries=identities(last + 1))
        assert load(directory) == (last + 1, [*found[1], last + 1])
        if done:
            assert found[0] == last
            break
    assert ended > 10
