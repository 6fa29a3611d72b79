"""Keeps refused events for people to look at: `refused.log`, and the one before it.

Bounded in size (two files) and in rate, because a client that sends nothing but mistakes must not
fill the disk or keep the node busy; what was left out is counted.  Never synced: it proves nothing.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meterd.actors.disk import FILE_MODE, atomic_write
from meterd.protocol.errors import BadRequest
from meterd.protocol.refused_format import Walk, decode_entry, encode_entry, encode_header

FILE_SIZE_MAX = 16 * 1024 * 1024
# Entries written in a second; a burst may use what the last second left.
RATE_MAX = 2_000
# What is listed instead of a refused event of an erased account.
FORGOTTEN = {
    "account": "(erased)",
    "metric": "",
    "id": "",
    "reason": "erased",
    "timestamp": None,
    "value": "",
}
NAMES = ("refused.log", "refused.1.log")


class RefusedLog:
    """Changed only through `write`; `page` reads it, newest first."""

    def __init__(self, directory: str) -> None:
        self._paths = [os.path.join(directory, name) for name in NAMES]
        self._offsets = [array("Q"), array("Q")]
        self._first = [1, 1]  # number of the first entry of each file
        self._next = 1
        self._size = 0
        self._second = 0
        self._left = RATE_MAX
        for place in (1, 0):
            self._read(place)
        self._file = open(self._paths[0], "r+b")  # noqa: SIM115 - kept open
        self._file.truncate(self._size)

    def write(self, events: list[dict[str, Any]], second: int) -> int:
        """Append events, each a map; return how many were left out in this `second`."""
        if second != self._second:
            self._second, self._left = second, RATE_MAX
        taken = events[: self._left]
        self._left -= len(taken)
        pieces: list[bytes] = []
        for event in taken:
            piece = encode_entry(self._next, event)
            if self._size + len(piece) > FILE_SIZE_MAX:
                self._append(pieces)
                pieces = []
                self._rotate()
            if not self._offsets[0]:
                self._first[0] = self._next
            self._offsets[0].append(self._size)
            self._size += len(piece)
            self._next += 1
            pieces.append(piece)
        self._append(pieces)
        return len(events) - len(taken)

    def page(self, limit: int, after: str | None) -> dict[str, Any]:
        """Return the entries before a cursor, newest first.  Raises BadRequest."""
        number = self._next if after is None else _parse_cursor(after)
        number = min(number, self._next)
        events: list[dict[str, Any]] = []
        buffers: dict[int, bytes] = {}
        while len(events) < limit and (place := self._place(number - 1)) is not None:
            file, offset = place
            if file not in buffers:
                buffers[file] = Path(self._paths[file]).read_bytes()
            found = decode_entry(buffers[file], offset)
            if found is None:
                break
            number -= 1
            events.append(found[1])
        more = self._place(number - 1) is not None
        return {"events": events, "next": f"r.{number}" if more else None}

    def forget(self, is_gone: Callable[[dict[str, Any]], bool]) -> None:
        """Write both files anew, without what some entries said; their numbers and times stay."""
        for place, path in enumerate(self._paths):
            buffer = Path(path).read_bytes() if os.path.exists(path) else b""
            found = [decode_entry(buffer, offset) for offset in self._offsets[place]]
            entries = [(entry[0], entry[1]) for entry in found if entry is not None]
            if not any(is_gone(event) for _, event in entries):
                continue
            pieces = [encode_header()]
            offsets, size = array("Q"), len(pieces[0])
            for number, event in entries:
                kept = FORGOTTEN | {"time": event["time"]} if is_gone(event) else event
                pieces.append(encode_entry(number, kept))
                offsets.append(size)
                size += len(pieces[-1])
            atomic_write(path, pieces)
            self._offsets[place] = offsets
            if place == 0:
                self._file.close()
                self._size = size
                self._file = open(path, "r+b")  # noqa: SIM115 - kept open

    def close(self) -> None:
        self._file.close()

    def _append(self, pieces: list[bytes]) -> None:
        if pieces:
            self._file.seek(0, os.SEEK_END)
            self._file.write(b"".join(pieces))
            self._file.flush()

    def _rotate(self) -> None:
        self._file.close()
        os.replace(self._paths[0], self._paths[1])
        self._offsets = [array("Q"), self._offsets[0]]
        self._first[1] = self._first[0]
        self._begin()
        self._file = open(self._paths[0], "r+b")  # noqa: SIM115 - kept open

    def _begin(self) -> None:
        with open(self._paths[0], "wb", opener=_private) as file:
            file.write(encode_header())
        self._size = len(encode_header())

    def _read(self, place: int) -> None:
        """Find the entries of a file from before; what does not check at its end is cut off."""
        try:
            with open(self._paths[place], "rb") as file:
                walk = Walk(file.read(2 * FILE_SIZE_MAX))
        except FileNotFoundError:
            walk = Walk(b"")
        for offset, number in walk:
            if not self._offsets[place]:
                self._first[place] = number
            self._offsets[place].append(offset)
            self._next = number + 1
        if place == 0:
            self._size = walk.end
            if not walk.end:
                self._begin()

    def _place(self, number: int) -> tuple[int, int] | None:
        """Return (file, offset) of an entry, or None when it is gone."""
        for file, (first, offsets) in enumerate(zip(self._first, self._offsets, strict=True)):
            if first <= number < first + len(offsets):
                return file, offsets[number - first]
        return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)


def _parse_cursor(text: str) -> int:
    letter, _, number = text.partition(".")
    if letter != "r" or not number.isdecimal():
        raise BadRequest("after: not a cursor that this kind of question gave")
    return int(number)
