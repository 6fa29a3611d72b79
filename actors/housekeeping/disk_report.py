"""Answers `disk_status` and `disk_free_reserve`, and remembers how the used space grows.

What was used is sampled once a minute and kept, thinned out with age, in `disk_history.bin`, so
that the growth of a day is known right after a start.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meterd.actors.files.disk import atomic_write
from meterd.actors.housekeeping import disk_usage
from meterd.actors.housekeeping.disk_usage import DirectoryUsage
from meterd.actors.housekeeping.service import Service
from meterd.core.housekeeping.disk_advice import Facts, advise
from meterd.core.housekeeping.disk_growth import DAY_SECONDS, Growth, Sample, full_in_seconds
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import DiskFull, NotNeeded
from meterd.protocol.log_format import Damaged

if TYPE_CHECKING:
    from meterd.actors.housekeeping.disk_watch import DiskWatch
    from meterd.actors.retention_sweeper import RetentionSweeper

HISTORY_FILE = "disk_history.bin"
SAMPLE_SECONDS = 60.0
SAVE_SECONDS = 3_600.0
# Directories that are listed; more would only be smaller ones.
DIRECTORIES_MAX = 50

logger = logging.getLogger(__name__)


class DiskReport(Service):
    """See the module."""

    requests = ("disk_status", "disk_free_reserve")

    def __init__(self, sweeper: RetentionSweeper, watch: DiskWatch) -> None:
        super().__init__(sweeper)
        self._watch = watch
        self._path = Path(self.directory, HISTORY_FILE)
        self._growth = self._load()
        self._save_due = time.monotonic() + SAVE_SECONDS

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        if kind == "disk_free_reserve":
            return self._free_reserve()
        return self._status(self._sample())

    def turn(self, now: float) -> None:
        self._sample()
        self.due = now + SAMPLE_SECONDS
        if now >= self._save_due and not self.sweeper.holds_still:
            self._save_due = now + SAVE_SECONDS
            self._save()

    def close(self) -> None:
        if not self.sweeper.holds_still:
            self._save()

    def _sample(self) -> DirectoryUsage:
        usage = disk_usage.measure(self.directory)
        space = self._watch.space
        self._growth.add(Sample(int(time.time()), space.size - space.free, usage.bytes))
        for kind, part in usage.kinds.items():
            self.sweeper.telemetry.set(f'storage_bytes{{kind="{kind}"}}', part.bytes)
        return usage

    def _free_reserve(self) -> dict[str, Any]:
        """Give the ballast back.  Raises NotNeeded when there is none."""
        freed = self._watch.release("an operator asked for it")
        if not freed:
            raise NotNeeded("there is no reserve to give back")
        self._watch.look(time.monotonic())
        return {"freed": freed, "free": self._watch.space.free}

    def _status(self, usage: DirectoryUsage) -> dict[str, Any]:
        self._watch.look(time.monotonic())
        watch, space, limits = self._watch, self._watch.space, self._watch.limits
        growth = self._growth.per_day(int(time.time()))
        used_per_day, own_per_day = growth if growth is not None else (None, None)
        stop_in = _days(space.free - limits.stop_at(space.size), used_per_day)
        full_in = _days(space.free, used_per_day)
        kinds = {kind: part.bytes for kind, part in usage.kinds.items()}
        standing, reserve = watch.standing, watch.ballast.size
        advice = advise(Facts(standing.state, standing.cause, space, kinds, reserve, full_in))
        largest = sorted(usage.directories.items(), key=lambda one: -one[1].files)
        return {
            "path": os.path.abspath(self.directory),
            "state": standing.state,
            "reason": standing.cause,
            "size": space.size,
            "free": space.free,
            "used": space.size - space.free,
            "own": usage.bytes,
            "inodes": space.inodes,
            "inodes_free": space.inodes_free,
            "limits": {
                "warn": limits.warn_at(space.size),
                "stop": limits.stop_at(space.size),
                "resume": limits.resume_at(space.size),
                "hard": limits.hard_at(space.size),
            },
            "reserve": reserve,
            "kinds": [
                {"kind": kind, "files": part.files, "bytes": part.bytes}
                for kind, part in usage.kinds.items()
            ],
            "directories": [
                {"directory": name, "files": part.files, "bytes": part.bytes}
                for name, part in largest[:DIRECTORIES_MAX]
            ],
            "complete": usage.complete,
            "growth_per_day": used_per_day,
            "own_growth_per_day": own_per_day,
            "stop_in_days": stop_in,
            "full_in_days": full_in,
            "cause": advice.cause,
            "next": advice.next,
        }

    # History

    def _load(self) -> Growth:
        try:
            state, arrays = checkpoint_format.decode(self._path.read_bytes())
        except FileNotFoundError:
            return Growth()
        except Damaged as damage:
            logger.warning("%s is damaged (%s) and begun anew", HISTORY_FILE, damage)
            return Growth()
        return Growth([Sample(*row) for row in arrays["samples"].tolist()], state["distance"])

    def _save(self) -> None:
        rows = np.array(self._growth.samples, np.int64).reshape(-1, len(Sample._fields))
        state = {"kind": "disk_history", "distance": self._growth.distance}
        try:
            atomic_write(self._path, checkpoint_format.encode(state, {"samples": rows}))
        except DiskFull as full:
            logger.info("no room for %s: %s", HISTORY_FILE, full)


def _days(free: int, per_day: float | None) -> float | None:
    seconds = None if per_day is None else full_in_seconds(max(0, free), per_day)
    return None if seconds is None else round(seconds / DAY_SECONDS, 2)
