"""What was heard of other nodes' logs holds over restarts, and accuses nobody wrongly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.actors.files import disk
from meterd.actors.replicating import heard_file
from meterd.actors.replicating.heard_file import HEARD_FILE, NOWHERE, HeardFile, Places
from meterd.core.raft.standing import Standing
from meterd.protocol.errors import DiskFull

ONE, TWO = {7: (100, 20, 15)}, {7: (100, 25, 15), 8: (90, 3, 0)}


def test_what_is_written_is_read_again(tmp_path):
    file = HeardFile(str(tmp_path))
    assert file.heard == {}
    file.turn(0.0, ONE)
    file.close(TWO)
    assert HeardFile(str(tmp_path)).heard == TWO
    assert not list(tmp_path.glob("*.tmp"))


def test_it_is_written_only_when_something_is_new_and_not_too_often(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(disk, "atomic_write", lambda path, raw: written.append(raw))
    file = HeardFile(str(tmp_path))
    for now in (0.0, 0.1, heard_file.WRITE_SECONDS - 0.1):
        file.turn(now, dict(ONE))
        file._lane.ended(wait=True)
    assert len(written) == 1
    file.turn(heard_file.WRITE_SECONDS, ONE)
    file.close(ONE)
    assert len(written) == 1
    file.close(TWO)
    assert len(written) == 2


def test_where_nodes_are_is_kept_as_the_newest_members_say(tmp_path):
    (tmp_path / HEARD_FILE).write_bytes(b'{"format": 1, "members": {}}')  # of an earlier version
    file = HeardFile(str(tmp_path))
    assert file.places == NOWHERE
    newer = Places(3, {1: "one:8001", 4: "four:8001"})
    file.turn(0.0, ONE, lambda: newer)
    file._lane.ended(wait=True)
    again = HeardFile(str(tmp_path))
    assert again.places == newer
    again.close(TWO, Places(1, {1: "one:8001"}))  # its state has not caught up
    assert HeardFile(str(tmp_path)).places == newer
    again.close(TWO, Places(4, {1: "uno:8001"}))
    assert HeardFile(str(tmp_path)).places.addresses == {1: "uno:8001"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"format": 2}', b'{"format": 1, "members": {"a": [1]}}']
)
def test_what_cannot_be_read_is_forgotten(tmp_path, content):
    (tmp_path / HEARD_FILE).write_bytes(content)
    assert HeardFile(str(tmp_path)).heard == {}


def test_a_full_disk_ends_nothing(tmp_path, monkeypatch):
    def full(path, raw):
        raise DiskFull("no room", str(path))

    monkeypatch.setattr(disk, "atomic_write", full)
    file = HeardFile(str(tmp_path))
    file.turn(0.0, ONE)
    file.close(TWO)


# (start anew?, how far the log grows, or goes back when it starts)
lives = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=20)


@given(lives, st.lists(st.integers(0, 20), max_size=4))
def test_a_log_that_only_grows_is_never_accused_whenever_we_restart(taken, restarts):
    """We remember which start of it each block belongs to, so its present one is not its past."""
    ours, boot, block, began = Standing(1, 0, {}), 10, 0, 0
    for step, (starts, grown) in enumerate(taken):
        if starts:
            boot, began = boot + 1, block
        else:
            block += grown
        ours.hear(2, boot, block)
        if step in restarts:
            ours = Standing(1, 0, ours.heard)
        assert ours.heard_of(2) <= began


@given(st.integers(1, 9), st.integers(0, 8), st.booleans())
def test_an_older_copy_is_known_also_after_a_restart_of_ours(block, older, clock_put_back):
    older = min(older, block - 1)
    ours = Standing(1, 0, {})
    ours.hear(2, 10, block)
    ours = Standing(1, 0, ours.heard)
    ours.hear(2, 9 if clock_put_back else 11, older)
    assert ours.heard_of(2) == block > older
