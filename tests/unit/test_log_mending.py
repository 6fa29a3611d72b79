"""A damaged block in the middle of the log of a node with peers: what a start makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest

from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_log import Log
from meterd.actors.log.wal_recovery import End, Recovery
from meterd.actors.log.wal_spare import Spare
from meterd.actors.starting.identity import Identity
from meterd.core.kernels import scan
from meterd.core.log.checksum_repair import corrections
from meterd.core.log.group_logs import unpack
from meterd.core.log.scan import FileScan, Groups
from meterd.protocol import log_facts, log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import (
    ACTIVE_NAME,
    BLOCK_HEADER_SIZE,
    EVENTS,
    RECORD_HEADER_SIZE,
    TERM_ROW,
)
from tests.support.log_life import NOW, OWNER, events_entry, meta_entry
from tests.support.replica import Replica

SEGMENT_SIZE = 1 << 20
THREE = tuple((number, f"127.0.0.1:{number}", "") for number in (7, 8, 9))
WHO = Identity(7, OWNER.cluster_id.hex(), OWNER.identity_key.hex(), 1, 1, "", 0, THREE)
BLOCKS = 6
DAMAGED = 2  # the block that is damaged


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of some blocks, each with a command and two records of events."""
    directory = tmp_path_factory.mktemp("log")
    disk, random, replica = LocalDisk(), Random(3), Replica(Groups())
    log = Log(disk, str(directory), Spare(disk, str(directory), SEGMENT_SIZE), OWNER, lambda: NOW)
    log.open(None)
    for _ in range(BLOCKS):
        log.append(
            [
                events_entry(replica, random, 40),
                meta_entry(replica, random, 30),
                events_entry(replica, random, 9),
            ]
        )
    log.close()
    return directory


def recover(directory: Path, mends: bool = True) -> End:
    end = Recovery(LocalDisk(), str(directory), OWNER, None, lambda _: None, WHO, mends).run()
    assert end is not None
    return end


def blocks(directory: Path) -> list[tuple[int, list[log_format.Record]]]:
    data = (directory / ACTIVE_NAME).read_bytes()
    return [(b.offset, b.records) for b in FileScan(ACTIVE_NAME, memoryview(data), active=True)]


def damage(written: Path, directory: Path, at: int, content: bytes) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(written, directory)
    with (directory / ACTIVE_NAME).open("r+b") as file:
        file.seek(at)
        file.write(content)
    return directory


def identities(end: End) -> list[tuple[int, ...]]:
    ops = end.logs.ops()
    return [(int(op["group"]), int(op["index"]), *op["digest"].tolist()) for op in ops]


def holes(end: End) -> set[tuple[int, int]]:
    ops = end.logs.ops()
    return {(int(op["group"]), int(op["index"])) for op in ops[ops["damaged"] == 1]}


def test_any_wrong_byte_costs_no_identity(written: Path, tmp_path: Path) -> None:
    whole = recover(written)
    data = (written / ACTIVE_NAME).read_bytes()
    offset, records = blocks(written)[DAMAGED]
    for at in range(offset, records[-1].offset + records[-1].size, 31):
        directory = damage(written, tmp_path / "node", at, bytes([data[at] ^ 0x10]))
        end = recover(directory)
        assert identities(end) == identities(whole), f"byte {at}"
        assert end.damaged_blocks == 1
        assert not any(one.uncertain for one in unpack(end.logs.packed()))
        payload_of = [
            record
            for record in records
            if record.offset + record.size > at >= record.offset + record.size - len(record.payload)
        ]
        lost = {
            (int(row["partition"]), int(row["index"]))
            for record in payload_of
            for row in record.slices
        }
        assert holes(end) == lost, f"byte {at}"
        again = recover(directory)
        assert (identities(again), holes(again)) == (identities(end), lost)
        assert again.damaged_blocks == 0


def test_lost_rows_are_rows_that_count_for_nothing(written: Path, tmp_path: Path) -> None:
    offset, records = blocks(written)[DAMAGED]
    record = records[0]
    at = record.offset + record.size - len(record.payload)
    directory = damage(written, tmp_path / "node", at, b"\xaa" * len(record.payload))
    recover(directory)
    mended = dict(blocks(directory))[offset][0]
    assert (mended.row_count, mended.heap_size) == (record.row_count, record.heap_size)
    assert (mended.slices["flags"] == log_format.NOT_HERE).all()
    columns = log_format.columns(mended)
    assert int(columns.heap_end[-1]) == record.heap_size
    assert (np.diff(columns.heap_end.astype(np.int64)) > 4).all()
    data = np.fromfile(directory / ACTIVE_NAME, np.uint8)
    assert int(scan.whole_blocks(data[offset : offset + 512 * 20])) > 0


