"""Counts what ingest has handed on and nobody has decided yet, so that small gatherings wait.

Where a record crosses to other nodes it costs much and an event in it little.  So while a few
gatherings are under way, requests that come are gathered further, and go when one of those is
decided.  A gathering that nobody decides (a node is gone) stops counting after half a second: it
must not hold up for long what other nodes lead.

Does not know: what a gathering is, who decides it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# So many gatherings under way keep every actor of the way busy; where one is small, a single one
# does, for what comes meanwhile makes the next one larger.
GATHERINGS_MAX: Final = 3
SMALL_EVENTS: Final = 256
# One that is under way for longer counts no more.  Several times what one takes where processors
# are all busy: when those under way counted no more there, small ones would add to the burden.
SECONDS_MAX: Final = 0.5
# A small gathering waits no longer for the last one than this.
SMALL_SECONDS_MAX: Final = 0.1


class UnderWay:
    """Gatherings that were handed on, the oldest first."""

    def __init__(self) -> None:
        self._since: deque[float] = deque()

    def add(self, now: float) -> None:
        """Count a gathering that is handed on at monotonic `now`."""
        self._since.append(now)

    def decided(self, count: int) -> None:
        """So many are decided; those that count no more may be among them."""
        for _ in range(min(count, len(self._since))):
            self._since.popleft()

    def full(self, now: float, events: int) -> bool:
        """Is so much under way that these events are better gathered further?"""
        while self._since and now - self._since[0] >= SECONDS_MAX:
            self._since.popleft()
        if events < SMALL_EVENTS:
            return bool(self._since) and now < self.until(events)
        return len(self._since) >= GATHERINGS_MAX

    def until(self, events: int) -> float:
        """When that is no longer so, at the latest; something must be under way."""
        if events < SMALL_EVENTS:
            return self._since[-1] + SMALL_SECONDS_MAX
        return self._since[0] + SECONDS_MAX
