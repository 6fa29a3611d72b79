"""Who owns a data directory, and which directories are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.actors import endings
from meterd.actors.starting import directory, identity
from meterd.core.cluster.members import REMOVED, Member, Members
from meterd.protocol.errors import BootFailed

NODE = identity.Identity(3, "00" * 16, "11" * 16, 1, 1, "2026-01-01T00:00:00Z")


def refusal(data_dir: Path, node_id: int, bootstrap: str) -> BootFailed:
    with pytest.raises(BootFailed) as caught:
        identity.of_history(str(data_dir), node_id, bootstrap)
    return caught.value


def new_cluster(data_dir: Path, node_id: int) -> identity.Identity:
    return identity.write(str(data_dir), identity.new_cluster(node_id))


def test_an_empty_directory_is_made_once_and_then_recovered(tmp_path: Path) -> None:
    assert identity.of_history(str(tmp_path), 3, "auto") is None
    made = new_cluster(tmp_path, 3)
    assert identity.of_history(str(tmp_path), 3, "auto") == made
    assert identity.of_history(str(tmp_path), 3, "recover") == made
    assert made.cluster_id != made.identity_key
    assert len(made.cluster_id) == len(made.identity_key) == 16


def test_two_new_clusters_differ(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (new_cluster(tmp_path / name, 0) for name in ("one", "two"))
    assert one.cluster_id != two.cluster_id
    assert one.identity_key != two.identity_key


def test_a_directory_with_a_history_is_never_made_new(tmp_path: Path) -> None:
    new_cluster(tmp_path, 0)
    assert refusal(tmp_path, 0, "new").exit_code == 79


def test_the_directory_of_another_node_is_refused_and_names_it(tmp_path: Path) -> None:
    new_cluster(tmp_path, 3)
    failure = refusal(tmp_path, 4, "auto")
    assert failure.exit_code == 79
    assert "--node-id 3" in failure.reason


def test_an_empty_directory_is_no_known_node(tmp_path: Path) -> None:
    assert refusal(tmp_path, 0, "recover").exit_code == 79
    assert not (tmp_path / "node.json").exists()


@pytest.mark.parametrize("name", ["wal.log", "wal-00000000000000000001.log", "checkpoint.bin"])
def test_a_history_without_identity_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    failure = refusal(tmp_path, 0, "auto")
    assert failure.exit_code == 79
    assert name in failure.reason


def test_a_newer_storage_version_is_refused(tmp_path: Path) -> None:
    body = json.loads(identity.encode(NODE))
    newer = {**body, "storage_version": identity.STORAGE_VERSION + 1}
    (tmp_path / "node.json").write_text(json.dumps(newer))
    failure = refusal(tmp_path, 3, "auto")
    assert failure.exit_code == 79
    assert "newer version" in failure.reason


def test_identity_is_written_as_it_is_read() -> None:
    assert identity.decode(identity.encode(NODE), "node.json") == NODE


@given(st.integers(0, len(identity.encode(NODE)) - 1), st.integers(1, 255))
def test_a_damaged_byte_is_noticed(at: int, flip: int) -> None:
    raw = bytearray(identity.encode(NODE))
    raw[at] ^= flip
    try:
        read = identity.decode(bytes(raw), "node.json")
    except BootFailed as failure:
        assert failure.exit_code in (65, 79)
    else:
        assert read == NODE  # only white space between values


@given(st.binary(max_size=200))
def test_any_bytes_are_an_identity_or_refused(raw: bytes) -> None:
    with pytest.raises(BootFailed):
        identity.decode(raw, "node.json")


def test_a_run_directory_is_private_short_and_empty(tmp_path: Path) -> None:
    for data_dir in (tmp_path / "d", tmp_path / ("long" * 30)):
        data_dir.mkdir()
        run_dir = Path(directory.make_run_dir(str(data_dir)))
        (run_dir / "stale").write_text("from the run before")
        assert Path(directory.make_run_dir(str(data_dir))) == run_dir
        assert [*run_dir.iterdir()] == []
        assert run_dir.stat().st_mode & 0o777 == 0o700
        assert len(str(run_dir)) + 1 + len("retention_sweeper") <= directory.SOCKET_PATH_MAX
        run_dir.rmdir()


def test_a_directory_that_cannot_be_made_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BootFailed) as caught:
        directory.take(str(tmp_path / "file" / "data"))
    assert caught.value.exit_code == 73


@pytest.mark.parametrize(
    ("known", "state", "own", "ends"),
    [
        (1, "voter", 1, False),
        (1, REMOVED, 1, True),
        (2, "learner", 1, True),  # recovered, or added again: for another directory
        (2, REMOVED, 1, True),
        (1, REMOVED, 2, False),  # it has come back, and learns what was before
        (1, "voter", 0, False),  # it was made alone
    ],
)
def test_a_node_that_was_given_up_does_not_start(
    known: int, state: str, own: int, ends: bool
) -> None:
    members = Members([Member(3, known, "three:8001", "three:7001", state, "d")])
    found = identity.given_up(replace(NODE, incarnation=own), members)
    assert (found is not None) == ends
    if found is not None:
        assert found.exit_code == endings.IDENTITY and "--bootstrap join" in found.reason


def test_nothing_is_said_of_a_node_that_the_members_do_not_name() -> None:
    assert identity.given_up(NODE, Members()) is None
