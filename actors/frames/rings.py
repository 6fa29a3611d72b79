"""Hands large frames from one actor to the next in memory that both have, instead of by the socket.

A record's payload crosses from ingest to replication, and from there to the WAL-writer and to
usage.  By a socket each crossing copies it twice, takes pages for it, and wakes two threads for
each part that a socket's buffer takes.  So each of these writers has a *ring*: memory that the
supervisor maps before it forks.  A large frame is copied into it once, and the message says where.

A reader looks at a frame where it lies.  When the last view of it is gone, its place is; a word of
the ring says up to where a reader needs nothing any more.  A writer never waits: a frame for which
there is no room goes by the socket.

Invariants:
  * positions only rise, and each reader is sent them in their order
  * nothing is written over that a reader was sent and has not let go
  * writer and readers of a ring start together (they are the chain), so no place outlives either
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# More than what is under way at full load; what does not fit goes by the socket.
RING_SIZE: Final = 16 * 1024 * 1024
# A frame may take a quarter of it.
FRAME_SHARE: Final = 4
# A reader is sent the same frame as the one before it within so many frames.
SHARED_MAX: Final = 4
# Places begin at cache lines.
LINE: Final = 64
# Who reads what each writer writes, in the order in which frames for all of them are sent.
READERS: Final[Mapping[str, tuple[str, ...]]] = {
    "ingest": ("replication",),
    "replication": ("wal_writer", "usage"),
}

RingPlace = tuple[int, int]  # position, size; a position counts all bytes that were ever before it


class Ring(NamedTuple):
    """Memory of one writer and its readers."""

    memory: NDArray[np.uint8]
    words: NDArray[np.int64]  # of each reader: it needs nothing before this position


_rings: dict[str, Ring] | None = None


def make_ring(readers: int, size: int = RING_SIZE) -> Ring:
    """Return a ring that this process shares with those that it forks."""
    memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    return Ring(memory, np.frombuffer(mmap.mmap(-1, 8 * readers), np.int64))


def make_rings() -> None:
    """Make the rings of a node; before the fork."""
    global _rings
    if _rings is None:
        _rings = {writer: make_ring(len(readers)) for writer, readers in READERS.items()}


def writer_of(actor: str) -> Writer | None:
    """Return what an actor writes by; None when it has no ring."""
    if _rings is None or actor not in READERS:
        return None
    return Writer(_rings[actor], READERS[actor])


def reader_of(actor: str) -> Reader | None:
    """Return what an actor reads by; None when nobody writes for it."""
    for writer, readers in READERS.items():
        if _rings is not None and actor in readers:
            return Reader(_rings[writer], readers.index(actor))
    return None


class _Sent:
    """A frame in the ring."""

    __slots__ = ("end", "frame", "position", "readers", "until")

    def __init__(self, position: int, end: int) -> None:
        self.position, self.end = position, end
        self.frame: Any = None  # itself, while others may be sent it: up to that call of `put`
        self.until = 0
        self.readers: list[int] = []  # who was sent it


class Writer:
    """The one writer of a ring."""

    def __init__(self, ring: Ring, readers: tuple[str, ...]) -> None:
        self._memory, self._words = ring
        self._readers = {name: number for number, name in enumerate(readers)}
        self._last = [0] * len(readers)  # the last position that each was sent
        # Behind whatever readers of an earlier life have let go.
        self._head = self._after(int(self._words.max()))
        self._count = 0  # of calls of `put`
        self._sent: deque[_Sent] = deque()  # oldest first
        self._shared: deque[_Sent] = deque()  # what others may be sent, too

    def _after(self, position: int) -> int:
        """Return the first position behind another that lies at the beginning of the memory."""
        size = len(self._memory)
        return (position // size + 1) * size

    def reads(self, actor: str) -> bool:
        """Is an actor a reader of this ring?"""
        return actor in self._readers

    def put(self, reader: str, frame: Any) -> RingPlace | None:
        """Put a frame of bytes where a reader will look; None: it has to go by the socket."""
        number = self._readers[reader]
        size = len(frame) if type(frame) is bytes else memoryview(frame).nbytes
        if size > len(self._memory) // FRAME_SHARE:
            return None
        self._count += 1
        while self._shared and self._shared[0].until < self._count:
            self._shared.popleft().frame = None
        sent = self._shared_with(number, frame) or self._write(frame, size)
        if sent is None:
            return None
        sent.readers.append(number)
        self._last[number] = sent.position
        if number + 1 < len(self._readers):
            sent.frame = frame
            sent.until = self._count + SHARED_MAX
            self._shared.append(sent)
        return sent.position, size

    def _shared_with(self, number: int, frame: Any) -> _Sent | None:
        """Return where a frame lies that a reader before this one was sent."""
        for place, sent in enumerate(self._shared):
            if sent.frame is frame:
                sent.frame = None
                del self._shared[place]
                return sent if sent.position > self._last[number] else None
        return None

    def _is_over(self, sent: _Sent) -> bool:
        """Has everybody let go of a frame, and will nobody else be sent it?"""
        return sent.frame is None and all(self._words[n] >= sent.end for n in sent.readers)

    def _write(self, frame: Any, size: int) -> _Sent | None:
        """Copy a frame into the ring, if there is room."""
        while self._sent and self._is_over(self._sent[0]):
            self._sent.popleft()
        whole = len(self._memory)
        if not self._sent and self._head % whole:
            self._head = self._after(self._head)  # where the caches still have it
        position = self._head
        if position % whole + size > whole:
            position = self._after(position)
        end = position + -(-size // LINE) * LINE
        if self._sent and end - self._sent[0].position > whole:
            return None
        at = position % whole
        self._memory[at : at + size] = np.frombuffer(frame, np.uint8)
        self._head = end
        sent = _Sent(position, end)
        self._sent.append(sent)
        return sent


class Reader:
    """One reader of a ring."""

    def __init__(self, ring: Ring, number: int) -> None:
        self._memory, self._words = ring
        self._number = number
        self._held: dict[int, weakref.ref[Any]] = {}  # by position, rising
        self._end = 0  # behind the newest

    def take(self, position: int, size: int) -> memoryview:
        """Return a frame, which stays as it is for as long as anything looks at it."""
        at = position % len(self._memory)
        view = self._memory[at : at + size]
        view.flags.writeable = False
        self._end = position + -(-size // LINE) * LINE
        self._held[position] = weakref.ref(view, lambda _: self._let_go(position))
        return view.data

    def _let_go(self, position: int) -> None:
        """Nothing looks at a frame any more."""
        del self._held[position]
        self._words[self._number] = next(iter(self._held), self._end)