def test_a_lost_head_ends_logs_before_it(written: Path, tmp_path: Path) -> None:
    whole = recover(written)
    record = blocks(written)[DAMAGED][1][2]
    directory = damage(written, tmp_path / "node", record.offset, b"\xaa" * 100)
    end = recover(directory)
    lost = {int(row["partition"]): int(row["index"]) for row in record.slices}
    known = set(identities(end))
    assert known < set(identities(whole))
    found = unpack(end.logs.packed())
    for group, start in enumerate(found):
        last = int(start.ops["index"][-1]) if len(start.ops) else 0
        if group in lost:
            assert last == lost[group] - 1
            assert start.uncertain
    later = {
        int(row["partition"])
        for _, some in blocks(written)[DAMAGED + 1 :]
        for one in some
        for row in one.slices
    }
    for group in later - set(lost):
        assert not found[group].uncertain
    again = recover(directory)
    assert identities(again) == identities(end)
    assert [one.uncertain for one in unpack(again.logs.packed())] == [
        one.uncertain for one in found
    ]


def test_it_is_certain_again_when_that_was_said_after_the_damage(
    written: Path, tmp_path: Path
) -> None:
    record = blocks(written)[DAMAGED][1][2]
    directory = damage(written, tmp_path / "node", record.offset, b"\xaa" * 100)
    end = recover(directory)
    logs = end.logs
    doubtful = [g for g, one in enumerate(unpack(logs.packed())) if one.uncertain]
    assert doubtful
    for flags, said in ((0, True), (log_facts.UNCERTAIN, True), (0, False)):
        rows = np.zeros(len(doubtful), TERM_ROW)
        rows["group"], rows["term"], rows["flags"] = doubtful, 2, flags
        logs.promise(rows)
        found = unpack(logs.packed())
        assert all(found[group].uncertain == said for group in doubtful)


def test_a_lost_block_header_is_made_anew(written: Path, tmp_path: Path) -> None:
    offset, _ = blocks(written)[DAMAGED]
    directory = damage(written, tmp_path / "node", offset, b"\xaa" * BLOCK_HEADER_SIZE)
    end = recover(directory)
    assert identities(end) == identities(recover(written))
    assert not holes(end)
    assert end.place == recover(written).place


def test_what_may_have_been_a_vote_is_refused(written: Path, tmp_path: Path) -> None:
    offset, records = blocks(written)[DAMAGED]
    assert records[1].kind != EVENTS
    at = records[1].offset
    directory = damage(written, tmp_path / "node", at, b"\xaa" * RECORD_HEADER_SIZE)
    with pytest.raises(Corrupt) as caught:
        recover(directory)
    assert offset <= caught.value.offset <= at


def test_without_mending_nothing_changes(written: Path, tmp_path: Path) -> None:
    record = blocks(written)[DAMAGED][1][0]
    at = record.offset + record.size - 8
    directory = damage(written, tmp_path / "node", at, b"\xaa" * 8)
    before = (directory / ACTIVE_NAME).read_bytes()
    with pytest.raises(Corrupt) as caught:
        recover(directory, mends=False)
    assert caught.value.offset == record.offset
    assert (directory / ACTIVE_NAME).read_bytes() == before


def test_a_node_alone_is_refused(written: Path, tmp_path: Path) -> None:
    record = blocks(written)[DAMAGED][1][0]
    at = record.offset + record.size - 8
    directory = damage(written, tmp_path / "node", at, b"\xaa" * 8)
    with pytest.raises(Corrupt) as caught:
        Recovery(LocalDisk(), str(directory), OWNER, None, lambda _: None, None, mends=True).run()
    assert caught.value.offset == record.offset


def test_one_wrong_byte_is_found_from_a_checksum() -> None:
    random = Random(1)
    for _ in range(50):
        message = random.randbytes(random.choice((1, 60, 300)))
        crc = log_format.crc32c(message).to_bytes(4, "little")
        wrong = bytearray(message + crc)
        wrong[random.randrange(len(wrong))] ^= random.randint(1, 255)
        found = corrections(bytes(wrong[:-4]), bytes(wrong[-4:]))
        assert (message, crc) in found
