"""Decides from the space of a file system, and from writes that found none, what may be written.

| state | entered when | left when |
|---|---|---|
| ok | | |
| warn: say so, let retention run | less than `warn_at` is free | 10 % more than that is free |
| stop: no events | less than `stop_at` is free, or a write finds no room | `resume_at` is free and
  writes find room, for `resume_hold` seconds |
| hard: only what makes room | less than `hard_at` is free | twice as much is free; then stop |

Inodes count like bytes: without one no file can be replaced.  A file system that names no number
of inodes has no limit of them.  A quota shows only in writes that fail, so these count as well.

A worse state begins at once; a better one only well above the limit and, where events depend on
it, after a while: a node at the limit must not flap between taking and refusing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

State = Literal["ok", "warn", "stop", "hard"]
Cause = Literal["space", "inodes", "no_room"]

STATES: Final[tuple[State, ...]] = ("ok", "warn", "stop", "hard")
CAUSES: Final[tuple[Cause, ...]] = ("space", "inodes", "no_room")
# With fewer inodes than a node may need at once to replace its files, nothing new is begun.
INODES_HARD: Final = 16
# Leave `warn` only so much above its limit.
WARN_MARGIN_PERCENT: Final = 10
# How fast others may fill a disk before anybody has measured it, in bytes a second.
RATE_ASSUMED: Final = 256 * 1024 * 1024
# Look again when, at that rate, this part of the way to the limit is gone.
LOOK_PART: Final = 0.25
# While events are refused clients wait for every second.
REFUSING_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Space:
    """What a file system says about itself."""

    free: int  # bytes that an ordinary user may still take
    size: int
    inodes_free: int
    inodes: int  # 0: not limited


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds: bytes, parts of the size (0 to 1), numbers of inodes, seconds."""

    warn_free: int
    warn_free_ratio: float
    stop_free: int
    stop_free_ratio: float
    hard_free: int
    resume_margin: int
    resume_hold: float
    inode_warn: int
    inode_warn_ratio: float
    inode_stop: int
    inode_resume: int

    def stop_at(self, size: int) -> int:
        """Return how many free bytes are too few to take events."""
        return max(self.stop_free, int(self.stop_free_ratio * size))

    def hard_at(self, size: int) -> int:
        """Return how many free bytes are too few for anything but what makes room."""
        return min(self.hard_free, self.stop_at(size) // 2)

    def reserve(self, ballast: int, size: int) -> int:
        """Return how much of a ballast to keep: giving it back must not let events in again."""
        return min(ballast, self.stop_at(size) // 2)

    def resume_at(self, size: int) -> int:
        """Return how many free bytes are enough to take events again.

        On a small file system the margin is at most half of what lies above the limit: more would
        hardly ever be free.
        """
        stop = self.stop_at(size)
        return stop + min(self.resume_margin, max(0, size - stop) // 2)

    def warn_at(self, size: int) -> int:
        """Return how many free bytes are few enough to say so."""
        return max(self.warn_free, int(self.warn_free_ratio * size), self.stop_at(size))


@dataclass(frozen=True, slots=True)
class DiskStanding:
    """The state of a file system, and what is needed to leave it."""

    state: State = "ok"
    cause: Cause | None = None  # why events are refused
    good_since: float | None = None  # refused, but all would be well since this second


def next_standing(
    before: DiskStanding, space: Space, limits: Limits, no_room: bool, now: float
) -> DiskStanding:
    """Return how things stand; `no_room`: some writer waits for space, `now`: seconds."""
    cause = _cause(space, limits, no_room)
    refusing = before.state in ("stop", "hard")
    if cause is not None:
        return DiskStanding(_hard_or_stop(before, space, limits), cause)
    if refusing:
        since = before.good_since
        if not _is_comfortable(space, limits):
            since = None
        elif since is None:
            since = now
        if since is None or now - since < limits.resume_hold:
            return DiskStanding(_hard_or_stop(before, space, limits), before.cause, since)
    left = before.state != "ok"
    return DiskStanding("warn" if _is_scarce(space, limits, left) else "ok")


def _cause(space: Space, limits: Limits, no_room: bool) -> Cause | None:
    """Return why events must be refused now, if they must."""
    if space.free < limits.stop_at(space.size):
        return "space"
    if _has_inode_limit(space) and space.inodes_free < max(limits.inode_stop, INODES_HARD):
        return "inodes"
    return "no_room" if no_room else None


def _hard_or_stop(before: DiskStanding, space: Space, limits: Limits) -> State:
    times = 2 if before.state == "hard" else 1
    few = _has_inode_limit(space) and space.inodes_free < times * INODES_HARD
    return "hard" if space.free < times * limits.hard_at(space.size) or few else "stop"


def _is_comfortable(space: Space, limits: Limits) -> bool:
    inodes = max(limits.inode_resume, limits.inode_stop, 2 * INODES_HARD)
    if _has_inode_limit(space) and space.inodes_free < inodes:
        return False
    return space.free >= limits.resume_at(space.size)


def _is_scarce(space: Space, limits: Limits, left: bool) -> bool:
    """Is there little enough to warn; `left`: the warning stands already."""
    percent = 100 + (WARN_MARGIN_PERCENT if left else 0)
    inodes = max(limits.inode_warn, int(limits.inode_warn_ratio * space.inodes))
    inodes = max(inodes, limits.inode_stop)
    if _has_inode_limit(space) and space.inodes_free * 100 < inodes * percent:
        return True
    return space.free * 100 < limits.warn_at(space.size) * percent


def _has_inode_limit(space: Space) -> bool:
    return space.inodes > 0


def next_check(
    standing: DiskStanding, space: Space, limits: Limits, rate: float, interval: tuple[float, float]
) -> float:
    """Return the seconds until the space must be looked at again, within `interval`.

    `rate`: bytes a second by which it fell last.  The nearer the limit and the faster the fall,
    the sooner, and soon while events are refused.
    """
    shortest, longest = min(interval), max(interval)
    if standing.state in ("stop", "hard"):
        shortest, longest = min(shortest, REFUSING_SECONDS), min(longest, REFUSING_SECONDS)
    left = space.free - limits.stop_at(space.size)
    seconds = LOOK_PART * left / max(rate, RATE_ASSUMED)
    return max(shortest, min(longest, seconds))
