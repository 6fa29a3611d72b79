"""Removes the second names of log files that have long been full (`wal-….open`).

They exist for whoever copies the directory: a name that was listed must be found until the copy
comes to it.  Copies without `-H` hold such a file twice, so an hour must be enough; `backup hold`
keeps them for longer, and a disk that gets full ends them at once.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from meterd.actors.housekeeping.backups import HOLD
from meterd.actors.housekeeping.service import Service
from meterd.protocol.log_format import number_of_open, open_name

if TYPE_CHECKING:
    from meterd.actors.housekeeping.disk_watch import DiskWatch
    from meterd.actors.housekeeping.pins import Pins
    from meterd.actors.retention_sweeper import RetentionSweeper

KEEP_SECONDS = 3_600.0
LOOK_SECONDS = 30.0


class SecondNames(Service):
    """See the module."""

    def __init__(self, sweeper: RetentionSweeper, pins: Pins, disk: DiskWatch) -> None:
        super().__init__(sweeper)
        self._pins = pins
        self._disk = disk

    def turn(self, now: float) -> None:
        self.due = now + LOOK_SECONDS
        if any(pin.name == HOLD for pin in self._pins.active):
            return
        found = sorted(n for name in os.listdir(self.directory) if (n := number_of_open(name)))
        keep = min(KEEP_SECONDS, self.sweeper.options.storage.copy_grace)
        limit = time.time() - (keep if self._disk.standing.state == "ok" else 0.0)
        for number in found[:-1]:  # the last is the active file
            path = os.path.join(self.directory, open_name(number))
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_mtime <= limit:
                    os.unlink(path)
