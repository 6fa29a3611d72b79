"""The real disk and that of the crash tests keep one contract; files are replaced whole or not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from meterd.actors.files import disk as disks
from meterd.actors.files.direct_file import page_memory
from meterd.actors.files.disk import DirectoryLock, Disk, LocalDisk
from meterd.protocol.errors import DiskFull, FsyncFailed
from meterd.protocol.log_format import SECTOR_SIZE
from tests.support.crash_disk import CrashDisk


def in_pages(text: bytes) -> memoryview:
    """Sectors that begin with a text, where a disk may be written from."""
    memory = page_memory(SECTOR_SIZE)
    memory[: len(text)] = text
    return memoryview(memory)


@pytest.fixture(params=[LocalDisk, CrashDisk])
def disk(request: pytest.FixtureRequest) -> Disk:
    made: Disk = request.param()
    return made


def test_a_new_file_is_zeros(disk: Disk, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    descriptor = disk.create(path, 10_000)
    assert disk.size(descriptor) == 10_000
    assert bytes(disk.view(descriptor)) == bytes(10_000)
    disk.close(descriptor)
    assert disk.names(str(tmp_path)) == ["file"]


def test_creating_replaces_what_was_there(disk: Disk, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    first = disk.create(path, 4096)
    disk.write(first, in_pages(b"old"), 0)
    second = disk.create(path, 512)
    assert bytes(disk.view(second)) == bytes(512)
    disk.close(first)
    disk.close(second)


def test_what_is_written_is_read(disk: Disk, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    descriptor = disk.create(path, 4096)
    disk.write(descriptor, in_pages(b"onetwo"), 512)
    disk.sync(descriptor)
    disk.close(descriptor)
    again = disk.open(path)
    disk.write(again, in_pages(b"three"), 1536)
    assert bytes(disk.view(again))[511:519] == b"\0onetwo\0"
    assert bytes(disk.view(again))[1535:1542] == b"\0three\0"
    disk.truncate(again, 515)
    assert disk.size(again) == 515
    assert bytes(disk.view(again))[-3:] == b"one"
    disk.close(again)


def test_an_empty_file_has_an_empty_view(disk: Disk, tmp_path: Path) -> None:
    descriptor = disk.create(str(tmp_path / "file"), 0)
    assert len(disk.view(descriptor)) == 0
    disk.close(descriptor)


def test_names_change_by_rename_and_remove(disk: Disk, tmp_path: Path) -> None:
    directory = str(tmp_path)
    for name in ("b", "a", "c"):
        disk.close(disk.create(f"{directory}/{name}", 512))
    disk.rename(f"{directory}/a", f"{directory}/c")
    disk.remove(f"{directory}/b")
    disk.remove(f"{directory}/b")
    disk.sync_directory(directory)
    assert disk.names(directory) == ["c"]
    with pytest.raises(FileNotFoundError):
        disk.open(f"{directory}/a")


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "raw", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def test_a_write_that_the_kernel_cuts_short_is_continued(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a signal: the kernel has taken some bytes and says how many."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, buffer, at: real(fd, buffer[:7], at))
    assert disks.write_all(descriptor, b"abcdefghijklmnopqrstuvwxyz", 3) == 26
    assert disks.write_all(descriptor, b"", 3) == 0
    assert os.pread(descriptor, 99, 3) == b"abcdefghijklmnopqrstuvwxyz"


def test_arrays_are_written_by_their_bytes(descriptor: int) -> None:
    array = np.arange(6, dtype=np.uint64).reshape(2, 3)
    assert disks.write_all(descriptor, memoryview(array), 1) == 48
    assert os.pread(descriptor, 99, 1) == array.tobytes()


def test_no_room_left_is_told_from_other_errors() -> None:
    full = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(DiskFull):
        disks.write_all(full, b"x", 0)
    os.close(full)
    with pytest.raises(OSError) as caught:
        disks.write_all(full, b"x", 0)
    assert caught.value.errno == errno.EBADF


def test_what_cannot_be_synced_is_fatal() -> None:
    reading, writing = os.pipe()
    with pytest.raises(FsyncFailed):
        disks.sync_data(writing)
    os.close(reading)
    os.close(writing)


def test_atomic_write_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    disks.atomic_write(path, b"one")
    disks.atomic_write(path, [b"two", memoryview(b"three"), np.arange(2, dtype=np.uint8)])
    assert path.read_bytes() == b"twothree\0\1"
    disks.atomic_write(str(path), memoryview(np.zeros(3, np.uint64)))
    assert path.read_bytes() == bytes(24)
    assert os.listdir(tmp_path) == ["file"]


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    disks.atomic_write(path, b"old")

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise DiskFull("in the middle")

    with pytest.raises(DiskFull):
        disks.atomic_write(path, parts())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    first, second = DirectoryLock(str(tmp_path)), DirectoryLock(str(tmp_path))
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
