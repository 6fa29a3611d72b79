"""Writes the index beside a full log file, from the file and the bitmap of its rows not stored.

The file is read once, in windows of whole blocks, around the page cache and into memory that is
used again for every window and file; so is the memory in which the index is made.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from meterd.actors.direct_file import Staging, Window, begin_direct
from meterd.actors.disk import atomic_write
from meterd.actors.log_files import index_name
from meterd.core.kernels.scan import whole_blocks
from meterd.core.log_index import OpenIndex
from meterd.protocol.errors import Corrupt
from meterd.protocol.index_format import encode_index
from meterd.protocol.log_format import BLOCK_HEADER_SIZE, FILE_HEADER_SIZE, full_name

# Many times a usual block, so that little is read twice.
WINDOW_SIZE = 4 * 1024 * 1024
_BLOCK_SIZE_AT = slice(16, 20)


class Indexer:
    """Makes the indexes of one directory, one at a time."""

    def __init__(self, directory: str, identity_key: NDArray[np.uint64]) -> None:
        self._directory = directory
        self._key = identity_key
        self._index = OpenIndex()
        self._window = Window()
        self._staging = Staging()

    def count_rows(self, number: int) -> int:
        """Return how many rows a full log file holds.  Raises Corrupt, OSError."""
        self._read(number)
        return self._index.row_count

    def write(self, number: int, bitmap: bytes) -> int:
        """Write the index of a full log file, durably; return how many rows that file holds.

        Raises Corrupt, DiskFull, FsyncFailed, OSError.
        """
        size = self._read(number)
        sealed = self._index.seal(number, size, np.frombuffer(bitmap, np.uint8))
        path = os.path.join(self._directory, index_name(number))
        atomic_write(path, encode_index(sealed), self._staging)
        return sealed.header.row_count

    def _read(self, number: int) -> int:
        """Read a file into the index in memory; return the file's size."""
        path = os.path.join(self._directory, full_name(number))
        self._index.clear()
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            begin_direct(descriptor)
            size = os.fstat(descriptor).st_size
            if size < FILE_HEADER_SIZE:
                raise Corrupt(path, size, "the file ends within its header (index)")
            at = FILE_HEADER_SIZE
            while at < size:
                data = self._blocks(descriptor, at)
                at += len(data)
                self._index.extend(data, at, self._key, path, at - len(data))
                if self._index.block_end != at:
                    raise Corrupt(path, at - len(data), "no block of a log (index)")
        finally:
            os.close(descriptor)
        return size

    def _blocks(self, descriptor: int, at: int) -> NDArray[np.uint8]:
        """Return whole blocks, or what lies there instead."""
        data = _array(self._window.read(descriptor, at, WINDOW_SIZE))
        count = int(whole_blocks(data))
        if count == 0 and len(data) >= BLOCK_HEADER_SIZE:
            wanted = int.from_bytes(data[_BLOCK_SIZE_AT].tobytes(), "little")
            if wanted > len(data):  # the size of what is no block is bounded by the file's
                data = _array(self._window.read(descriptor, at, wanted))
        return data[:count] if count else data


def _array(view: memoryview) -> NDArray[np.uint8]:
    return np.frombuffer(view.toreadonly(), np.uint8)
