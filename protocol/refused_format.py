"""Turns refused events into the bytes of `refused.log` and back (docs/STORAGE.md).

The file is for people who look for a mistake: it is bounded, written without waiting for the disk,
and whatever does not check at its end was being written when the node died.

Invariants: `Walk` yields only entries whose checksum is right, in order, and `end` is behind the
last of them; any bytes give entries or an end, never an exception.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import msgpack
from crc32c import crc32c

MAGIC: Final = b"METERDRF"
VERSION: Final = 1
ENTRY_SIZE_MAX: Final = 64 * 1024

_HEADER: Final = struct.Struct("<8sHHI")
# Size and crc of the body, and the entry's number: 1, 2, 3 … over the life of the node.
_ENTRY: Final = struct.Struct("<IIQ")
HEADER_SIZE: Final = _HEADER.size
ENTRY_HEADER_SIZE: Final = _ENTRY.size


def encode_header() -> bytes:
    """Return the first bytes of the file."""
    return _HEADER.pack(MAGIC, VERSION, 0, 0)


def encode_entry(number: int, event: dict[str, Any]) -> bytes:
    """Return an entry; its checksum covers its number too."""
    body: bytes = msgpack.packb(event, unicode_errors="surrogateescape")
    return _ENTRY.pack(len(body), _checksum(number, body), number) + body


def decode_entry(buffer: bytes | memoryview, offset: int) -> tuple[int, dict[str, Any], int] | None:
    """Return (number, event, where the next entry begins), or None when there is no entry."""
    if offset + ENTRY_HEADER_SIZE > len(buffer):
        return None
    size, crc, number = _ENTRY.unpack_from(buffer, offset)
    start = offset + ENTRY_HEADER_SIZE
    body = bytes(buffer[start : start + size])
    if not 0 < size <= ENTRY_SIZE_MAX or len(body) < size or crc != _checksum(number, body):
        return None
    try:
        event = msgpack.unpackb(body, unicode_errors="surrogateescape")
    except ValueError:
        return None
    return (number, event, start + size) if isinstance(event, dict) else None


class Walk:
    """Goes through a file: iterate for (offset, number) of entries; `end` is behind the last."""

    def __init__(self, buffer: bytes | memoryview) -> None:
        self._buffer = buffer
        self.end = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if bytes(self._buffer[:HEADER_SIZE]) != encode_header():
            return
        self.end = HEADER_SIZE
        while (found := decode_entry(self._buffer, self.end)) is not None:
            number, _, end = found
            yield self.end, number
            self.end = end


def _checksum(number: int, body: bytes) -> int:
    return int(crc32c(body, number & 0xFFFFFFFF))
