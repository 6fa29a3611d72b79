"""A disk in memory that remembers what was not synced, and can crash at every call.

What a crash leaves behind is chosen by a seed among everything that the rules of disks allow:
each 512-byte sector written since the file's last sync has its old content or that of any write
since, independently of all others; of the names changed since the directory's last sync the first
few are kept and the rest are lost.  A write or a sync that the crash interrupts is the same thing
as one that never ended, so crashing *before* each call covers every point in time.

`TellsLies` names the promises that a disk can be made to break, to show that the tests notice.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from random import Random

import numpy as np

from meterd.actors.files.direct_file import ALIGNMENT, Buffer
from meterd.actors.files.disk import Pace, at_once
from meterd.protocol.errors import DiskFull, FsyncFailed

SECTOR = 512


class Crashed(BaseException):
    """The power went.  Not an Exception: nothing under test may catch it."""


class TellsLies(enum.Flag):
    """Promises that a disk breaks."""

    NOTHING = 0
    SYNC = enum.auto()
    SYNC_DIRECTORY = enum.auto()


class File:
    """The bytes of a file: as everybody sees them, and what of them is durable."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.durable = bytes(content)
        self.versions: dict[int, list[bytes]] = {}  # sector: what was written since the sync
        self.lost: set[int] = set()  # sectors that a sync has failed to write: no other will

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        assert end <= len(self.content), "the log never grows a file"
        self.content[offset:end] = data
        for sector in range(offset // SECTOR, -(-end // SECTOR)):
            written = bytes(self.content[sector * SECTOR : (sector + 1) * SECTOR])
            self.versions.setdefault(sector, []).append(written)
            self.lost.discard(sector)

    def sync(self) -> None:
        durable = bytearray(self.content)
        for sector in self.lost:
            place = slice(sector * SECTOR, (sector + 1) * SECTOR)
            durable[place] = self.durable[place]
        self.durable = bytes(durable)
        self.versions = {n: self.versions[n] for n in self.lost}

    def fail(self) -> None:
        """The kernel drops what it could not write, and calls it clean."""
        self.lost |= set(self.versions)

    def truncate(self, size: int) -> None:
        del self.content[size:]
        self.lost = {n for n in self.lost if n * SECTOR < size}
        self.sync()

    def crashed(self, random: Random) -> File:
        """Return what may be there after the crash."""
        content = bytearray(self.durable)
        kept = random.choice((0.1, 0.5, 0.9))
        for sector, versions in sorted(self.versions.items()):
            if random.random() < kept:
                written = random.choice(versions)
                content[sector * SECTOR : sector * SECTOR + len(written)] = written
        return File(bytes(content))


class CrashDisk:
    """Implements the port `meterd.actors.files.disk.Disk` for a single directory."""

    def __init__(self, lies: TellsLies = TellsLies.NOTHING) -> None:
        self.calls_left: int | None = None  # None: no crash
        self.syncs_left: int | None = None  # None: no sync fails; else this one does, once
        self.room: int | None = None  # bytes for new files; None: endless
        # Is there no room for a name, or for the inode of a new file, at this call?
        self.has_no_name: Callable[[], bool] = lambda: False
        self._lies = lies
        self._names: dict[str, File] = {}
        self._durable_names: dict[str, File] = {}
        self._changes: list[dict[str, File]] = []  # the names after each change since the sync
        self._open: dict[int, File] = {}
        self._next_descriptor = 3

    def crashed(self, random: Random) -> CrashDisk:
        """Return a disk as it may be found after a crash now."""
        after = CrashDisk(self._lies)
        names = random.choice([self._durable_names, *self._changes])
        files = {id(file): file.crashed(random) for file in names.values()}
        after._names = {name: files[id(file)] for name, file in names.items()}
        after._durable_names = dict(after._names)
        after.room = self.room
        return after

    def content(self, path: str) -> bytearray:
        """Return the bytes of a file, for tests that damage them."""
        return self._names[path].content

    def names(self, directory: str) -> list[str]:
        self._call()
        return sorted(path.removeprefix(directory + "/") for path in self._names)

    def open(self, path: str) -> int:
        self._call()
        if path not in self._names:
            raise FileNotFoundError(path)
        return self._opened(self._names[path])

    def create(self, path: str, size: int, pace: Pace = at_once) -> int:
        self.remove(path)
        self._call()
        self._need_name()
        if self.room is not None:
            if size > self.room:
                raise DiskFull("no room in this test")
            self.room -= size
        file = File()
        self._rename({**self._names, path: file})
        self._call()
        pace(size)
        file.content = bytearray(size)
        file.sync()
        return self._opened(file)

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]

    def size(self, descriptor: int) -> int:
        return len(self._open[descriptor].content)

    def view(self, descriptor: int) -> memoryview:
        return memoryview(bytes(self._open[descriptor].content))

    def write(self, descriptor: int, buffer: Buffer, offset: int) -> None:
        self._call()
        view = memoryview(buffer)
        assert offset % SECTOR == view.nbytes % SECTOR == 0, "a part of a sector"
        if view.nbytes:
            assert np.frombuffer(view, np.uint8).ctypes.data % ALIGNMENT == 0, "not from a page"
        self._open[descriptor].write(bytes(view), offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._call()
        self._open[descriptor].truncate(size)

    def sync(self, descriptor: int) -> None:
        self._call()
        if self.syncs_left == 0:
            self.syncs_left = None
            self._open[descriptor].fail()
            raise FsyncFailed("a sync fails in this test")
        if self.syncs_left is not None:
            self.syncs_left -= 1
        if TellsLies.SYNC not in self._lies:
            self._open[descriptor].sync()

    def rename(self, old: str, new: str) -> None:
        self._call()
        self._need_name()
        names = dict(self._names)
        names[new] = names.pop(old)
        self._rename(names)

    def link(self, path: str, other: str) -> None:
        self._call()
        self._rename({**self._names, other: self._names[path]})

    def remove(self, path: str) -> None:
        self._call()
        if path in self._names:
            names = dict(self._names)
            del names[path]
            self._rename(names)

    def sync_directory(self, directory: str) -> None:
        self._call()
        if TellsLies.SYNC_DIRECTORY not in self._lies:
            self._durable_names = dict(self._names)
            self._changes.clear()

    def _rename(self, names: dict[str, File]) -> None:
        self._names = names
        self._changes.append(names)

    def _need_name(self) -> None:
        if self.has_no_name():
            raise DiskFull("no room for a name in this test")

    def _opened(self, file: File) -> int:
        self._next_descriptor += 1
        self._open[self._next_descriptor] = file
        return self._next_descriptor

    def _call(self) -> None:
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise Crashed
            self.calls_left -= 1
