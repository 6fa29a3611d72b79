"""The wall clock as far as what it shows becomes data: times of records, expiry, offsets of peers.

For tests the environment variable METERD_TEST_CLOCK names a file with a number of seconds, by which
the clock is set forward; it is read again and again.  Without the variable nothing is in between.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "METERD_TEST_CLOCK"
LOOK_SECONDS: Final = 0.05
NS: Final = 1_000_000_000


class ShiftedClock:
    """A clock that a file sets forward; what cannot be read sets it to what it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked = -LOOK_SECONDS
        self._shift = 0

    def __call__(self) -> int:
        """Return UTC ns."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            with contextlib.suppress(OSError, ValueError):
                self._shift = int(float(self._path.read_text()) * NS)
        return time.time_ns() + self._shift


def _wanted() -> ShiftedClock | None:
    path = os.environ.get(VARIABLE)
    return ShiftedClock(Path(path)) if path else None


_shifted: Final = _wanted()


def wall_ns() -> int:
    """Return UTC ns."""
    return time.time_ns() if _shifted is None else _shifted()


def running_ns() -> int:
    """Return the time of a clock that only runs, also while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
