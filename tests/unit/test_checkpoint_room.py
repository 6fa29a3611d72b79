"""A checkpoint that finds no room changes nothing; the next one that finds some has everything."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from meterd.actors.files.disk import prepared_name
from meterd.actors.keeping.checkpoints import CURRENT
from meterd.core.warm import warm
from tests.support.failing_calls import FailingCalls
from tests.support.small_disk import MIB, SmallDisk
from tests.unit.test_checkpoints import Node, load, saved

FULL = (errno.ENOSPC, errno.EDQUOT)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """What fails must not be a file that the compiler keeps."""
    warm()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FailingCalls:
    return FailingCalls(monkeypatch)


@pytest.fixture
def small() -> Iterator[SmallDisk]:
    with SmallDisk(8 * MIB) as made:
        made.data_dir.mkdir()
        yield made


def save(node: Node, number: int) -> bool:
    """Try to save; return whether there was room."""
    node.checkpoints.save(node.state, {"number": number})
    return node.checkpoints.step(wait=True) is None


@pytest.mark.parametrize("error", FULL)
def test_no_room_at_any_call_leaves_both_checkpoints_and_loses_nothing(tmp_path, failing, error):
    waited, twice, done = 0, 0, False
    for calls in range(200):
        path = tmp_path / str(calls)
        path.mkdir()
        node = saved(path, 3)
        node.add(4)
        failing.begin(calls, error)
        good = save(node, 4)
        done = failing.failed == 0
        failing.left = None
        assert node.checkpoints.waiting != good
        if not good:
            waited += 1
            assert load(path) == (3, [1, 2, 3])
            (path / CURRENT).rename(path / "aside")
            found = load(path)  # still another file, not the same under two names
            assert found in ((2, [1, 2]), (3, [1, 2, 3]))
            twice += found[0] == 3
            (path / "aside").rename(path / CURRENT)
            node.add(5)
            assert save(node, 5)
        assert not node.checkpoints.waiting
        assert load(path) == ((4, [1, 2, 3, 4]) if good else (5, [1, 2, 3, 4, 5]))
        if done:
            break
    assert done and waited > 5
    assert twice <= 1  # the last rename, over a name that is there: only a fault can refuse that


def test_a_checkpoint_has_its_space_ahead(small):
    node = saved(small.data_dir, 2)
    assert (small.data_dir / prepared_name(CURRENT)).stat().st_size >= (
        small.data_dir / CURRENT
    ).stat().st_size
    small.fill(64 * 1024)  # for the identities, which are few
    node.add(3)
    assert save(node, 3)
    assert load(small.data_dir) == (3, [1, 2, 3])


def test_a_checkpoint_is_saved_when_there_is_room_again(small):
    node = saved(small.data_dir, 1)
    (small.data_dir / prepared_name(CURRENT)).unlink()
    small.fill()
    node.add(2)
    for _ in range(2):
        assert not save(node, 2)
        assert node.checkpoints.waiting and node.checkpoints.busy
        assert load(small.data_dir) == (1, [1])
    small.free_up()
    assert save(node, 2)
    assert not node.checkpoints.waiting
    assert load(small.data_dir) == (2, [1, 2])


@pytest.mark.parametrize("error", FULL)
def test_no_room_at_any_call_delays_a_run_and_loses_nothing(tmp_path, failing, error):
    """Neither bytes, nor a name, nor an inode for the file of the run."""
    delayed = 0
    for calls in range(100):
        path = tmp_path / str(calls)
        path.mkdir()
        node = saved(path, 2)
        node.store._flush_at = 1
        failing.begin(calls, error)
        node.work()
        found_none = failing.failed
        failing.left = None
        delayed += found_none > 0
        node.store._retry_at = 0.0
        node.work()
        assert node.levels == [0]
        assert node.batches() == [1, 2]
        node.save(3)
        assert load(path) == (3, [1, 2])
        if not found_none:
            break
    assert delayed > 3
