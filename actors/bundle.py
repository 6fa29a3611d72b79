"""Puts the requests or answers of a turn into one frame, and takes them out again.

They cross between actors many at a time, each as (rid, header, body).  A frame of its own for each
part would cost a microsecond on either side; as one msgpack list they cost little more than the
copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgpack

from meterd.actors.sockets import Frame


def bundle(parts: Sequence[bytes]) -> bytes:
    """Return (rid, header, body) repeated as one frame."""
    packed: bytes = msgpack.packb(parts)
    return packed


def unbundle(frame: Frame) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (rid, header, body) of a frame that `bundle` made."""
    parts = msgpack.unpackb(frame)
    return zip(parts[::3], parts[1::3], parts[2::3], strict=True)
