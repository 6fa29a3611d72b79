"""Decides when an actor that has died is started again, and when that is pointless.

The first restart is immediate: most deaths are a single accident, and every request in flight waits
for it.  Further ones back off, doubling, so that a fault that stays does not burn the machine; but
never for long, because a node is to serve again within 3 s of any death.  Ten healthy seconds
forget the past.  What has never become ready and died again and again will
not mend by itself: the node halts with the reason instead of flapping for ever.

One policy stands for what restarts together: the chain, or a single actor.
Does not know: processes, signals, clocks.
"""

from __future__ import annotations

BACK_OFF_FIRST_SECONDS = 0.1
BACK_OFF_SECONDS_MAX = 1.0
HEALTHY_SECONDS = 10.0
# Deaths in a row without having been ready once.
FAILURES_MAX = 5


class RestartPolicy:
    """The history of what restarts together; changes only by `on_ready` and `on_death`."""

    def __init__(self) -> None:
        self.restarts = 0
        self._deaths = 0  # since the last healthy stretch
        self._failures = 0  # since it was last ready
        self._ready_at: float | None = None

    def on_ready(self, now: float) -> None:
        """All of it is ready at monotonic `now`; saying so again changes nothing."""
        if self._ready_at is None:
            self._ready_at = now
            self._failures = 0

    def on_death(self, now: float) -> float | None:
        """Return the seconds until the next start, or None when it is time to give up."""
        if self._ready_at is not None and now - self._ready_at >= HEALTHY_SECONDS:
            self._deaths = 0
        if self._ready_at is None:
            self._failures += 1
        self._ready_at = None
        if self._failures >= FAILURES_MAX:
            return None
        self._deaths += 1
        self.restarts += 1
        if self._deaths == 1:
            return 0.0
        return min(BACK_OFF_SECONDS_MAX, BACK_OFF_FIRST_SECONDS * 2 ** (self._deaths - 2))
