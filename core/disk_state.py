"""Decides from the free space of the data directory whether events may still be taken.

States: ok; warn (say so); stop (refuse events, answer questions, go on deleting what expired).
A state is left only well above the limit at which it was entered, so that a node at the limit does
not flap between taking and refusing.  Inodes count like space: without one no file can be
replaced.  A file system that names no number of inodes has no limit of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

State = Literal["ok", "warn", "stop"]

STATES: Final[tuple[State, ...]] = ("ok", "warn", "stop")
# A node needs a handful of new files; these leave room for everybody else on the file system.
INODES_WARN: Final = 10_000
INODES_STOP: Final = 1_000
# Leave `warn` and the inode limits only so much above them.
MARGIN_PERCENT: Final = 10
# How often to look while space is short: a fast disk fills gigabytes in seconds.
SHORT_INTERVAL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds in bytes."""

    warn_free: int
    stop_free: int
    resume_margin: int


@dataclass(frozen=True, slots=True)
class Space:
    """What a file system says about itself."""

    free: int  # bytes that an ordinary user may still take
    size: int
    inodes_free: int
    inodes: int  # 0: not limited


def next_state(state: State, space: Space, limits: Limits) -> State:
    """Return the state that follows from the space there is now."""
    if _is_short(space, limits.stop_free, INODES_STOP):
        return "stop"
    if state == "stop" and _is_short(
        space, limits.stop_free + limits.resume_margin, _above(INODES_STOP)
    ):
        return "stop"
    if _is_short(space, limits.warn_free, INODES_WARN):
        return "warn"
    if state != "ok" and _is_short(space, _above(limits.warn_free), _above(INODES_WARN)):
        return "warn"
    return "ok"


def next_check(state: State, interval: float) -> float:
    """Return the seconds until the space is looked at again."""
    return interval if state == "ok" else min(interval, SHORT_INTERVAL_SECONDS)


def _is_short(space: Space, free: int, inodes: int) -> bool:
    return space.free < free or (space.inodes > 0 and space.inodes_free < inodes)


def _above(limit: int) -> int:
    return limit + limit * MARGIN_PERCENT // 100
