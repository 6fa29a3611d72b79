"""Leases on log files: who copies or reads them pins them, and no sweep deletes them meanwhile.

A pin has a name, the first file it holds (with every later one) and a moment at which it ends by
itself, for its owner may have died.  `pins.bin` keeps them over a restart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.actors.files.disk import atomic_write
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Busy, DiskFull
from meterd.protocol.log_format import Damaged

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

FILE_NAME = "pins.bin"
PINS_MAX = 100
# How often to look for pins that have ended.
LOOK_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Pin(NamedTuple):
    """One lease."""

    name: str
    first_file: int
    expires: int  # UTC ns


class Pins(Service):
    """See the module."""

    def __init__(self, sweeper: RetentionSweeper, clock: Callable[[], int] = time.time_ns) -> None:
        super().__init__(sweeper)
        self._clock = clock
        self._path = os.path.join(self.directory, FILE_NAME)
        self._pins = {pin.name: pin for pin in self._load()}
        self.due = 0.0 if self._pins else NEVER

    def pin(self, name: str, first_file: int, expires: int) -> Pin:
        """Hold the log files from a number on until a moment (UTC ns), durably.

        The same name again replaces its lease.  Raises Busy when there are too many, DiskFull.
        """
        if name not in self._pins and len(self._pins) >= PINS_MAX:
            raise Busy(f"{len(self._pins)} pins hold log files already")
        pin = Pin(name, first_file, expires)
        self._save(self._pins | {name: pin})
        self.due = 0.0
        return pin

    def unpin(self, name: str) -> Pin | None:
        """End a lease; return it, or None when there is none of that name.  Raises DiskFull."""
        pin = self._pins.get(name)
        if pin is not None:
            self._save({key: one for key, one in self._pins.items() if key != name})
        return pin

    @property
    def active(self) -> list[Pin]:
        """The leases that have not ended, by name."""
        now = self._clock()
        return [self._pins[name] for name in sorted(self._pins) if self._pins[name].expires > now]

    def turn(self, now: float) -> None:
        ended = set(self._pins) - {pin.name for pin in self.active}
        for name in sorted(ended):
            logger.warning("the pin %s on log files has ended by itself", name)
        if ended:
            # What has ended holds nothing, whatever the file says; it may wait for room.
            self._pins = {pin.name: pin for pin in self.active}
            with contextlib.suppress(DiskFull):
                self._save(self._pins)
        self.due = now + LOOK_SECONDS if self._pins else NEVER

    def _load(self) -> list[Pin]:
        try:
            state = checkpoint_format.read_state(Path(self._path).read_bytes())
        except FileNotFoundError:
            return []
        except Damaged as damage:
            logger.error("%s is damaged, so nothing is pinned: %s", FILE_NAME, damage)
            return []
        return [Pin(*pin) for pin in state["pins"]]

    def _save(self, pins: dict[str, Pin]) -> None:
        state: dict[str, Any] = {"kind": "pins", "pins": [list(pin) for pin in pins.values()]}
        atomic_write(self._path, checkpoint_format.encode(state, {}))
        self._pins = pins
