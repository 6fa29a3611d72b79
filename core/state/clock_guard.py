"""Says by which time events may expire, so that a wall clock that jumps ahead expires none.

What the clock shows is believed no further than what is *sure*: a moment that was believed before,
and the time that has passed since by a clock that only runs.  After a start that moment is the
newest time that expiry went by before, which is in the log (`known`).

  * Nothing is known (a new directory): the clock is believed.
  * At a start the clock is believed as far as `limit` in front of what is known.
  * What others have expired by is sure, too: their time comes with the log.
  * A jump of a running node is never believed at once, but small ones are nothing to speak of.
  * A clock that has run evenly for `limit` is believed, whatever it shows; so is one that an
    operator accepts.

A clock that shows less than what is sure is followed: horizons do not move back anyway.

Does not know: clocks, logs, horizons.  All times are ns.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MINUTE: Final = 60_000_000_000
# A clock runs evenly while it moves away by no more than this and one thousandth of the time.
STEP_MAX: Final = MINUTE
DRIFT: Final = 1_000


class Moment(NamedTuple):
    """What two clocks showed at one time."""

    wall: int  # UTC
    running: int  # only runs, never jumps, also while the machine sleeps


class ClockGuard:
    """Call `look` often: what happens between two looks is seen at the second."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sure: Moment | None = None
        self._even: Moment | None = None  # since then the clock has run evenly
        self.ahead = 0  # by how much the clock is in front, when that is beyond the limit

    def look(self, now: Moment, known: int) -> int:
        """Return the time to expire by.  `known`: the newest time that expiry went by; 0: none."""
        if self._even is None or not _runs_evenly(self._even, now):
            self._even = now
        even_for = now.running - self._even.running
        if self._sure is None and not known:
            self.accept(now)
        elif self._sure is None:
            self._believe(known, now)
            self._come_up(now)
        elif even_for >= self._limit:
            self._even = now
            self._believe(max(now.wall, known), now)
        elif known > self._time(now):
            self._believe(known, now)
            if self.ahead:  # perhaps others know better that it is so late
                self._come_up(now)
        sure = self._time(now)
        self.ahead = now.wall - sure if now.wall - sure > self._limit else 0
        return min(now.wall, sure)

    def accept(self, now: Moment) -> None:
        """Believe what the clock shows: somebody has looked at it."""
        self._even = now
        self._believe(now.wall, now)
        self.ahead = 0

    def _believe(self, wall: int, now: Moment) -> None:
        self._sure = Moment(wall, now.running)

    def _come_up(self, now: Moment) -> None:
        """Believe the clock if it is not too far in front."""
        if 0 < now.wall - self._time(now) <= self._limit:
            self._believe(now.wall, now)

    def _time(self, now: Moment) -> int:
        """Return the time that is sure."""
        assert self._sure is not None
        return self._sure.wall + now.running - self._sure.running


def _runs_evenly(since: Moment, now: Moment) -> bool:
    passed = now.running - since.running
    return abs(now.wall - since.wall - passed) <= STEP_MAX + passed // DRIFT
