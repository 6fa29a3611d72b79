"""Puts bytes on stable storage: the only module that calls fsync.

`Disk` is the small port through which the log reaches its files; `LocalDisk` is the real one, and
tests put one in its place that remembers what was synced and what was not.  Everything else in
the data directory is replaced whole, by `atomic_write`.

Rules that every function keeps:
  * a write is complete or raises: short writes are continued (EINTR the interpreter repeats)
  * no room is DiskFull wherever it shows: bytes, inodes, a quota, in open, allocate, write, rename;
    descriptors that run out (EMFILE, ENFILE) are no shortage of the disk and stay OSError
  * large files are written around the page cache (`direct_file.py`), which changes no promise
  * after DiskFull the caller may wait and try again: what was there before is still there
  * a failed sync is FsyncFailed and final: the kernel may have dropped the pages and call them
    clean, so the process must end and read again what is really there
  * a name (create, rename, unlink) is durable only after `sync_directory`
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from meterd.actors.files.direct_file import (
    Buffer,
    Staging,
    begin_direct,
    is_direct,
    page_memory,
    pwrite,
)
from meterd.protocol.errors import DiskFull, FsyncFailed

# Zeros are written in pieces, so that an append beside it waits for one at most.
FILL_SIZE = 512 * 1024

FILE_MODE = 0o640
# Large files become shorter by so much at a time before they are deleted.
REMOVE_STEP = 16 * 1024 * 1024

# What a system call says when bytes, inodes or a quota have run out.
FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)

# Told how many bytes of a new file are filled; may wait, so that filling disturbs nobody, and says
# whether to go on: what is allocated and not filled reads as zeros too, it only syncs more slowly.
Pace = Callable[[int], bool]


def at_once(filled: int) -> bool:
    """Fill without waiting."""
    return True


class Disk(Protocol):
    """What the log does to files.  Every method raises OSError, DiskFull or FsyncFailed."""

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, sorted."""

    def open(self, path: str) -> int:
        """Open an existing file for reading and writing."""

    def create(self, path: str, size: int, pace: Pace = at_once) -> int:
        """Make a file of `size` zeros, durable but for its name; replace one that exists."""

    def close(self, descriptor: int) -> None:
        """Close a file."""

    def size(self, descriptor: int) -> int:
        """Return the size of an open file."""

    def view(self, descriptor: int) -> memoryview:
        """Return the bytes of an open file, read-only, not copied."""

    def write(self, descriptor: int, buffer: Buffer, offset: int) -> None:
        """Write whole sectors, from memory that begins at a page (`page_memory`)."""

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file; its new size is durable."""

    def sync(self, descriptor: int) -> None:
        """Put the bytes of a file, and its size, on stable storage."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what has it; after DiskFull it has the old one."""

    def link(self, path: str, other: str) -> None:
        """Give a file a second name, replacing what has it; where that is possible."""

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def sync_directory(self, directory: str) -> None:
        """Put the names of a directory on stable storage."""


