"""Moves bytes between memory and files without the kernel's page cache (O_DIRECT).

What a node writes it reads again only after a start, in a question about the past, or once for a
segment.  The page cache would copy all of it, keep it, and take pages of memory for it; moved
directly it costs neither.  What direct transfer demands, and how it is met:

  * memory that begins at a page, offsets and sizes in whole sectors: memory comes from
    `page_memory`, and what has any size goes through `Staging`
  * a file system that offers it: where that refuses, or a device wants larger sectors, the same
    call moves the bytes through the page cache, and so do all later ones of that descriptor.
    Durability does not depend on it: fdatasync is called either way

Does not know: what is in a file, when to sync.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator

import numpy as np

from meterd.protocol.log_format import padded

Buffer = bytes | bytearray | memoryview | mmap.mmap

# No page, file system block or sector that is in use is larger.
ALIGNMENT = 4096
# Large enough that a call costs little per byte, small enough to stay in the processor's cache.
PIECE_SIZE = 1024 * 1024


def page_memory(size: int) -> mmap.mmap:
    """Return zeroed memory that begins at a page and belongs to this process alone."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def is_direct(descriptor: int) -> bool:
    """Return whether the bytes of an open file bypass the page cache."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def begin_direct(descriptor: int) -> None:
    """Bypass the page cache from now on, where the file system offers that."""
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _end_direct(descriptor: int, refusal: OSError) -> None:
    """Use the page cache from now on, if the refusal came from bypassing it; else raise it."""
    if refusal.errno != errno.EINVAL or not is_direct(descriptor):
        raise refusal
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)


def pwrite(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Write as `os.pwrite` does, directly when the file and the bytes allow it."""
    try:
        return os.pwrite(descriptor, buffer, offset)
    except OSError as error:
        _end_direct(descriptor, error)
    return os.pwrite(descriptor, buffer, offset)


def _preadv(descriptor: int, buffer: memoryview, offset: int) -> int:
    try:
        return os.preadv(descriptor, [buffer], offset)
    except OSError as error:
        _end_direct(descriptor, error)
    return os.preadv(descriptor, [buffer], offset)


class Staging:
    """Turns buffers of any size into pieces that can be written directly, in memory kept for it.

    One file at a time.
    """

    def __init__(self) -> None:
        self._memory = memoryview(page_memory(PIECE_SIZE))
        self._array = np.frombuffer(self._memory, np.uint8)

    def pieces(self, buffers: Iterable[Buffer]) -> Iterator[memoryview]:
        """Yield the same bytes; each piece is valid until the next is asked for.

        All pieces but the last, which is shorter than a sector, can be written directly.
        """
        used = 0
        for buffer in buffers:
            source = np.frombuffer(buffer, np.uint8)
            at = 0
            while at < len(source):
                step = min(len(source) - at, PIECE_SIZE - used)
                self._array[used : used + step] = source[at : at + step]  # lets other threads run
                used += step
                at += step
                if used == PIECE_SIZE:
                    yield self._memory
                    used = 0
        whole = used & -ALIGNMENT
        if whole:
            yield self._memory[:whole]
        if used > whole:
            yield self._memory[whole:used]


class Window:
    """Reads parts of files into memory that is used again and again."""

    def __init__(self) -> None:
        self._memory = memoryview(page_memory(PIECE_SIZE + 2 * ALIGNMENT))  # grows when needed

    def read(self, descriptor: int, offset: int, size: int) -> memoryview:
        """Return bytes of a file, fewer where it ends; valid until the next call."""
        start = offset & -ALIGNMENT
        end = min(offset + size, os.fstat(descriptor).st_size)
        wanted = padded(end - start, ALIGNMENT)  # beyond the end of the file the kernel reads less
        if wanted > len(self._memory):
            self._memory = memoryview(page_memory(wanted))
        at = start
        while at < end:
            step = _preadv(descriptor, self._memory[at - start : wanted], at)
            if step == 0:
                raise OSError(errno.EIO, "the file has become shorter")
            at += step
        return self._memory[offset - start : max(offset, end) - start]
