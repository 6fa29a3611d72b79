"""Watches the free space and has the router refuse events before the disk is full."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.housekeeping.service import Service
from meterd.core import disk_state
from meterd.core.disk_state import Limits, Space

if TYPE_CHECKING:
    from meterd.actors.housekeeping.log_retention import LogRetention
    from meterd.actors.retention_sweeper import RetentionSweeper

# Clients that were refused for lack of space ask again after so long.
RETRY_MS = 2_000

logger = logging.getLogger(__name__)


class DiskWatch(Service):
    """See the module."""

    messages = (b"hello",)

    def __init__(self, sweeper: RetentionSweeper, retention: LogRetention) -> None:
        super().__init__(sweeper)
        self._retention = retention
        self.state: disk_state.State = "ok"
        self._check()

    def handle(self, frames: list[Any]) -> None:
        self._say_state()  # the router has started again and knows nothing

    def turn(self, now: float) -> None:
        self._check()
        interval = self.sweeper.options.disk.check_interval
        self.due = now + disk_state.next_check(self.state, interval)

    def _check(self) -> None:
        """Look at the free space, and have events refused or taken again."""
        options, found = self.sweeper.options.disk, os.statvfs(self.directory)
        space = Space(
            found.f_bavail * found.f_frsize,
            found.f_blocks * found.f_frsize,
            found.f_favail,
            found.f_files,
        )
        before = self.state
        limits = Limits(options.warn_free, options.stop_free, options.resume_margin)
        self.state = disk_state.next_state(before, space, limits)
        if self.state != before:
            self._on_state(before, space)
        path = f'path="{self.directory}"'
        telemetry = self.sweeper.telemetry
        telemetry.set(f"disk_free_bytes{{{path}}}", space.free)
        telemetry.set(f"disk_size_bytes{{{path}}}", space.size)
        telemetry.set(f"disk_inodes_free{{{path}}}", space.inodes_free)
        for state in disk_state.STATES:
            telemetry.set(f'disk_state{{state="{state}"}}', int(state == self.state))

    def _on_state(self, before: disk_state.State, space: Space) -> None:
        level = logging.INFO if self.state == "ok" else logging.WARNING
        fields = {"free": space.free, "inodes_free": space.inodes_free}
        logger.log(level, "disk state %s, was %s", self.state, before, extra={"fields": fields})
        if "stop" not in (before, self.state):
            return
        if self.state == "stop":
            self.sweeper.telemetry.add("disk_write_stops_total")
            self._retention.due = 0.0
        self._say_state()

    def _say_state(self) -> None:
        code = "disk_stop" if self.state == "stop" else None
        said = {"source": self.sweeper.name, "code": code, "retry_after_ms": RETRY_MS}
        self.sweeper.send("router", [b"admission", msgpack.packb(said)])