class LocalDisk:
    """The file system of this machine, written around the page cache where it offers that."""

    def __init__(self) -> None:
        self._direct = True  # nothing was refused so far
        self._zeros = page_memory(FILL_SIZE)

    def names(self, directory: str) -> list[str]:
        return sorted(os.listdir(directory))

    def open(self, path: str) -> int:
        return self._opened(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def create(self, path: str, size: int, pace: Pace = at_once) -> int:
        self.remove(path)
        with full_disk_told():
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, FILE_MODE)
        try:
            self._fill(self._opened(descriptor), size, pace)
        except BaseException:
            os.close(descriptor)
            self.remove(path)  # the space that was there may save somebody else
            raise
        return descriptor

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def size(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    def view(self, descriptor: int) -> memoryview:
        if self.size(descriptor) == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))

    def write(self, descriptor: int, buffer: Buffer, offset: int) -> None:
        write_all(descriptor, buffer, offset)
        self._note_refusal(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        _sync(os.fsync, descriptor)

    def sync(self, descriptor: int) -> None:
        sync_data(descriptor)

    def rename(self, old: str, new: str) -> None:
        with full_disk_told():
            os.rename(old, new)

    def link(self, path: str, other: str) -> None:
        self.remove(other)
        try:
            os.link(path, other)
        except OSError as error:
            # No hard links, or no room for a name: copies of the directory may hold less then.
            if error.errno not in (*FULL, errno.EPERM, errno.EMLINK):
                raise

    def remove(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def sync_directory(self, directory: str) -> None:
        sync_directory(directory)

    def _opened(self, descriptor: int) -> int:
        if self._direct:
            begin_direct(descriptor)
            self._note_refusal(descriptor)
        return descriptor

    def _note_refusal(self, descriptor: int) -> None:
        """Say once when the page cache is used after all."""
        if self._direct and not is_direct(descriptor):
            self._direct = False
            logger.info("the log is written through the page cache: here it cannot be bypassed")

    def _fill(self, descriptor: int, size: int, pace: Pace) -> None:
        """Write zeros: writing into a filled file changes no metadata, so fdatasync is cheap."""
        with full_disk_told():
            if size:
                os.posix_fallocate(descriptor, 0, size)  # no room left is noticed at once
        _sync(os.fsync, descriptor)
        zeros = memoryview(self._zeros)
        for offset in range(0, size, FILL_SIZE):
            self.write(descriptor, zeros[: size - offset], offset)
            if not pace(offset + FILL_SIZE):
                break
        sync_data(descriptor)


class DirectoryLock:
    """The file `lock` of a data directory, held from `acquire` until the process ends."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "lock")
        self._descriptor = -1

    def acquire(self) -> bool:
        """Take the lock; return False when another process has it.

        Forked children share the lock, and it lasts until the last of them has ended: exactly
        as long as anybody may still write.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back before the process ends."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def atomic_write(
    path: str | os.PathLike[str],
    data: Buffer | Iterable[Buffer],
    staging: Staging | None = None,
    before_rename: Callable[[], None] | None = None,
) -> None:
    """Replace a file by `data`: after a crash it holds the old bytes or the new, never a mixture.

    With `staging` it is written around the page cache, which is worth it from some 100 KB on.
    Every such file has one writer, so the temporary name is fixed and what a crash leaves behind
    is overwritten by the next write; the space that `prepare_write` has allocated is used.
    `before_rename` is called when the new bytes are durable under the temporary name.  Raises
    DiskFull, FsyncFailed, OSError; the old file is then still there.
    """
    target = os.fspath(path)
    temporary = f"{target}.tmp"
    try:
        with contextlib.suppress(FileNotFoundError), full_disk_told():
            os.rename(prepared_name(target), temporary)
        with _opened(temporary, os.O_WRONLY | os.O_CREAT) as descriptor:
            pieces = _buffers(data)
            if staging is not None:
                begin_direct(descriptor)
                pieces = staging.pieces(pieces)
            offset = 0
            for piece in pieces:
                offset += write_all(descriptor, piece, offset)
            os.ftruncate(descriptor, offset)
            sync_file(descriptor)
        if before_rename is not None:
            before_rename()
        with full_disk_told():
            os.rename(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(os.path.dirname(target) or ".")


def remove_in_steps(path: Path) -> None:
    """Delete a file that nobody reads any more, if it is there; raises OSError.

    Giving a gigabyte back at once can hold up every sync for 0.2 s: a file system mounted with
    `discard` tells the device of each block.
    """
    try:
        with _opened(os.fspath(path), os.O_WRONLY) as descriptor:
            found = os.fstat(descriptor)
            if found.st_nlink == 1:
                for size in range(found.st_size - REMOVE_STEP, 0, -REMOVE_STEP):
                    os.ftruncate(descriptor, size)
        path.unlink()
    except FileNotFoundError:
        return


def prepare_write(path: str | os.PathLike[str], size: int) -> bool:
    """Allocate space for the next `atomic_write` of a file, so that it finds room on a full disk.

    Returns whether there was room; nothing is taken when there is not.  Raises OSError.
    """
    prepared = prepared_name(path)
    try:
        with _opened(prepared, os.O_WRONLY | os.O_CREAT) as descriptor, full_disk_told():
            if size:
                os.posix_fallocate(descriptor, 0, size)
    except DiskFull:
        Path(prepared).unlink(missing_ok=True)
        return False
    return True


def prepared_name(path: str | os.PathLike[str]) -> str:
    """Return where the space for the next write of a file is kept."""
    return f"{os.fspath(path)}.spare"


def _buffers(data: Buffer | Iterable[Buffer]) -> Iterable[Buffer]:
    try:
        return [memoryview(data)]  # type: ignore[arg-type]
    except TypeError:
        return data  # type: ignore[return-value]


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], flags: int) -> Iterator[int]:
    with full_disk_told():
        descriptor = os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_data(descriptor: int) -> None:
    """Put the bytes of an open file, and its size, on stable storage.  Raises FsyncFailed."""
    _sync(os.fdatasync, descriptor)


def sync_file(descriptor: int) -> None:
    """Put an open file, with all that is known of it, on stable storage.  Raises FsyncFailed."""
    _sync(os.fsync, descriptor)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Put the names of a directory on stable storage.  Raises FsyncFailed."""
    with _opened(directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        _sync(os.fsync, descriptor)


def write_all(descriptor: int, buffer: Buffer, offset: int) -> int:
    """Write a buffer at `offset`; return its size.

    Raises DiskFull, OSError; how much was written is then unknown.
    """
    view = memoryview(buffer)
    if view.nbytes == 0:
        return 0
    view = view.cast("B")
    written = 0
    with full_disk_told():
        while written < len(view):  # again only after a signal, at a quota, or on a full disk
            step = pwrite(descriptor, view[written:], offset + written)
            if step == 0:
                raise OSError(errno.EIO, "the file takes no more bytes")
            written += step
    return written


def _sync(call: Callable[[int], None], descriptor: int) -> None:
    try:
        call(descriptor)
    except OSError as error:
        raise FsyncFailed(f"fsync failed: {error}") from error


class FullDiskTold:
    """Turns what the system says when bytes, inodes or a quota have run out into DiskFull."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError) and error.errno in FULL:
            raise DiskFull(str(error)) from error


_told = FullDiskTold()


def full_disk_told() -> FullDiskTold:
    """Return what does so; one for all, for the log is written through it."""
    return _told
