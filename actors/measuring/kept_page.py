"""Keeps what the metrics actor has collected while that actor is away.

Memory that the supervisor maps before it forks: it outlives every actor and ends with the node, as
the counters do.  Two places are written in turn, each with a number and a checksum in front, so
whoever is killed while writing leaves the page before: the checksum covers the number, too, or one
that is new in front of what is old would pass for the newest.
"""

from __future__ import annotations

import mmap
import struct
import zlib

# Of each place; a page takes some ten thousand bytes, and memory that is not touched costs nothing.
PLACE_SIZE = 1 << 20
HEAD = struct.Struct("<QQI")  # number (0: never written), size of the page, CRC-32 of both

_shared: KeptPage | None = None


class KeptPage:
    """One page of bytes; written by one process at a time."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * PLACE_SIZE)  # shared with whoever is forked

    def write(self, page: bytes) -> None:
        """Keep a page instead of the one before; one that is too large is not kept."""
        if len(page) > PLACE_SIZE - HEAD.size:
            return
        number = max(self._heads())[0] + 1
        at = number % 2 * PLACE_SIZE
        HEAD.pack_into(self._memory, at, number, len(page), _checksum(number, page))
        self._memory[at + HEAD.size : at + HEAD.size + len(page)] = page

    def read(self) -> bytes | None:
        """Return the newest page that is whole, if there is one."""
        for number, size, checksum in sorted(self._heads(), reverse=True):
            at = number % 2 * PLACE_SIZE + HEAD.size
            page = self._memory[at : at + size]
            if number and _checksum(number, page) == checksum:
                return page
        return None

    def _heads(self) -> list[tuple[int, int, int]]:
        return [HEAD.unpack_from(self._memory, at) for at in (0, PLACE_SIZE)]


def _checksum(number: int, page: bytes) -> int:
    return zlib.crc32(page, zlib.crc32(number.to_bytes(8, "little")))


def shared() -> KeptPage:
    """Return the page of this node; the first call makes it, before the fork."""
    global _shared
    if _shared is None:
        _shared = KeptPage()
    return _shared
