"""Decides when the actors of a request's way should share one processor.

While requests come one at a time only one actor works at any moment.  On several processors each
then finds what it needs in another one's cache, and has to be woken across: on one processor a
request takes less time, and half the work.  With more requests under way at once that would be a
queue.  So it is tried while requests come one by one, and kept for as long as it is faster: whoever
else uses that processor shows in the time that a request takes.

Sans-I/O.  States: apart → trying → near → apart (compared anew every few seconds).
Does not know: processors, threads.
"""

from __future__ import annotations

from typing import Final

# Requests are compared by windows of so many seconds, with at least so many requests.
WINDOW_SECONDS: Final = 0.1
REQUESTS_MIN: Final = 20
# It is worth it from this part of the time on.
GAIN: Final = 0.95
# How long it is kept before it is compared anew, and how long it is not tried again when it was not
# worth it: twice as long each time.
KEEP_SECONDS: Final = 2.0
REST_SECONDS_MAX: Final = 60.0


class Nearness:
    """`near` says what should be, `singly` whether requests have come one by one so far.

    While they have not, only `turn` need be called.
    """

    def __init__(self) -> None:
        self.near, self.singly = False, True
        self._window_end = 0.0
        self._try_at = 0.0
        self._keep_until = 0.0
        self._rest = KEEP_SECONDS
        self._apart: float | None = None  # seconds a request took, while it is tried near
        self._since = 0.0  # when the only request under way began
        self._begin_window(0.0)

    def begun(self, now: float) -> None:
        """A request has come, and no other is under way."""
        self._since = now

    def crowded(self) -> None:
        """A request has come while another one is under way."""
        self.near = self.singly = False

    def ended(self, now: float) -> None:
        """A request is answered."""
        self._count += 1
        self._seconds += now - self._since

    def turn(self, now: float) -> None:
        """Look what the last window says, when it is over."""
        if now < self._window_end:
            return
        one_by_one = self.singly and self._count >= REQUESTS_MIN
        took = self._seconds / self._count if self._count else 0.0
        self._begin_window(now)
        if not one_by_one:
            if self._apart is not None or now < self._keep_until:
                self._try_at = now + KEEP_SECONDS  # whoever comes now and then is not moved for
            self.near, self._apart, self._keep_until = False, None, 0.0
        elif not self.near:
            if now >= self._try_at:
                self.near, self._apart = True, took
        elif self._apart is not None:
            self._judge(now, took <= GAIN * self._apart)
        elif now >= self._keep_until:
            self.near = False

    def _judge(self, now: float, faster: bool) -> None:
        self._apart = None
        if faster:
            self._keep_until, self._rest = now + KEEP_SECONDS, KEEP_SECONDS
        else:
            self.near, self._try_at = False, now + self._rest
            self._rest = min(2 * self._rest, REST_SECONDS_MAX)

    def _begin_window(self, now: float) -> None:
        self._window_end = now + WINDOW_SECONDS
        self.singly = True
        self._count, self._seconds = 0, 0.0
