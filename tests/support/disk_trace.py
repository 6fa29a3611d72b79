"""Writes down every change that a process makes to files.

`DiskTrace` stands between a process and its file system: everything below its root that is
created, written, synced or renamed is done for real and noted in order.  `disk_image.py` replays a
beginning of that: what a disk may hold when the power goes there.

Names are those of the process; `crash_disk.py` does the same for the log's own port to the disk,
which takes neither a file system nor a process.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from meterd.actors.backups import restoring

Name = tuple[int, str]  # number of the directory, name in it


class Call(NamedTuple):
    """One change; files are numbered in the order they come up."""

    kind: str  # write, size, sync, lost, names, sync_names, mark
    path: str  # below the root
    file: int = 0
    offset: int = 0  # of a write; of `size` the size
    data: bytes = b""
    names: tuple[tuple[Name, int | None], ...] = ()  # what the names stand for from now on
    said: Any = None  # of a mark


class DiskTrace:
    """Use it in a process of its own: it takes the place of functions of module os."""

    def __init__(self, root: Path) -> None:
        """`root`: an existing directory; what lies in it now counts as durable."""
        self.root = os.path.realpath(root)
        self.calls: list[Call] = []
        # Called before each call with what it does and where; raises what is to go wrong.  What
        # it does: create, grow, write, resize, sync, rename, link, remove.
        self.fault: Callable[[str, str], None] | None = None
        self._lock = threading.RLock()
        self._numbers: dict[tuple[int, int], int] = {}
        self.inodes: dict[int, int] = {}  # by number
        self._real = {name: getattr(os, name) for name in _WRAPPED}
        self.start: list[tuple[Name, int, bytes | None]] = []
        self._number(os.stat(self.root), new=True)
        self._take_stock(self.root)

    def _take_stock(self, directory: str) -> None:
        parent = self._number(os.stat(directory))
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            number = self._number(entry.stat(follow_symlinks=False))
            is_directory = entry.is_dir()
            content = None if is_directory else Path(entry.path).read_bytes()
            self.start.append(((parent, entry.name), number, content))
            if is_directory:
                self._take_stock(entry.path)

    def install(self) -> None:
        for name in _WRAPPED:
            setattr(os, name, getattr(self, f"_{name}"))
        restoring.exchange = self._exchange

    def mark(self, said: Any) -> None:
        """Note something between the calls."""
        with self._lock:
            self.calls.append(Call("mark", "", said=said))

    def forget_functions(self) -> None:
        """Keep only data, so that it can be sent to another process."""
        self.fault, self._real, self._lock = None, {}, None

    # Where a call goes

    def _number(self, found: os.stat_result, new: bool = False) -> int:
        key = (found.st_dev, found.st_ino)
        if new or key not in self._numbers:
            self._numbers[key] = len(self.inodes)
            self.inodes[len(self.inodes)] = found.st_ino
        return self._numbers[key]

    def _whole(self, path: Any, dir_fd: int | None = None) -> str:
        text = os.fsdecode(os.fspath(path))
        if dir_fd is not None and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        text = os.path.abspath(text)
        return os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self.root + "/")

    def _of(self, descriptor: int) -> tuple[int, str] | None:
        """The file behind a descriptor, and its path below the root; None elsewhere."""
        try:
            found = os.fstat(descriptor)
        except OSError:
            return None
        number = self._numbers.get((found.st_dev, found.st_ino))
        path = os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")
        if number is None or not (path == self.root or self._is_inside(path)):
            return None
        return number, path[len(self.root) + 1 :]

    def _name(self, path: str) -> Name:
        return self._number(os.stat(os.path.dirname(path))), os.path.basename(path)

    def _go(self, kind: str, path: str) -> None:
        if self.fault is not None:
            self.fault(kind, path)

    def _changed(self, path: str, *names: tuple[Name, int | None]) -> None:
        self.calls.append(Call("names", path[len(self.root) + 1 :], names=names))

    # In the place of module os

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        whole = self._whole(path, dir_fd)
        if not self._is_inside(whole) or not flags & (os.O_CREAT | os.O_TRUNC):
            return self._real["open"](path, flags, mode, dir_fd=dir_fd)
        with self._lock:
            existed = os.path.lexists(whole)
            if not existed:
                self._go("create", whole)
            descriptor = self._real["open"](path, flags, mode, dir_fd=dir_fd)
            found = os.fstat(descriptor)
            if not existed:
                self._changed(whole, (self._name(whole), self._number(found, new=True)))
            elif flags & os.O_TRUNC:
                self.calls.append(Call("size", whole[len(self.root) + 1 :], self._number(found)))
            return descriptor

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        with self._lock:
            place = self._of(descriptor)
            if place is None:
                return self._real["pwrite"](descriptor, data, offset)
            end = offset + memoryview(data).nbytes
            self._go("grow" if end > os.fstat(descriptor).st_size else "write", place[1])
            written = self._real["pwrite"](descriptor, data, offset)
            taken = bytes(memoryview(data).cast("B")[:written])
            self.calls.append(Call("write", place[1], place[0], offset, taken))
            return written

    def _resized(self, name: str, descriptor: int, *arguments: int) -> None:
        with self._lock:
            place = self._of(descriptor)
            if place is not None:
                self._go("grow" if name == "posix_fallocate" else "resize", place[1])
            self._real[name](descriptor, *arguments)
            if place is not None:
                size = os.fstat(descriptor).st_size
                self.calls.append(Call("size", place[1], place[0], size))

    def _ftruncate(self, descriptor: int, size: int) -> None:
        self._resized("ftruncate", descriptor, size)

    def _posix_fallocate(self, descriptor: int, offset: int, size: int) -> None:
        self._resized("posix_fallocate", descriptor, offset, size)

    def _synced(self, name: str, descriptor: int) -> None:
        with self._lock:
            place = self._of(descriptor)
            if place is not None:
                try:
                    self._go("sync", place[1])
                except OSError:
                    self.calls.append(Call("lost", place[1], place[0]))
                    raise
                is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                kind = "sync_names" if is_directory else "sync"
                self.calls.append(Call(kind, place[1], place[0]))
        # The root may lie in memory, and what counts as durable is decided here.

    def _fsync(self, descriptor: int) -> None:
        self._synced("fsync", descriptor)

    def _fdatasync(self, descriptor: int) -> None:
        self._synced("fdatasync", descriptor)

    def _rename(self, old: Any, new: Any, **places: Any) -> None:
        one, other = self._whole(old), self._whole(new)
        with self._lock:
            if self._is_inside(other):
                self._go("rename", other)
            names = self._name(one), self._name(other)
            number = self._number(os.lstat(one))
            self._real["rename"](old, new, **places)
            if self._is_inside(other):
                self._changed(other, (names[0], None), (names[1], number))

    _replace = _rename

    def _exchange(self, old: str, new: str) -> None:
        """In the place of `restoring.exchange`, which takes a system call of its own."""
        one, other = self._whole(old), self._whole(new)
        with self._lock:
            self._go("rename", other)
            numbers = self._number(os.lstat(one)), self._number(os.lstat(other))
            library = ctypes.CDLL(None, use_errno=True)
            assert library.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0
            self._changed(other, (self._name(one), numbers[1]), (self._name(other), numbers[0]))

    def _link(self, old: Any, new: Any, **more: Any) -> None:
        other = self._whole(new)
        with self._lock:
            if self._is_inside(other):
                self._go("link", other)
            self._real["link"](old, new, **more)
            if self._is_inside(other):
                self._changed(other, (self._name(other), self._number(os.lstat(other))))

    def _removed(self, name: str, path: Any, dir_fd: int | None) -> None:
        whole = self._whole(path, dir_fd)
        with self._lock:
            if self._is_inside(whole):
                self._go("remove", whole)
            self._real[name](path, dir_fd=dir_fd)
            if self._is_inside(whole):
                self._changed(whole, (self._name(whole), None))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("unlink", path, dir_fd)

    _remove = _unlink

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("rmdir", path, dir_fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        whole = self._whole(path, dir_fd)
        with self._lock:
            if self._is_inside(whole):
                self._go("create", whole)
            self._real["mkdir"](path, mode, dir_fd=dir_fd)
            if self._is_inside(whole):
                number = self._number(os.lstat(whole), new=True)
                self.calls.append(
                    Call(
                        "names",
                        whole[len(self.root) + 1 :],
                        -1,
                        names=((self._name(whole), number),),
                    )
                )


_WRAPPED = (
    "open",
    "pwrite",
    "ftruncate",
    "posix_fallocate",
    "fsync",
    "fdatasync",
    "rename",
    "replace",
    "link",
    "unlink",
    "remove",
    "rmdir",
    "mkdir",
)
