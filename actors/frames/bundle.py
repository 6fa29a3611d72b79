"""Puts the requests or answers of a turn into a few frames, and takes them out again.

They cross between actors many at a time, each as (rid, header, body).  A frame of its own for each
part would cost a microsecond on either side, and a copy of a large body more than that.  So all
small parts are one msgpack list, and each large body is a frame behind it, passed on as it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgpack

from meterd.actors.frames.sockets import VIEW_SIZE, Frame


def bundle(parts: Sequence[Frame]) -> list[Frame]:
    """Return (rid, header, body) repeated as frames."""
    small: list[Frame | None] = list(parts)
    large: list[Frame] = []
    for place in range(2, len(small), 3):
        if len(parts[place]) >= VIEW_SIZE:
            large.append(parts[place])
            small[place] = None
    return [msgpack.packb(small), *large]


def unbundle(frames: Sequence[Frame]) -> Iterator[tuple[bytes, bytes, Frame]]:
    """Yield (rid, header, body) of frames that `bundle` made."""
    parts = msgpack.unpackb(frames[0])
    large = iter(frames[1:])
    for place in range(0, len(parts), 3):
        rid, header, body = parts[place : place + 3]
        yield rid, header, next(large) if body is None else body
