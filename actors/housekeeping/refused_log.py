"""Keeps refused events for people to look at: `refused.log`, and the one before it.

Bounded in size (two files) and in rate, because a client that sends nothing but mistakes must not
fill the disk or keep the node busy; what was left out is counted.  Never synced: it proves nothing.
What finds no room on the disk is left out too, and the file still ends with a whole entry.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meterd.actors.files.disk import FILE_MODE, atomic_write, full_disk_told, write_all
from meterd.protocol.errors import BadRequest, DiskFull
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
        self._descriptor = -1  # of the first file; -1 while there was no room to begin one
        with contextlib.suppress(DiskFull):
            self._open()

    def write(self, events: list[dict[str, Any]], second: int) -> int:
        """Append events, each a map; return how many were left out in this `second`."""
        if second != self._second:
            self._second, self._left = second, RATE_MAX
        taken = events[: self._left]
        self._left -= len(taken)
        written = 0
        with contextlib.suppress(DiskFull):
            while written < len(taken):
                written += self._write_some(taken[written:])
        return len(events) - written

    def _write_some(self, events: list[dict[str, Any]]) -> int:
        """Append as many of the first events as the file takes; return how many.

        Raises DiskFull, and none of them is there.
        """
        if self._descriptor < 0:
            self._open()
        pieces: list[bytes] = []
        offsets, size = array("Q"), self._size
        for event in events:
            piece = encode_entry(self._next + len(pieces), event)
            if size + len(piece) > FILE_SIZE_MAX:
                break
            offsets.append(size)
            pieces.append(piece)
            size += len(piece)
        if not pieces:
            self._rotate()
            return 0
        try:
            write_all(self._descriptor, b"".join(pieces), self._size)
        except DiskFull:
            os.ftruncate(self._descriptor, self._size)
            raise
        if not self._offsets[0]:
            self._first[0] = self._next
        self._offsets[0].extend(offsets)
        self._next += len(pieces)
        self._size = size
        return len(pieces)

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
        """Write both files anew, without what some entries said; their numbers and times stay.

        Raises DiskFull; asked again, it goes on.
        """
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
                self.close()
                self._size = size
                self._open()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _rotate(self) -> None:
        self.close()
        with full_disk_told():
            os.replace(self._paths[0], self._paths[1])
        self._offsets = [array("Q"), self._offsets[0]]
        self._first[1] = self._first[0]
        self._size = 0
        self._open()

    def _open(self) -> None:
        """Open the first file, with a header, cut behind its last entry.  Raises DiskFull."""
        with full_disk_told():
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._paths[0], flags, FILE_MODE)
        try:
            os.ftruncate(descriptor, self._size)
            if self._size == 0:
                self._size = write_all(descriptor, encode_header(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

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

    def _place(self, number: int) -> tuple[int, int] | None:
        """Return (file, offset) of an entry, or None when it is gone."""
        for file, (first, offsets) in enumerate(zip(self._first, self._offsets, strict=True)):
            if first <= number < first + len(offsets):
                return file, offsets[number - first]
        return None


def _parse_cursor(text: str) -> int:
    letter, _, number = text.partition(".")
    if letter != "r" or not number.isdecimal():
        raise BadRequest("after: not a cursor that this kind of question gave")
    return int(number)
