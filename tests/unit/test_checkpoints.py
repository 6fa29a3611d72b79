"""Checkpoints and identities: saved, flushed, merged, loaded, damaged, and interrupted anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meterd.actors.keeping.checkpoints import CURRENT, PREVIOUS, Checkpoints
from meterd.actors.keeping.identity_store import PARTS_MAX, RUNS_PER_LEVEL, IdentityStore
from meterd.core.kernels.bloom import candidates
from meterd.core.kernels.tables import Capacity
from meterd.core.state.machine import DAY_NS, StateMachine
from meterd.protocol.errors import Corrupt, FsyncFailed
from meterd.protocol.log_format import META_GROUP
from tests.support.identities import entries_of

CAPACITY = Capacity(20_000, 1_000, 1_000, 1_000, 1_000)
BATCH = 3
NEVER = 1_000_000


def identities(number: int, count: int = BATCH, day: int = 100) -> np.ndarray:
    """Identities that say which batch they came with."""
    rows = np.random.default_rng(number).integers(0, 2**64, (count, 2), np.uint64)
    rows[:, 1] = rows[:, 1] >> np.uint64(48) << np.uint64(48)
    rows[:, 1] |= np.uint64(number << 16 | day)
    return rows


class Node:
    """A state machine with everything that keeps it."""

    def __init__(self, directory: Path, flush_at: int = NEVER) -> None:
        self.state = StateMachine((1, 2), CAPACITY)
        self.number = 0
        self.store = IdentityStore(str(directory), self.state, flush_at)
        self.checkpoints = Checkpoints(str(directory), self.store)
        self.found = self.checkpoints.load(self._restore)

    def _restore(self, state: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.state.restore(state, arrays)
        self.number = state["number"]

    def add(self, number: int, **kwargs: Any) -> None:
        """Identities arrive; when there are enough they go to a run at once."""
        self.state.restore_identities(identities(number, **kwargs))
        self.work()

    def work(self) -> None:
        for _ in range(3):  # flush, empty the table, merge
            self.store.step(0.0, may_flush=True)
            self.store.finish()

    def save(self, number: int) -> None:
        self.checkpoints.save(self.state, {"number": number})
        assert self.checkpoints.step(wait=True) is None

    def batches(self) -> list[int]:
        """The numbers of the batches that are known, in memory or runs."""
        rows = [self.state.tables.journal[: self.state.recent]]
        rows += [self.let_through(entries_of(one.run)) for one in self.store._runs]
        numbers = (np.concatenate(rows)[:, 1] >> np.uint64(16) & np.uint64(0xFFFF_FFFF)).tolist()
        assert len(numbers) == BATCH * len(set(numbers))  # so none is missing
        return sorted(set(numbers))

    def let_through(self, rows: np.ndarray) -> np.ndarray:
        """Those that the filter sends on to the runs: all of them."""
        hashes, out = np.zeros((len(rows), 4), np.uint64), np.zeros(len(rows), np.int64)
        hashes[:, 2:] = rows
        return rows[out[: candidates(tuple(self.state.tables.filter), hashes, len(rows), out)]]

    @property
    def levels(self) -> list[int]:
        return sorted(one.file.level for one in self.store._runs)


def saved(directory: Path, count: int, **kwargs: Any) -> Node:
    """A node after `count` batches, each saved."""
    node = Node(directory, **kwargs)
    for number in range(1, count + 1):
        node.add(number)
        node.save(number)
    return node


def load(directory: Path) -> tuple[int, list[int]]:
    """What a start finds: the number of the checkpoint, and the batches it knows."""
    node = Node(directory)
    return node.number, node.batches()


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("ids-*")}


def named(state: dict[str, Any]) -> set[str]:
    return {file[0] for kind in ("runs", "parts") for file in state[kind]}


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert not Node(tmp_path).found


@pytest.mark.parametrize("flush_at", [NEVER, BATCH, 4 * BATCH])
def test_what_was_saved_is_loaded_and_only_needed_files_stay(tmp_path, flush_at):
    node = Node(tmp_path, flush_at)
    before: set[str] = set()
    for number in range(1, RUNS_PER_LEVEL**2 + 3):
        node.add(number)
        node.save(number)
        assert load(tmp_path) == (number, list(range(1, number + 1)))
        now = named(node.checkpoints.saved)
        assert files(tmp_path) == now | before
        before = now
    if flush_at == BATCH:
        assert node.levels == [0, 0, 2]
    elif flush_at == NEVER:
        assert len(node.checkpoints.saved["parts"]) <= PARTS_MAX


def test_a_start_goes_on_where_the_last_one_ended(tmp_path):
    for number in range(1, 20):
        node = Node(tmp_path, 2 * BATCH)
        node.add(number)
        node.save(number)
    assert load(tmp_path) == (19, list(range(1, 20)))
    assert node.levels == [0, 1]


def test_a_save_without_new_identities_writes_no_file(tmp_path):
    node = saved(tmp_path, 1)
    before = files(tmp_path)
    node.save(2)
    assert files(tmp_path) == before
    assert load(tmp_path) == (2, [1])


def test_what_is_flushed_and_not_yet_in_a_checkpoint_comes_again_from_the_log(tmp_path):
    """The run that no checkpoint names is removed, and nothing else."""
    node = saved(tmp_path, 3)
    node = Node(tmp_path, flush_at=4 * BATCH)
    node.add(4)
    assert node.levels == [0]
    again = Node(tmp_path)
    assert again.batches() == [1, 2, 3]
    again.save(5)
    assert load(tmp_path) == (5, [1, 2, 3])
    assert files(tmp_path) == named(again.checkpoints.saved)


def expire(state: StateMachine, day: int) -> None:
    every = np.array([META_GROUP], np.uint16)
    state.horizons.move(every, {"horizon": day * DAY_NS, "future_ns": DAY_NS})


def test_a_start_removes_what_a_killed_merge_has_left(tmp_path):
    left = [tmp_path / "ids-000000000007.run.tmp", tmp_path / "ids-000000000009.part.tmp"]
    for path in left:
        path.write_bytes(b"half a file")
    Node(tmp_path)
    assert not any(path.exists() for path in left)


def test_merging_drops_what_has_expired(tmp_path):
    node = Node(tmp_path, BATCH)
    for number in range(1, RUNS_PER_LEVEL):
        node.add(number, day=number)
    expire(node.state, 3)
    node.add(RUNS_PER_LEVEL, day=RUNS_PER_LEVEL)
    assert node.batches() == list(range(3, RUNS_PER_LEVEL + 1))
    expire(node.state, 100)
    node.work()
    assert node.levels == []
    node.save(1)
    assert files(tmp_path) == set()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    saved(tmp_path, 3)
    flip(tmp_path / CURRENT, 100)
    assert load(tmp_path) == (2, [1, 2])
    assert "falling back" in caplog.text


@pytest.mark.parametrize("flush_at", [NEVER, BATCH])
@pytest.mark.parametrize("how", ["missing", "damaged", "another"])
def test_a_checkpoint_whose_file_is_not_what_it_was_falls_back(tmp_path, how, flush_at):
    node = saved(tmp_path, 3, flush_at=flush_at)
    newest = tmp_path / max(named(node.checkpoints.saved))
    if how == "missing":
        newest.unlink()
    elif how == "damaged":
        flip(newest, 4096 if newest.suffix == ".run" else newest.stat().st_size - 64)
    else:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        other = Node(elsewhere, flush_at)
        other.add(9, count=1)
        other.work()
        other.save(1)
        (elsewhere / max(named(other.checkpoints.saved))).replace(newest)
    assert load(tmp_path)[0] == 2


def test_both_damaged_is_corruption(tmp_path):
    saved(tmp_path, 2)
    flip(tmp_path / CURRENT, 0)
    flip(tmp_path / PREVIOUS, 30)
    with pytest.raises(Corrupt) as caught:
        Node(tmp_path)
    assert caught.value.path == str(tmp_path / PREVIOUS)


def test_every_damaged_byte_is_noticed(tmp_path):
    node = saved(tmp_path, 1)
    node.add(2)
    node.save(2)
    whole = (tmp_path / CURRENT).read_bytes()
    answers = set()
    for at in range(0, len(whole), 3):
        flip(tmp_path / CURRENT, at)
        answers.add(load(tmp_path)[0])
        (tmp_path / CURRENT).write_bytes(whole)
        if at % 64 == 63:
            (tmp_path / CURRENT).write_bytes(whole[:at])
            answers.add(load(tmp_path)[0])
            (tmp_path / CURRENT).write_bytes(whole)
    assert answers <= {1, 2}  # zeros between the sections carry nothing
    assert load(tmp_path) == (2, [1, 2])


def test_after_a_fall_back_the_whole_one_is_kept(tmp_path):
    """The damaged checkpoint must not take the place of the only one that is whole."""
    saved(tmp_path, 3)
    flip(tmp_path / CURRENT, 100)
    node = Node(tmp_path)
    node.add(4)
    node.save(4)
    assert load(tmp_path) == (4, [1, 2, 4])
    flip(tmp_path / CURRENT, 100)
    assert load(tmp_path) == (2, [1, 2])


def test_the_previous_one_is_known_after_a_start(tmp_path):
    """Log files that only the previous checkpoint needs are not free to go."""
    saved(tmp_path, 3)
    again = Node(tmp_path).checkpoints
    assert (again.saved["number"], again.previous["number"]) == (3, 2)
    flip(tmp_path / PREVIOUS, 100)
    again = Node(tmp_path).checkpoints
    assert (again.saved["number"], again.previous["number"]) == (3, 3)


def test_a_full_disk_is_waited_for(tmp_path, monkeypatch):
    """Neither a checkpoint nor a flush ends the node; what they would have kept stays known."""
    node = saved(tmp_path, 2)
    full = OSError(28, "No space left on device")

    def refuse(*_: Any) -> int:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        node.add(3)
        node.checkpoints.save(node.state, {"number": 3})
        assert node.checkpoints.step(wait=True) == "no room"
        assert node.checkpoints.busy
        node.store._flush_at = BATCH
        node.work()
        assert node.store.busy
        assert node.levels == []
    assert load(tmp_path) == (2, [1, 2])
    node.store._retry_at = 0.0
    node.work()
    assert node.levels == [0]
    assert node.batches() == [1, 2, 3]


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
def test_work_that_ends_anywhere_leaves_a_checkpoint(tmp_path, monkeypatch, damaged, error):
    """A flush, a merge and a save, also after a fall back; then the next save works."""
    countdown = Countdown(monkeypatch)
    countdown.error = error
    last = RUNS_PER_LEVEL
    ended = 0
    for calls in range(1_000):
        directory = tmp_path / str(calls)
        directory.mkdir()
        node = saved(directory, last - 1, flush_at=BATCH)
        newest = last - 1
        if damaged:
            flip(directory / CURRENT, 100)
            node = Node(directory, BATCH)
            newest = last - 2
        old = list(range(1, newest + 1))
        countdown.left = calls
        try:
            node.add(last)
            node.save(last)
        except (Stopped, OSError, FsyncFailed):
            ended += 1
        done = countdown.left > 0
        countdown.left = None
        found = load(directory)
        assert found in ((newest, old), (last, [*old, last]))
        again = Node(directory, BATCH)
        again.add(last + 1)
        again.save(last + 1)
        assert load(directory) == (last + 1, [*found[1], last + 1])
        kept = named(again.checkpoints.saved) | named(again.checkpoints.previous)
        assert files(directory) <= kept
        if done:
            assert found[0] == last
            break
    assert ended > 10
