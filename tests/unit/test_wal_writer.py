"""The WAL-writer without its sockets: what it takes, what it sends, and when it gives up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from meterd.actors.actor import Lifeline
from meterd.actors.files.disk import Disk
from meterd.actors.log.wal_log import BLOCK_FILL_SIZE, RECORDS_PER_BLOCK_MAX, Entry, block_count
from meterd.actors.options import Options
from meterd.actors.starting import identity
from meterd.actors.wal_writer import PLACE, TELL_RECORDS, WalWriter
from meterd.core.log.scan import Groups
from meterd.protocol import log_format
from meterd.protocol.errors import BootFailed, Corrupt
from tests.support.crash_disk import CrashDisk
from tests.support.log_life import as_read, meta_entry, read_all
from tests.support.replica import Replica

SEGMENT_SIZE = 4 << 20


class Recorded(WalWriter):
    """Keeps what it would send."""

    crash_disk: CrashDisk | None = None

    def send(self, actor: str, frames: list[bytes]) -> None:
        self.__dict__.setdefault("sent", []).append((actor, *frames))

    def make_disk(self) -> Disk:
        return self.crash_disk or super().make_disk()

    def taken(self) -> list[Any]:
        """Return what was sent since the last call."""
        return self.__dict__.pop("sent", [])


@pytest.fixture
def writer(tmp_path: Path, lifeline: Lifeline) -> Recorded:
    identity.write(str(tmp_path), identity.new_cluster(7))
    return started(tmp_path, lifeline)


def started(directory: Path, lifeline: Lifeline, disk: CrashDisk | None = None) -> Recorded:
    options = Options.from_mapping(
        {"node": {"data_dir": str(directory), "id": 7}, "wal": {"segment_size": SEGMENT_SIZE}}
    )
    writer = Recorded(options, str(directory), lifeline)
    writer.crash_disk = disk
    writer.open()
    return writer


def opened(writer: Recorded) -> dict[str, Any]:
    (actor, kind, body, _), admission, no_room = writer.taken()
    assert (actor, kind) == ("replication", b"opened")
    # An earlier process may have said that there was no room.
    assert admission[:2] == ("router", b"admission") and no_room[1:] == (
        b"no_room",
        b"wal_writer",
        b"0",
    )
    assert msgpack.unpackb(admission[2])["code"] is None
    end: dict[str, Any] = msgpack.unpackb(body, strict_map_key=False)
    return end


def give(writer: Recorded, entries: list[Entry], kinds: Sequence[bytes] = (b"append",)) -> None:
    for (sequence, head, payload, _), kind in zip(entries, cycle(kinds), strict=False):
        writer.handle([kind, sequence.to_bytes(8, "little"), head, bytes(payload)])
    writer.flush()


def reported(sent: list[Any]) -> NDArray[np.uint64]:
    """Return what was said to be durable, a row for each record."""
    frames = [message[2] for message in sent if message[1] == b"durable"]
    return np.frombuffer(b"".join(frames), np.uint64).reshape(-1, 4)


def entries_of(replica: Replica, count: int, size: int = 300) -> list[Entry]:
    random = Random(count)
    return [meta_entry(replica, random, size) for _ in range(count)]


def test_an_empty_directory_gets_a_log(writer: Recorded) -> None:
    assert opened(writer) == {
        "file_number": 1,
        "offset": 4096,
        "block_seq": 1,
        "row": 0,
        "leader_time": 0,
        "sequence": 0,
        "groups": {},
        "times": {},
        "repaired": [],
        "void": {},
    }
    writer.close()


def test_what_waits_becomes_one_block_and_is_reported_record_by_record(writer: Recorded) -> None:
    opened(writer)
    entries = entries_of(Replica(Groups()), 5)
    give(writer, entries)
    _, (actor, kind, frame, place) = writer.taken()
    assert (actor, kind) == ("replication", b"durable")
    assert PLACE.unpack(place) == (1, *writer._log.place)
    rows = np.frombuffer(frame, np.uint64).reshape(-1, 4).tolist()
    offset = 4096 + log_format.BLOCK_HEADER_SIZE
    for entry, (sequence, file_number, at, first_row) in zip(entries, rows, strict=True):
        assert (sequence, file_number, at, first_row) == (entry.sequence, 1, offset, 0)
        offset += len(entry.head) + len(entry.payload)
    writer.close()


@pytest.mark.parametrize(
    ("kinds", "flags"),
    [
        ([b"append_commit"], [b"\x01"]),
        ([b"append"], [b"\x00"]),
        ([b"append_commit", b"append", b"append_commit"], [b"\x01", b"\x00", b"\x01"]),
    ],
)
def test_usage_is_told_of_a_block_whether_anybody_else_need_have_it(
    writer: Recorded, kinds: list[bytes], flags: list[bytes]
) -> None:
    opened(writer)
    give(writer, entries_of(Replica(Groups()), 3), kinds)
    writer.tick(0.0)
    sent = writer.taken()
    told = [message for message in sent if message[0] == "usage"]
    durable = [message for message in sent if message[0] == "replication"]
    assert len(told) + len(durable) == len(sent)
    assert [(message[1], message[4]) for message in told] == [(b"commit", f) for f in flags]
    assert b"".join(m[2] for m in told) == b"".join(m[2] for m in durable)
    assert told[-1][3] == durable[-1][3]
    writer.close()


def test_replication_hears_at_once_of_what_it_has_to_commit_and_of_the_rest_together(
    writer: Recorded,
) -> None:
    opened(writer)
    entries = entries_of(Replica(Groups()), TELL_RECORDS + 6)

    def durable() -> list[int]:
        return reported(writer.taken())[:, 0].tolist()

    for entry in entries[:2]:
        give(writer, [entry], [b"append_commit"])
    assert durable() == []
    give(writer, entries[2:3])
    assert durable() == [1, 2, 3]
    give(writer, entries[3:4])
    assert durable() == [4]
    give(writer, entries[4:5], [b"append_commit"])
    writer.tick(0.0)
    assert durable() == [5]
    for entry in entries[5:]:
        give(writer, [entry], [b"append_commit"])
    assert durable() == [entry.sequence for entry in entries[5 : 5 + TELL_RECORDS]]
    writer.close()
    assert durable() == [TELL_RECORDS + 6]


def test_after_a_restart_the_log_goes_on_where_it_ended(
    writer: Recorded, tmp_path: Path, lifeline: Lifeline
) -> None:
    replica = Replica(Groups())
    entries = entries_of(replica, 3)
    give(writer, entries)
    writer.close()
    again = started(tmp_path, lifeline)
    end = opened(again)
    groups = Groups.unpacked(end)
    assert (end["sequence"], end["block_seq"]) == (3, 3)  # the block, and the one that protects it
    assert groups.index.tolist() == replica._groups.index.tolist()
    assert groups.digest.tolist() == replica._groups.digest.tolist()
    more = entries_of(Replica(groups), 2)
    give(again, more)
    again.close()
    assert read_all(again.make_disk(), str(tmp_path)) == as_read(entries + more)


def test_many_records_go_through_several_files(writer: Recorded, tmp_path: Path) -> None:
    replica = Replica(Groups())
    entries = entries_of(replica, 40, size=300_000)
    give(writer, entries)
    rows = reported(writer.taken())
    assert rows[:, 0].tolist() == [entry.sequence for entry in entries]
    assert rows[-1, 1] >= 3
    snapshot = writer.telemetry.snapshot()
    assert snapshot is not None
    assert snapshot["counters"]["wal_appends_total"] == 40
    assert snapshot["counters"]["wal_rotations_total"] == rows[-1, 1] - 1
    assert snapshot["histograms"]["wal_fsync_duration_seconds"][0] > 0
    writer.close()
    assert read_all(writer.make_disk(), str(tmp_path)) == as_read(entries)


def test_a_record_larger_than_a_file_gets_a_file_of_its_own(
    writer: Recorded, tmp_path: Path
) -> None:
    replica = Replica(Groups())
    entries = [
        *entries_of(replica, 1),
        *entries_of(replica, 1, size=2 * SEGMENT_SIZE),
        *entries_of(replica, 1),
    ]
    give(writer, entries)
    writer.close()
    assert read_all(writer.make_disk(), str(tmp_path)) == as_read(entries)


def test_an_idle_log_is_protected_once(writer: Recorded) -> None:
    give(writer, entries_of(Replica(Groups()), 1))
    offset = writer._log.place.offset
    writer.tick(0.0)
    assert writer._log.place.offset == offset
    writer.tick(1e12)
    writer.tick(1e12)
    assert writer._log.place.offset == offset + 512
    writer.close()


def test_a_full_disk_stops_admission_and_acknowledges_nothing(
    tmp_path: Path, lifeline: Lifeline
) -> None:
    """The file system fills up while records wait; an operator makes room."""
    identity.write(str(tmp_path), identity.new_cluster(7))
    disk = CrashDisk()
    disk.room = SEGMENT_SIZE
    writer = started(tmp_path, lifeline, disk)
    opened(writer)
    entries = entries_of(Replica(Groups()), 20, size=300_000)
    give(writer, entries)
    *durable, (actor, kind, body), no_room = writer.taken()
    assert no_room == ("retention_sweeper", b"no_room", b"wal_writer", b"1")
    assert {sent[1] for sent in durable} == {b"commit", b"durable"}
    assert (actor, kind) == ("router", b"admission")
    assert msgpack.unpackb(body) == {
        "source": "wal_writer",
        "code": "disk_stop",
        "retry_after_ms": 1000,
    }
    assert not writer.drained()
    writer.tick(1.0)
    assert [frames[1] for frames in writer.taken()] == [b"admission", b"no_room"]
    disk.room = 4 * SEGMENT_SIZE
    writer.tick(2.0)
    *more, (_, kind, body), no_room = writer.taken()
    assert (kind, msgpack.unpackb(body)["code"]) == (b"admission", None)
    assert no_room[-1] == b"0"
    sequences = reported(durable + more)[:, 0].tolist()
    assert sequences == [entry.sequence for entry in entries]
    assert writer.drained()
    writer.close()
    assert read_all(disk, str(tmp_path)) == as_read(entries)


def test_damage_is_reported_with_file_and_offset(
    writer: Recorded, tmp_path: Path, lifeline: Lifeline
) -> None:
    give(writer, entries_of(Replica(Groups()), 3))
    writer.close()
    path = tmp_path / "wal.log"
    with path.open("r+b") as file:
        file.seek(4096 + 100)
        file.write(b"damage")
    with pytest.raises(Corrupt) as caught:
        started(tmp_path, lifeline)
    assert (caught.value.path, caught.value.offset) == (str(path), 4096 + 64)


def test_a_torn_tail_is_removed_and_counted(
    writer: Recorded, tmp_path: Path, lifeline: Lifeline
) -> None:
    give(writer, entries_of(Replica(Groups()), 3))
    start, end = 4096, writer._log.place.offset
    writer._log.close()  # no protection: as if the power had gone
    with (tmp_path / "wal.log").open("r+b") as file:
        file.seek(start + 512)
        file.write(bytes(512))
    again = started(tmp_path, lifeline)
    assert opened(again)["offset"] == start
    snapshot = again.telemetry.snapshot()
    assert snapshot is not None
    assert snapshot["counters"]["wal_truncated_bytes_total"] == end - start
    again.close()
    assert (tmp_path / "wal.log").read_bytes()[start:] == bytes(SEGMENT_SIZE - start)


def test_a_disk_that_fails_ends_the_node(writer: Recorded) -> None:
    give(writer, entries_of(Replica(Groups()), 1))
    os.close(writer._log._descriptor or 0)
    writer._log._descriptor = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(BootFailed) as caught:
        give(writer, entries_of(Replica(Groups()), 1))
    assert caught.value.exit_code == 74
    writer._log.close()
    writer._spare.close()


def test_blocks_are_bounded_in_records_and_bytes() -> None:
    small, large = Entry(1, b"h" * 100, b""), Entry(1, b"", bytes(BLOCK_FILL_SIZE))
    assert block_count([small] * 5) == 5
    assert block_count([small] * 5000) == RECORDS_PER_BLOCK_MAX
    assert block_count([large]) == 1
    assert block_count([large, small]) == 1
    assert block_count([small, large, small]) == 1
