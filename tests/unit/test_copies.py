"""What a copy may lack, made by hand: a model of every way in which a copier can be late."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_log import Log
from meterd.actors.log.wal_recovery import Owner, Recovery
from meterd.actors.log.wal_spare import Spare
from meterd.actors.starting import copies
from meterd.core.log.scan import FileScan, Groups
from meterd.protocol import checkpoint_format, log_format
from meterd.protocol.errors import BootFailed
from meterd.protocol.log_format import ACTIVE_NAME, SECTOR_SIZE, full_name, open_name
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory
from tests.support.log_life import any_entries, as_read
from tests.support.replica import Replica

OWNER = Owner(1, bytes(16), bytes(range(16)))
SEGMENT_SIZE = 16 * 1024


class Living:
    """A log in a directory, and what it holds after each append."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = Random(seed)
        self.directory = directory
        directory.mkdir()
        disk = LocalDisk()
        self.log = Log(disk, str(directory), Spare(disk, str(directory), SEGMENT_SIZE), OWNER, int)
        self.log.open(None)
        self.replica = Replica(Groups())
        self.held: list[tuple[int, bytes]] = []

    def append(self) -> None:
        entries = any_entries(self.replica, self.random)
        self.log.append(entries)
        self.held += as_read(entries)


def read(directory: Path) -> list[tuple[int, bytes]]:
    """Start on a directory as a node does; return the records."""
    end = Recovery(LocalDisk(), str(directory), OWNER, None, lambda _: None).run()
    assert end is not None and end.torn is None
    records = []
    names = [full_name(number) for number in range(1, end.file_number)] + [ACTIVE_NAME]
    for name in names:
        buffer = memoryview((directory / name).read_bytes())
        for block in FileScan(name, buffer, active=name == ACTIVE_NAME):
            for one in block.records:
                raw = bytes(buffer[one.offset : one.offset + one.size])
                records.append((one.sequence, raw))
    return records


class Copier:
    """Lists first, then copies names one by one in any order, file by file in pieces."""

    def __init__(self, living: Living, target: Path) -> None:
        self.living, self.target = living, target
        target.mkdir()
        self.names = sorted(os.listdir(living.directory))

    def copy_one(self, name: str, pause: int) -> None:
        """Copy a file; so many appends happen between its two halves."""
        try:
            with (self.living.directory / name).open("rb") as source:
                size = os.fstat(source.fileno()).st_size
                half = size // 2 // SECTOR_SIZE * SECTOR_SIZE
                if self.living.random.random() < 0.5:
                    half = self.living.log.place.offset // SECTOR_SIZE * SECTOR_SIZE
                raw = source.read(half)
                for _ in range(pause):
                    self.living.append()
                raw += source.read()
        except FileNotFoundError:
            return
        (self.target / name).write_bytes(raw)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 25), st.data())
def test_a_copy_holds_what_was_there_when_it_began(tmp_path_factory, seed, before, data):
    home = tmp_path_factory.mktemp("copies")
    living = Living(home / "node", seed)
    for _ in range(before):
        living.append()
    began = list(living.held)
    copier = Copier(living, home / "copy")
    order = data.draw(st.permutations(copier.names))
    for name in order:
        for _ in range(data.draw(st.integers(0, 5))):
            living.append()
        copier.copy_one(name, data.draw(st.integers(0, 3)))
    living.log.close()
    copies.settle(str(home / "copy"))
    found = read(home / "copy")
    assert found[: len(began)] == began
    assert found == living.held[: len(found)]
    # Whoever ends in between does it again.
    copies.settle(str(home / "copy"))
    assert read(home / "copy") == found
    shutil.rmtree(home)


def test_a_flipped_bit_in_a_copy_is_still_corruption(tmp_path):
    living = Living(tmp_path / "node", 5)
    while living.log.file_number < 3:
        living.append()
    living.append()
    living.log.close()
    for name in (full_name(living.log.file_number - 1), ACTIVE_NAME):
        shutil.copytree(tmp_path / "node", tmp_path / "copy")
        (tmp_path / "copy" / open_name(living.log.file_number)).unlink()
        path = tmp_path / "copy" / name
        raw = bytearray(path.read_bytes())
        raw[log_format.FILE_HEADER_SIZE + 70] ^= 1
        path.write_bytes(raw)
        with pytest.raises(BootFailed, match=name) as caught:
            copies.settle(str(tmp_path / "copy"))
        assert caught.value.exit_code == 65
        shutil.rmtree(tmp_path / "copy")


def test_an_empty_directory_is_a_copy_of_one(tmp_path):
    copies.settle(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def save(path: Path, position: tuple[int, int], refused: dict[int, list[object]]) -> None:
    """Write a checkpoint that names no other file, with bitmaps of refused rows."""
    state = {"log": {"sequence": 0, "file_number": position[0]}, "position": list(position)}
    state |= {"refused": refused, "runs": [], "parts": []}
    path.write_bytes(b"".join(checkpoint_format.encode(state, {})))


def test_a_checkpoint_that_knows_a_segments_rows_by_the_segment_alone_needs_it(tmp_path):
    log = LogDirectory(tmp_path)
    for number in (1, 2):
        log.write([LoggedEvent("acme", "e", number, 1, 1)])
        log.seal(segmented=number == 1)
    log.write([LoggedEvent("acme", "e", 3, 1, 1)])
    newest, before = (tmp_path / name for name in copies.CHECKPOINTS)
    save(newest, (3, log_format.FILE_HEADER_SIZE), {})
    save(before, (3, log_format.FILE_HEADER_SIZE), {2: [b"", 1]})
    copies.settle(str(tmp_path))
    assert before.exists() and not newest.exists()
    log.make_segment(2)
    save(newest, (3, log_format.FILE_HEADER_SIZE), {})
    copies.settle(str(tmp_path))
    assert before.exists() and newest.exists()
