"""Questions that wait until what they must see is applied here.

Sans-I/O.  A question is about some groups.  For each of them somebody says, after the question has
come, up to which index it must see; when all that is applied here the question is *ready*.  So an
answer holds everything that was acknowledged before the question came, whoever acknowledged it.
Who should say it may die, or be no leader any more: what nothing was said of is asked for again.

Invariants:
  * every question that was added is returned exactly once: by ready, fail or expire
  * none is ready before an index was said for each of its groups, and is applied
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

# An index is said within a beat and a round trip, or was lost.
AGAIN_SECONDS = 0.5
# No index is said yet: nothing reaches it.
UNKNOWN = np.int64((1 << 63) - 1)


class _Wait(Generic[T]):
    __slots__ = ("again_at", "asked", "groups", "index", "until")

    def __init__(self, asked: T, groups: NDArray[np.intp], until: float, again_at: float) -> None:
        self.asked, self.groups, self.until, self.again_at = asked, groups, until, again_at
        self.index = np.full(len(groups), UNKNOWN, np.int64)


class ReadWaits(Generic[T]):
    """Changed through add, know, fail, ready, silent and expire.  Times are monotonic seconds."""

    def __init__(self) -> None:
        self._waits: dict[int, _Wait[T]] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._waits)

    def add(self, asked: T, groups: NDArray[np.intp], until: float, now: float) -> int:
        """Take a question about these groups, ascending; return its number."""
        self._numbers += 1
        self._waits[self._numbers] = _Wait(asked, groups, until, now + AGAIN_SECONDS)
        return self._numbers

    def know(self, number: int, groups: Sequence[int], index: Sequence[int]) -> None:
        """A question must see these groups up to these indices; what it does not ask for is
        dropped, and so is what is said again."""
        wait = self._waits.get(number)
        if wait is None:
            return
        for group, must in zip(groups, index, strict=True):
            place = int(np.searchsorted(wait.groups, group))
            if place < len(wait.groups) and wait.groups[place] == group:
                wait.index[place] = min(wait.index[place], must)

    def fail(self, number: int) -> list[T]:
        """Nobody can say what a question must see; return it."""
        wait = self._waits.pop(number, None)
        return [] if wait is None else [wait.asked]

    def ready(self, applied: NDArray[np.int64]) -> list[T]:
        """Return the questions that may be answered; applied: by group."""
        done = [n for n, one in self._waits.items() if (applied[one.groups] >= one.index).all()]
        return [self._waits.pop(number).asked for number in done]

    def silent(self, now: float) -> list[tuple[int, NDArray[np.intp]]]:
        """Return number and groups of the questions that nothing was said of for a while: it is
        to be asked for again."""
        found = []
        for number, wait in self._waits.items():
            if wait.again_at <= now:
                wait.again_at = now + AGAIN_SECONDS
                groups = wait.groups[wait.index == UNKNOWN]
                if len(groups):
                    found.append((number, groups))
        return found

    def expire(self, now: float) -> list[T]:
        """Return the questions whose time is over."""
        due = [number for number, one in self._waits.items() if one.until <= now]
        return [self._waits.pop(number).asked for number in due]
