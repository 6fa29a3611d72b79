"""Keeps what copies of the directory need, and removes it when it is old.

A name that a copy has listed must be found until it comes to it: log files have a second name for
an hour after they became full (`wal-….open`), and two checkpoints are kept in turn
(`keeping/held_checkpoint.py`).  Copies without `-H` hold such files twice, so an hour must be
enough; `backup hold` keeps them for longer, and a disk that gets full ends them at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from meterd.actors.housekeeping.backups import HOLD
from meterd.actors.housekeeping.service import Service
from meterd.actors.keeping import held_checkpoint
from meterd.protocol.log_format import number_of_open, open_name

if TYPE_CHECKING:
    from meterd.actors.housekeeping.disk_watch import DiskWatch
    from meterd.actors.housekeeping.pins import Pins
    from meterd.actors.retention_sweeper import RetentionSweeper

KEEP_SECONDS = 3_600.0
LOOK_SECONDS = 30.0

logger = logging.getLogger(__name__)


class SecondNames(Service):
    """See the module."""

    def __init__(self, sweeper: RetentionSweeper, pins: Pins, disk: DiskWatch) -> None:
        super().__init__(sweeper)
        self._pins = pins
        self._disk = disk
        self._warned = False

    def turn(self, now: float) -> None:
        self.due = now + LOOK_SECONDS
        if any(pin.name == HOLD for pin in self._pins.active):
            return
        self._keep_checkpoints()
        found = sorted(n for name in os.listdir(self.directory) if (n := number_of_open(name)))
        keep = min(KEEP_SECONDS, self.sweeper.options.storage.copy_grace)
        limit = time.time() - (keep if self._disk.standing.state == "ok" else 0.0)
        for number in found[:-1]:  # the last is the active file
            path = os.path.join(self.directory, open_name(number))
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_mtime <= limit:
                    os.unlink(path)

    def _keep_checkpoints(self) -> None:
        if self._disk.standing.state != "ok":
            held_checkpoint.release(self.directory, *held_checkpoint.IN_TURN)
            return
        try:
            held_checkpoint.renew(self.directory, time.time(), KEEP_SECONDS)
        except OSError as error:  # no hard links here: `backup create` needs none
            if not self._warned:
                logger.warning("checkpoints cannot be kept for copies: %s", error)
            self._warned = True
