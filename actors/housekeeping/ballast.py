"""Keeps space in reserve (the file `ballast`), to be given back when the disk is full.

A node on a full disk needs space for what makes room: a checkpoint, after which log files may be
deleted, and the files that replace others.  The file is allocated and never written or synced: it
holds nothing, and the next start makes up for what a crash has cut off.
"""

from __future__ import annotations

import os
from pathlib import Path

from meterd.actors.files.disk import FILE_MODE, full_disk_told
from meterd.protocol.errors import DiskFull

FILE_NAME = "ballast"
# Allocated in one call; where the file system must write zeros for it, that takes some 50 ms.
PIECE_SIZE = 16 * 1024 * 1024


class Ballast:
    """The reserve of one data directory."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory, FILE_NAME)

    @property
    def size(self) -> int:
        """Return how many bytes are kept."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def grow(self, wanted: int) -> int:
        """Keep one piece more, up to `wanted` bytes in all, or less when more is kept.

        Returns the size.  Nothing changes when there is no room.  Raises OSError.
        """
        before = self.size
        size = min(wanted, before + PIECE_SIZE)
        try:
            with full_disk_told():
                self._resize(before, size)
        except DiskFull:
            return before
        return size

    def _resize(self, before: int, size: int) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            if size > before:
                os.posix_fallocate(descriptor, before, size - before)
            else:
                os.ftruncate(descriptor, size)
        except OSError:
            os.ftruncate(descriptor, before)  # some file systems keep what they could allocate
            raise
        finally:
            os.close(descriptor)

    def release(self) -> int:
        """Give everything back; return how much that was."""
        size = self.size
        self._path.unlink(missing_ok=True)
        return size
