"""Turns `members.bin` into bytes and back: who was a member when the oldest log files were deleted.

Invariant: any bytes give the fields that were written, or Damaged.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack
from crc32c import crc32c

from meterd.protocol.log_format import Damaged

NAME: Final = "members.bin"
MAGIC: Final = b"METERDMB"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sHHIQ")
KEYS: Final = frozenset({"through", "accounts", "dims", "rows", "members"})


def encode_members(fields: dict[str, Any]) -> bytes:
    """Return the bytes of the file."""
    body: bytes = msgpack.packb(fields)
    return _HEADER.pack(MAGIC, VERSION, 0, crc32c(body), len(body)) + body


def decode_members(buffer: bytes) -> dict[str, Any]:
    """Return the fields.  Raises Damaged."""
    if len(buffer) < _HEADER.size:
        raise Damaged(0, f"a file of {len(buffer)} bytes has no header")
    magic, version, _, crc, size = _HEADER.unpack_from(buffer)
    body = buffer[_HEADER.size :]
    if magic != MAGIC or len(body) != size or crc != crc32c(body):
        raise Damaged(0, "checksum of the members")
    if version != VERSION:
        raise Damaged(0, f"members version {version} is not known")
    fields: dict[str, Any] = msgpack.unpackb(body)
    if fields.keys() != KEYS:
        raise Damaged(0, "fields of the members")
    return fields
