"""Polls with a deadline: tests wait for what they mean, never for a time.

Quick looks take half of the time at most, so that what is waited for gets on.
"""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.01, 0.5


def eventually(condition: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Return the first true result of `condition`; fail with `what` when time is up."""
    give_up = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        result = condition()
        if result:
            return result
        ended = time.monotonic()
        if ended > give_up:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(min(max(PAUSE_SECONDS, ended - began), PAUSE_SECONDS_MAX))
