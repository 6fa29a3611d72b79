"""Files written and read around the page cache: any size, and where that is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

from meterd.actors.files import direct_file
from meterd.actors.files import disk as disks
from meterd.actors.files.direct_file import (
    ALIGNMENT,
    PIECE_SIZE,
    Staging,
    Window,
    begin_direct,
    is_direct,
    page_memory,
)
from meterd.actors.files.disk import LocalDisk
from meterd.protocol.errors import DiskFull
from tests.support.crash_disk import CrashDisk
from tests.support.log_life import any_entries, open_log, read_all
from tests.support.replica import Replica

SIZES = (0, 1, 511, 512, ALIGNMENT - 1, ALIGNMENT, ALIGNMENT + 1, PIECE_SIZE, PIECE_SIZE + 4097)


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """A file that bypasses the page cache, if the directory for tests can do that."""
    opened = os.open(tmp_path / "raw", os.O_RDWR | os.O_CREAT)
    begin_direct(opened)
    if not is_direct(opened):
        pytest.skip("this file system has no direct writes")
    yield opened
    os.close(opened)


def content(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_written_and_read(tmp_path: Path, size: int) -> None:
    path, wanted = tmp_path / "file", content(size)
    parts = [wanted[: size // 3], np.frombuffer(wanted, np.uint8)[size // 3 :].data]
    disks.atomic_write(path, parts, Staging())
    assert path.read_bytes() == wanted
    opened = os.open(path, os.O_RDONLY)
    begin_direct(opened)
    window = Window()
    for offset, count in ((0, size), (size // 2, size), (513, 100), (size, 5), (size + 9, 5)):
        assert bytes(window.read(opened, offset, count)) == wanted[offset : offset + count]
    os.close(opened)


def test_all_pieces_but_the_last_can_be_written_directly() -> None:
    wanted = content(3 * PIECE_SIZE + ALIGNMENT + 7)
    staging, found = Staging(), b""
    sizes = []
    for piece in staging.pieces([wanted[:5], b"", wanted[5:PIECE_SIZE], wanted[PIECE_SIZE:]]):
        assert np.frombuffer(piece, np.uint8).ctypes.data % ALIGNMENT == 0
        found += piece
        sizes.append(len(piece))
    assert found == wanted
    assert sizes == [PIECE_SIZE] * 3 + [ALIGNMENT, 7]


def test_staging_is_used_for_one_file_after_another(tmp_path: Path) -> None:
    staging = Staging()
    for size in (PIECE_SIZE + 1, 3, 0):
        disks.atomic_write(tmp_path / "file", content(size), staging)
        assert (tmp_path / "file").read_bytes() == content(size)


def test_memory_is_zero_begins_at_a_page_and_is_not_shared_with_children() -> None:
    memory = page_memory(512)
    assert bytes(memory) == bytes(512)
    assert np.frombuffer(memory, np.uint8).ctypes.data % ALIGNMENT == 0
    child = os.fork()
    if child == 0:
        memory[0] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert memory[0] == 0


def test_bytes_that_cannot_go_directly_go_through_the_page_cache(descriptor: int) -> None:
    """An odd offset, or a device whose sectors are larger than those of the log."""
    disks.write_all(descriptor, page_memory(512), 0)
    assert is_direct(descriptor)
    disks.write_all(descriptor, b"odd", 513)
    assert not is_direct(descriptor)
    assert os.pread(descriptor, 9, 511) == b"\0\0odd"


def test_a_direct_write_that_is_cut_within_a_sector_is_continued(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, wanted = os.pwrite, page_memory(2 * ALIGNMENT)
    wanted[:] = content(2 * ALIGNMENT)

    def cut(fd: int, buffer: memoryview, at: int) -> int:
        done = real(fd, buffer, at)
        return 700 if at == 0 else done

    monkeypatch.setattr(os, "pwrite", cut)
    assert disks.write_all(descriptor, wanted, 0) == 2 * ALIGNMENT
    assert os.pread(descriptor, 3 * ALIGNMENT, 0) == bytes(wanted)


def test_a_file_system_without_direct_writes_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    real = direct_file.fcntl.fcntl

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if command == direct_file.fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "as tmpfs did")
        return int(real(fd, command, argument))

    monkeypatch.setattr(direct_file.fcntl, "fcntl", refuse)
    disk = LocalDisk()
    for name in ("a", "b"):
        opened = disk.create(str(tmp_path / name), 8192)
        disk.write(opened, page_memory(512), 512)
        disk.sync(opened)
        assert not is_direct(opened)
        disk.close(opened)
    assert [record.message for record in caplog.records] == [
        "the log is written through the page cache: here it cannot be bypassed"
    ]


def test_no_room_is_told_in_the_middle_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    disks.atomic_write(path, b"old")
    real = os.pwrite

    def full(fd: int, buffer: memoryview, at: int) -> int:
        if at:
            raise OSError(errno.ENOSPC, "no space left")
        return real(fd, buffer, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull):
        disks.atomic_write(path, content(PIECE_SIZE + 1), Staging())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_log_never_leaves_the_direct_way(descriptor: int, tmp_path: Path) -> None:
    """Headers, blocks, empty blocks and repairs are all written in whole sectors."""
    disk, random = LocalDisk(), Random(3)
    log, _, groups = open_log(disk, 16 * 1024, str(tmp_path))
    replica = Replica(groups)
    for _ in range(30):
        log.append(any_entries(replica, random))
        log.protect()
        assert is_direct(log._descriptor)
    assert log.file_number > 2
    log.close()
    assert read_all(LocalDisk(), str(tmp_path))


def test_the_disk_of_the_crash_tests_demands_whole_sectors_from_pages() -> None:
    disk = CrashDisk()
    opened = disk.create("/data/file", 4096)
    with pytest.raises(AssertionError):
        disk.write(opened, page_memory(512), 100)
    with pytest.raises(AssertionError):
        disk.write(opened, memoryview(page_memory(1024))[:700], 0)
    with pytest.raises(AssertionError):
        disk.write(opened, memoryview(page_memory(1024))[8:520], 0)
