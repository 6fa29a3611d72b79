"""Every writer on a full disk: nothing breaks, nothing is half done, and it is done later.

Two kinds of full disk: system calls that fail one after another (ENOSPC, EDQUOT, short writes), and
a real small one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import lz4.block
import msgpack
import pytest

from meterd.actors.files import disk
from meterd.actors.files.direct_file import Staging
from meterd.actors.files.disk import LocalDisk, atomic_write, full_disk_told, prepare_write
from meterd.actors.frames.bundle import bundle
from meterd.actors.housekeeping import disk_usage
from meterd.actors.housekeeping.ballast import PIECE_SIZE, Ballast
from meterd.actors.housekeeping.disk_report import HISTORY_FILE
from meterd.actors.housekeeping.refused_log import RefusedLog
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.actors.starting import directory, identity
from meterd.core.state.registry import Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import BootFailed, DiskFull
from meterd.protocol.segment_format import SegmentName
from tests.support.failing_calls import FailingCalls
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory
from tests.support.recording import answers, recorded, request
from tests.support.small_disk import MIB, SmallDisk
from tests.support.waiting import eventually

FULL = (errno.ENOSPC, errno.EDQUOT)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FailingCalls:
    return FailingCalls(monkeypatch)


@pytest.fixture
def small() -> Iterator[SmallDisk]:
    with SmallDisk(8 * MIB, inodes=200) as made:
        made.data_dir.mkdir()
        yield made


# Files that are replaced


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("staged", [False, True])
def test_a_file_is_replaced_or_the_old_one_stays(tmp_path, failing, error, staged):
    path, done = tmp_path / "file", False
    new = os.urandom(3 * MIB // 2)
    for calls in range(100):
        atomic_write(path, b"old")
        failing.begin(calls, error)
        try:
            atomic_write(path, [new[:7], new[7:]], Staging() if staged else None)
        except DiskFull:
            assert path.read_bytes() == b"old"
        else:
            done = failing.failed == 0
        failing.left = None
        assert os.listdir(tmp_path) == ["file"]
        if done:
            break
    assert path.read_bytes() == new
    assert calls > 3


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.EIO])
def test_other_errors_are_not_taken_for_a_full_disk(tmp_path, failing, error):
    failing.begin(0, error)
    with pytest.raises(OSError) as caught:
        LocalDisk().create(str(tmp_path / "file"), 4096)
    assert caught.value.errno == error
    with pytest.raises(OSError) as caught, full_disk_told():
        raise OSError(error, "text")
    assert caught.value.errno == error


@pytest.mark.parametrize("error", FULL)
def test_a_new_file_that_finds_no_room_leaves_nothing(tmp_path, failing, error):
    for calls in range(4):  # open, allocate, two pieces of zeros
        failing.begin(calls, error)
        with pytest.raises(DiskFull):
            LocalDisk().create(str(tmp_path / "file"), 1 * MIB)
        assert os.listdir(tmp_path) == []
    failing.begin(0, error)
    with pytest.raises(DiskFull):
        LocalDisk().rename(str(tmp_path / "file"), str(tmp_path / "other"))


def test_space_allocated_ahead_is_used_on_a_full_disk(small):
    path = small.data_dir / "file"
    atomic_write(path, b"old")
    assert prepare_write(path, 2 * MIB)
    small.fill()
    assert not prepare_write(small.data_dir / "other", MIB)
    with pytest.raises(DiskFull):
        atomic_write(small.data_dir / "other", bytes(MIB))
    new = os.urandom(3 * MIB // 2)
    atomic_write(path, new, Staging())
    assert path.read_bytes() == new
    assert sorted(os.listdir(small.data_dir)) == ["file"]
    assert path.stat().st_blocks * 512 < 2 * MIB


# Refused events


def listed(log: RefusedLog) -> list[int]:
    return [event["number"] for event in log.page(1_000, None)["events"]][::-1]


@pytest.mark.parametrize("error", FULL)
def test_refused_events_without_room_are_left_out_and_counted(
    tmp_path, failing, error, monkeypatch
):
    # It rotates now and then.
    monkeypatch.setattr("meterd.actors.housekeeping.refused_log.FILE_SIZE_MAX", 700)
    for calls in range(12):
        path = tmp_path / str(calls)
        path.mkdir()
        log, kept = RefusedLog(str(path)), []
        for number in range(30):
            if number == 8:
                failing.begin(calls, error, 3)
            if not log.write([{"number": number, "text": "x" * 40}], number):
                kept.append(number)
        assert failing.failed == 3
        failing.left = None
        assert len(kept) < 30
        assert listed(log) == kept[-len(listed(log)) :]
        log.close()
        again = RefusedLog(str(path))
        assert listed(again) == kept[-len(listed(again)) :]
        assert again.write([{"number": 30}], 0) == 0
        assert listed(again)[-1] == 30
        again.close()


def test_a_node_may_start_without_room_for_refused_events(small):
    small.fill_inodes()
    log = RefusedLog(str(small.data_dir))
    assert log.write([{"number": 1}], 0) == 1
    assert listed(log) == []
    small.free_up()
    assert log.write([{"number": 2}], 1) == 0
    assert listed(log) == [2]
    log.close()


# Housekeeping

LOW = {
    "warn_free": 4 * MIB,
    "warn_free_ratio": 0,
    "stop_free": 3 * MIB,
    "resume_margin": MIB,
    "hard_free": MIB,
    "resume_hold": 0,
    "ballast": MIB,
    "inode_warn": 60,
    "inode_stop": 40,
    "inode_resume": 50,
}


@pytest.fixture
def log(small: SmallDisk) -> LogDirectory:
    state = {"kind": "registry", "registry": Registry().to_bytes()}
    encoded = b"".join(checkpoint_format.encode(state, {}))
    (small.data_dir / "metric_registry.bin").write_bytes(encoded)
    return LogDirectory(small.data_dir)


@pytest.fixture
def sweeper(log: LogDirectory) -> Iterator[Any]:
    made = recorded(RetentionSweeper, log.path, disk=LOW)
    yield made
    made.close()


def told(sweeper: Any) -> list[str | None]:
    """What the router was told since the last call: the code, or None."""
    return [msgpack.unpackb(frames[1])["code"] for _, frames in sweeper.take(b"admission")]


def ask(sweeper: Any, kind: str, **fields: Any) -> Any:
    sweeper.handle([b"requests", *bundle([b"rid", *request(kind, fields)])])
    sweeper.flush()
    ((status, body),) = answers(sweeper)
    return (status, body)


class Turns:
    """Gives the sweeper turns, each long after the one before."""

    def __init__(self, sweeper: Any) -> None:
        self._sweeper = sweeper
        self._now = 1e9

    def __call__(self) -> None:
        self._now += 1_000
        self._sweeper.tick(self._now)


def test_a_full_disk_stops_events_gives_the_ballast_back_and_goes_on(small, sweeper):
    turn = Turns(sweeper)
    turn()
    turn()
    assert told(sweeper) == [None]
    assert (small.data_dir / "ballast").stat().st_size == MIB
    small.fill(2 * MIB)
    turn()
    assert told(sweeper) == ["disk_stop"]
    assert not sweeper.holds_still
    assert (small.data_dir / "ballast").exists()
    small.fill(0)
    turn()
    assert sweeper.holds_still
    assert not (small.data_dir / "ballast").exists()
    assert [frames[1] for _, frames in sweeper.take(b"disk")][-1] == b"hard"
    small.fill(0)
    turn()
    assert sweeper.holds_still
    small.free_up()
    turn()
    turn()
    assert told(sweeper)[-1] is None
    assert [frames[1] for _, frames in sweeper.take(b"disk")][-1] == b"ok"
    turn()
    turn()
    assert (small.data_dir / "ballast").stat().st_size == MIB


def test_a_writer_without_room_stops_events_until_it_has_found_some(sweeper):
    turn = Turns(sweeper)
    turn()
    sweeper.sent = []
    sweeper.handle([b"no_room", b"usage", b"1"])
    sweeper.handle([b"no_room", b"wal_writer", b"1"])
    sweeper.handle([b"no_room", b"usage", b"0"])
    assert told(sweeper) == ["disk_stop"]
    assert ask(sweeper, "disk_status")[1]["reason"] == "no_room"
    sweeper.handle([b"no_room", b"wal_writer", b"0"])
    turn()
    assert told(sweeper) == [None]
    # A chain that starts again has forgotten what it waited for.
    sweeper.handle([b"no_room", b"usage", b"1"])
    sweeper.handle([b"hello", b"usage"])
    turn()
    turn()
    assert told(sweeper)[-1] is None


def test_segments_and_refused_events_hold_still_on_a_full_disk(small, log, sweeper):
    turn = Turns(sweeper)
    log.write([LoggedEvent("a", "1", 1, 5, 1)], set())
    number = log.seal(False)
    index = SegmentName(number, number).file(".idx")
    small.fill(0)
    turn()
    meta = msgpack.packb({"file_number": number, "row_count": 1})
    sweeper.handle([b"sealed", meta, lz4.block.compress(log.bitmap(number))])
    refused = {"account": "a", "id": "i", "timestamp": 7, "metric": "m", "value": 1, "reason": "x"}
    sweeper.handle([b"refused_events", msgpack.packb([refused])])
    turn()
    assert not (small.data_dir / index).exists()
    assert ask(sweeper, "rejected")[1]["events"] == []
    small.free_up()
    eventually(lambda: turn() or (small.data_dir / index).exists(), "a segment", 120.0)
    sweeper.handle([b"refused_events", msgpack.packb([refused])])
    assert len(ask(sweeper, "rejected")[1]["events"]) == 1


def test_a_backup_under_way_outlives_a_full_disk(small, sweeper, tmp_path, caplog):
    """Its lease cannot be made to last for the moment: that ends neither it nor the node."""
    status, body = ask(sweeper, "backup_create", to=str(tmp_path), type="full")
    assert (status, body["job"]["state"]) == ("ok", "running")
    small.fill_inodes()
    turn = Turns(sweeper)
    turn()
    assert "is made to last later" in caplog.text
    assert sweeper.jobs.active("backup") is not None


def test_what_an_operator_asks_for_without_room_is_answered_with_the_reason(small, sweeper):
    small.fill_inodes()
    status, body = ask(sweeper, "backup_hold")
    assert (status, body["code"]) == ("error", "disk_stop")
    small.free_up()
    assert ask(sweeper, "backup_hold")[0] == "ok"


def test_the_status_names_what_uses_the_space(small, sweeper):
    turn = Turns(sweeper)
    for _ in range(3):
        turn()
    (small.data_dir / "wal.log").write_bytes(bytes(MIB))
    (small.data_dir / "sub").mkdir()
    (small.data_dir / "sub" / "wal.log").write_bytes(bytes(MIB // 2))
    os.link(small.data_dir / "wal.log", small.data_dir / "wal-00000000000000000001.log")
    status, found = ask(sweeper, "disk_status")
    assert status == "ok"
    kinds = {one["kind"]: one["bytes"] for one in found["kinds"]}
    assert (kinds["log"], kinds["reserve"]) == (MIB, MIB)
    assert kinds["other"] >= MIB // 2
    assert found["own"] == sum(kinds.values()) <= found["used"]
    assert found["used"] + found["free"] == found["size"] == 8 * MIB
    files = {one["directory"]: one["files"] for one in found["directories"]}
    assert files["./sub"] == 1
    assert (found["state"], found["reserve"], found["complete"]) == ("ok", MIB, True)
    assert found["growth_per_day"] is None


def test_the_reserve_is_given_back_once_and_not_taken_again_at_once(small, sweeper):
    turn = Turns(sweeper)
    for _ in range(3):
        turn()
    status, found = ask(sweeper, "disk_free_reserve")
    assert (status, found["freed"]) == ("ok", MIB)
    status, found = ask(sweeper, "disk_free_reserve")
    assert (status, found["code"]) == ("error", "not_needed")
    sweeper.tick(0.0)
    assert not (small.data_dir / "ballast").exists()


def test_the_history_survives_a_restart_and_a_disk_without_room_for_it(small, log):
    for room in (True, False, True):
        sweeper = recorded(RetentionSweeper, log.path, disk=LOW)
        ask(sweeper, "disk_status")
        if not room:
            small.fill_inodes()
        sweeper.close()
        small.free_up()
        assert (small.data_dir / HISTORY_FILE).exists()
    _, arrays = checkpoint_format.decode((small.data_dir / HISTORY_FILE).read_bytes())
    assert arrays["samples"].shape[1] == 3
    (small.data_dir / HISTORY_FILE).write_bytes(b"damaged")
    recorded(RetentionSweeper, log.path, disk=LOW).close()
    checkpoint_format.decode((small.data_dir / HISTORY_FILE).read_bytes())


# The ballast


def test_the_ballast_grows_in_pieces_and_shrinks(tmp_path):
    ballast = Ballast(str(tmp_path))
    assert ballast.size == 0
    assert ballast.grow(PIECE_SIZE + 5) == PIECE_SIZE
    assert ballast.grow(PIECE_SIZE + 5) == PIECE_SIZE + 5 == ballast.size
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= PIECE_SIZE + 5
    assert ballast.grow(100) == 100 == ballast.size
    assert ballast.release() == 100
    assert ballast.release() == 0


def test_a_ballast_without_room_takes_nothing(small):
    ballast = Ballast(str(small.data_dir))
    assert ballast.grow(MIB) == MIB
    small.fill(MIB)
    assert ballast.grow(4 * MIB) == MIB
    assert (small.data_dir / "ballast").stat().st_blocks * 512 == MIB


# Kinds of files


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wal.log", "log"),
        ("wal-00000000000000000001.open", "log"),
        ("wal.spare", "reserve"),
        ("wal-00000000000000000001.log", "log"),
        ("seg-000000000001-000000000002.seg", "segments"),
        ("seg-000000000001-000000000002.idx", "segments"),
        ("ids-000000000001.run", "ids"),
        ("ids-000000000001.part", "ids"),
        ("checkpoint.bin", "checkpoints"),
        ("checkpoint.prev.bin", "checkpoints"),
        ("checkpoint.bin.tmp", "temporary"),
        ("ballast", "reserve"),
        ("refused.1.log", "refused"),
        ("node.json", "other"),
    ],
)
def test_every_file_has_a_kind(name, kind):
    assert disk_usage.kind_of(name) == kind


def test_more_files_than_are_looked_at_are_said_to_be_more(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_usage, "FILES_MAX", 3)
    for number in range(5):
        (tmp_path / str(number)).touch()
    assert not disk_usage.measure(str(tmp_path)).complete


# The start


def test_a_directory_with_a_history_may_be_taken_when_it_is_full(small, caplog):
    path = str(small.data_dir)
    identity.write(path, identity.new_cluster(0))
    (small.data_dir / "lock").touch()
    small.fill()
    small.fill_inodes()
    directory.take(path)
    assert "is full" in caplog.text
    run_dir = directory.make_run_dir(path)
    assert run_dir.startswith("/tmp/meterd-")
    os.rmdir(run_dir)
    small.free_up()
    assert directory.make_run_dir(path) == f"{path}/run"


def test_a_new_node_needs_room_and_says_so(small):
    small.fill()
    with pytest.raises(BootFailed, match="No space left"):
        identity.write(str(small.data_dir), identity.new_cluster(0))


def test_nothing_of_a_file_is_lost_when_its_directory_is_full(small):
    """A name needs no inode when the file has one."""
    atomic_write(small.data_dir / "file", b"old")
    assert prepare_write(small.data_dir / "file", 100)
    small.fill_inodes()
    with pytest.raises(DiskFull):
        atomic_write(small.data_dir / "other", b"text")
    atomic_write(small.data_dir / "file", b"new")
    assert (small.data_dir / "file").read_bytes() == b"new"
    assert disk.prepared_name("x") == "x.spare"
