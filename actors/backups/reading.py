"""Reads files for backups: at a limited speed, hashed on the way, and only once.

What has been hashed or counted of a file that never changes is remembered for as long as the
process lives, so the next backup reads only what is new.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from meterd.protocol.backup_manifest import TotalsMap
from meterd.protocol.errors import Internal

PIECE_SIZE = 1 << 20
# A limit holds over so long: what was not used in it is lost.
BURST_SECONDS = 0.25


class Pace:
    """Keeps reading below so many bytes a second; `step` is called for every piece."""

    def __init__(self, limit: Callable[[], int], step: Callable[[int], None]) -> None:
        self._limit = limit  # asked again each time: it may change while a backup runs
        self._step = step
        self._free_at = 0.0

    def took(self, size: int) -> None:
        """Wait until so many bytes may have been read.  Raises what `step` raises."""
        self._step(size)
        now = time.monotonic()
        self._free_at = max(self._free_at, now - BURST_SECONDS) + size / self._limit()
        if self._free_at > now:
            time.sleep(self._free_at - now)


class Reading:
    """The first `size` bytes of an open file, as an object store takes them; hashed."""

    def __init__(self, descriptor: int, size: int, pace: Pace) -> None:
        self._descriptor = descriptor
        self._left = size
        self._at = 0
        self._hash = hashlib.sha256()
        self._pace = pace

    def read(self, size: int, /) -> bytes:
        piece = os.pread(self._descriptor, min(size, self._left, PIECE_SIZE), self._at)
        if not piece and self._left:
            raise Internal("a file has become shorter while it was read")
        self._at += len(piece)
        self._left -= len(piece)
        self._hash.update(piece)
        self._pace.took(len(piece))
        return piece

    @property
    def sha256(self) -> str:
        """The hash of what was read; all of it must have been."""
        if self._left:
            raise Internal("the store has not taken all of a file")
        return self._hash.hexdigest()


class Stamp(NamedTuple):
    """One file as it is: another file of the same name has another stamp."""

    name: str
    inode: int
    size: int
    changed: int  # ns

    @classmethod
    def of(cls, name: str, descriptor: int) -> Stamp:
        found = os.fstat(descriptor)
        return cls(name, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass
class Memory:
    """What is known of files that never change."""

    hashes: dict[Stamp, str] = field(default_factory=dict)
    # With the packed bitmap of the rows that were not stored: rows of a log file may wait.
    totals: dict[Stamp, tuple[bytes, TotalsMap]] = field(default_factory=dict)

    def keep_only(self, stamps: set[Stamp]) -> None:
        """Forget files that are gone."""
        self.hashes = {stamp: found for stamp, found in self.hashes.items() if stamp in stamps}
        self.totals = {stamp: found for stamp, found in self.totals.items() if stamp in stamps}
