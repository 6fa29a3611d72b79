"""What waits to be ordered, in its order, and no more of it than a node should keep.

Requests of this node's clients are bounded by what the router admits; parts that other nodes
forward are not: who sends them may have given them up already.
"""

from __future__ import annotations

from collections import deque
from typing import Final

HELD_MAX: Final = 4_096
HELD_SIZE_MAX: Final = 128 * 1024 * 1024


class HeldProposals:
    """Messages `propose` and `judge`, oldest first."""

    def __init__(self) -> None:
        self._messages: deque[list[bytes]] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, frames: list[bytes]) -> bool:
        """Keep a message behind all others; False when there is no room for it."""
        if len(self._messages) >= HELD_MAX or self._size >= HELD_SIZE_MAX:
            return False
        self._messages.append(frames)
        self._size += _size(frames)
        return True

    @property
    def first_kind(self) -> bytes:
        """What the oldest message is; there must be one."""
        return self._messages[0][0]

    def pop(self) -> list[bytes]:
        """Return the oldest message and forget it."""
        frames = self._messages.popleft()
        self._size -= _size(frames)
        return frames


def _size(frames: list[bytes]) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)
