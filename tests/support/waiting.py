"""Polls with a deadline: tests wait for what they mean, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE_SECONDS = 0.01


def eventually(condition: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Return the first true result of `condition`; fail with `what` when time is up."""
    give_up = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(PAUSE_SECONDS)
