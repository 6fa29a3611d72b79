"""Watches the space of the data directory: has events refused in time, keeps the ballast.

Writers that find no room say so (`no_room`), because a quota shows nowhere else; the first of them
has events refused, and only when none waits any more are they taken again.  What works in the
background asks `RetentionSweeper.holds_still`; the usage actor is told the state (`disk`).
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.housekeeping.ballast import Ballast
from meterd.actors.housekeeping.service import Service
from meterd.actors.options import Disk
from meterd.core.housekeeping import disk_state
from meterd.core.housekeeping.disk_state import DiskStanding, Limits, Space

if TYPE_CHECKING:
    from meterd.actors.housekeeping.log_retention import LogRetention
    from meterd.actors.retention_sweeper import RetentionSweeper

# Clients that were refused for lack of space ask again after so long.
RETRY_MS = 2_000
# A ballast that was given back is not kept again before: whoever wanted the space needs it now.
BALLAST_PAUSE_SECONDS = 60.0

logger = logging.getLogger(__name__)


def limits_of(options: Disk) -> Limits:
    """Return the limits that the options set."""
    return Limits(
        warn_free=options.warn_free,
        warn_free_ratio=options.warn_free_ratio,
        stop_free=options.stop_free,
        stop_free_ratio=options.stop_free_ratio,
        hard_free=options.hard_free,
        resume_margin=options.resume_margin,
        resume_hold=options.resume_hold,
        inode_warn=options.inode_warn,
        inode_warn_ratio=options.inode_warn_ratio,
        inode_stop=options.inode_stop,
        inode_resume=options.inode_resume,
    )


def space_of(directory: str) -> Space:
    """Return what the file system of a directory says about itself.  Raises OSError."""
    found = os.statvfs(directory)
    return Space(
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
        found.f_favail,
        found.f_files,
    )


class DiskWatch(Service):
    """See the module."""

    messages = (b"hello", b"no_room")

    def __init__(self, sweeper: RetentionSweeper, retention: LogRetention) -> None:
        super().__init__(sweeper)
        self._retention = retention
        self.standing = DiskStanding()
        self.ballast = Ballast(self.directory)
        self._ballast_due = 0.0
        self._without_room: set[bytes] = set()  # actors that wait for space
        self._looked_at = time.monotonic()
        self._stopped = 0.0  # seconds, not counted yet
        self.space = space_of(self.directory)
        for cause in disk_state.CAUSES:
            self.sweeper.telemetry.add(f'disk_write_stops_total{{cause="{cause}"}}', 0)
        self.look(self._looked_at)
        self.due = 0.0
        if self.standing.state == "ok":
            self._say_state()  # an earlier process may have said something else

    @property
    def limits(self) -> Limits:
        return limits_of(self.sweeper.options.disk)

    def handle(self, frames: list[Any]) -> None:
        if frames[0] == b"no_room":
            _, actor, waits = frames
            (self._without_room.add if waits == b"1" else self._without_room.discard)(actor)
            self.look(time.monotonic())
            return
        if frames[1] == b"usage":
            self._without_room.clear()  # the chain has started again, and tells us anew
        self._say_state()  # who has started again knows nothing

    def turn(self, now: float) -> None:
        self.look(now)
        if self.standing.state != "hard" and now >= self._ballast_due:
            self._keep_ballast()

    def look(self, now: float) -> None:
        """Look at the space, have events refused or taken again, set when to look next.

        Whoever looks and finds the disk full gives the ballast back.
        """
        options, telemetry = self.sweeper.options.disk, self.sweeper.telemetry
        before, free_before = self.standing, self.space.free
        seconds = now - self._looked_at
        self._looked_at = now
        try:
            self.space = space_of(self.directory)
        except OSError as error:
            telemetry.add("disk_check_errors_total")
            logger.error("cannot look at the disk: %s", error)
            self.due = now + options.check_interval
            return
        no_room = bool(self._without_room)
        self.standing = disk_state.next_standing(before, self.space, self.limits, no_room, now)
        if before.state in ("stop", "hard"):
            self._count_stopped(seconds)
        if self.standing.state != before.state:
            self._on_state(before)
        rate = max(0.0, (free_before - self.space.free) / seconds) if seconds > 0 else 0.0
        self.due = now + disk_state.next_check(
            self.standing,
            self.space,
            self.limits,
            rate,
            (options.check_interval_min, options.check_interval),
        )
        if self.standing.state == "hard":
            self.release("the disk is full")
        self._measure()

    def _count_stopped(self, seconds: float) -> None:
        self._stopped += max(0.0, seconds)
        whole = int(self._stopped)
        self._stopped -= whole
        self.sweeper.telemetry.add("disk_write_stop_seconds_total", whole)

    def _measure(self) -> None:
        telemetry, space, limits = self.sweeper.telemetry, self.space, self.limits
        path = f'path="{self.directory}"'
        telemetry.set(f"disk_free_bytes{{{path}}}", space.free)
        telemetry.set(f"disk_size_bytes{{{path}}}", space.size)
        telemetry.set(f"disk_inodes_free{{{path}}}", space.inodes_free)
        telemetry.set(f"disk_inodes{{{path}}}", space.inodes)
        telemetry.set("disk_ballast_bytes", self.ballast.size)
        for state in disk_state.STATES:
            telemetry.set(f'disk_state{{state="{state}"}}', int(state == self.standing.state))
        for limit, size in (
            ("warn", limits.warn_at(space.size)),
            ("stop", limits.stop_at(space.size)),
            ("resume", limits.resume_at(space.size)),
            ("hard", limits.hard_at(space.size)),
        ):
            telemetry.set(f'disk_limit_bytes{{limit="{limit}"}}', size)

    def _on_state(self, before: DiskStanding) -> None:
        state, cause = self.standing.state, self.standing.cause
        fields = {
            "cause": cause or "-",
            "free": self.space.free,
            "inodes_free": self.space.inodes_free,
            "waiting": ",".join(sorted(actor.decode() for actor in self._without_room)) or "-",
        }
        level = logging.INFO if state == "ok" else logging.WARNING
        logger.log(level, "disk state %s, was %s", state, before.state, extra={"fields": fields})
        if disk_state.STATES.index(state) > disk_state.STATES.index(before.state):
            self._retention.due = 0.0  # what may be deleted is deleted now
        if state in ("stop", "hard") and before.state not in ("stop", "hard"):
            self.sweeper.telemetry.add(f'disk_write_stops_total{{cause="{cause}"}}')
        self._say_state()

    def _say_state(self) -> None:
        state = self.standing.state
        code = "disk_stop" if state in ("stop", "hard") else None
        said = {"source": self.sweeper.name, "code": code, "retry_after_ms": RETRY_MS}
        self.sweeper.send("router", [b"admission", msgpack.packb(said)])
        self.sweeper.send("usage", [b"disk", state.encode()])

    # Ballast

    def release(self, why: str) -> int:
        """Give the ballast back; return how many bytes that was."""
        freed = self.ballast.release()
        self._ballast_due = time.monotonic() + BALLAST_PAUSE_SECONDS
        if freed:
            fields = {"bytes": freed}
            logger.warning("the ballast is given back: %s", why, extra={"fields": fields})
            self.due = 0.0
        return freed

    def _keep_ballast(self) -> None:
        """Keep a piece more of the ballast where there is room for all of it, or less of it."""
        space, limits, kept = self.space, self.limits, self.ballast.size
        wanted = limits.reserve(self.sweeper.options.disk.ballast, space.size)
        if kept == wanted:
            return
        if kept > wanted:
            self.ballast.grow(wanted)
        elif self.standing.state in ("ok", "warn"):
            if space.free - (wanted - kept) < limits.resume_at(space.size):
                return  # looked at again with the space
            if self.ballast.grow(wanted) > kept:
                self.due = 0.0
