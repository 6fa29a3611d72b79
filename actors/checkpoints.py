"""Keeps the checkpoints of a data directory: saves, loads, and clears away what none refers to.

A checkpoint is `checkpoint.bin` (tables, registry, position in the log) and the files of
identities that it names (`identity_store.py`).  `checkpoint.prev.bin` is the one before, with
everything it names; a damaged newest falls back to it.

Order of a save: the identities are durable, and the new checkpoint under a temporary name, then the
old one takes the name of the previous, then the new one its place.  A crash anywhere leaves one of
them whole, and every file it names.  A save that finds no room changes nothing, and `waiting` says
so until a later one has found it; the space for the next one is allocated ahead.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from meterd.actors import disk
from meterd.actors.background import Background
from meterd.actors.direct_file import Staging
from meterd.actors.identity_store import IdentityStore
from meterd.core.state import Saved
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Corrupt, DiskFull
from meterd.protocol.log_format import Damaged

CURRENT, PREVIOUS = "checkpoint.bin", "checkpoint.prev.bin"
# What found no room on the disk is tried again after so long.
RETRY_SECONDS = 5.0
# Allocate so much for the next checkpoint, in percent of the last: totals grow.
PREPARED_PERCENT = 125

logger = logging.getLogger(__name__)

State = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
Restore = Callable[[State, Arrays], None]


class Checkpoints:
    """The checkpoints of one directory.  One save at a time, in a thread of its own."""

    def __init__(self, directory: str, store: IdentityStore) -> None:
        self._directory = Path(directory)
        self._store = store
        self._staging = Staging()
        self._current_whole = True  # may the current checkpoint become the previous one?
        self._lane: Background[None] = Background("checkpoint")
        self._retry_at = 0.0
        self.waiting = False  # the last save found no room, and none has since
        self.saved: State | None = None  # the state of the newest durable one
        self.previous: State | None = None
        self.saved_at = 0.0  # seconds since the epoch, when the newest became durable

    def load(self, restore: Restore) -> bool:
        """Restore the newest checkpoint that is whole; return whether there is one.

        Raises Corrupt when there are some and none is whole.
        """
        damage: Corrupt | None = None
        lost = False  # identities, of a checkpoint that is whole otherwise
        for name in (CURRENT, PREVIOUS):
            path = self._directory / name
            if not path.exists():
                continue
            try:
                state, arrays = checkpoint_format.decode(_mapped(path))
                opened = self._store.open(state)
            except Damaged as error:
                damage = Corrupt(str(path), error.offset, error.reason)
            except Corrupt as error:  # of a file that it names
                damage = error
                lost = True
            else:
                self._current_whole = name == CURRENT
                self.saved = state
                self.previous = self._previous_state() or state
                self.saved_at = path.stat().st_mtime
                restore(state, arrays)
                self._store.take_over(opened)
                return True
            logger.warning("%s; falling back", damage)
        if lost:
            logger.error("identities are lost; meterctl fsck --rebuild-identities makes them anew")
        if damage is not None:
            raise damage
        return False

    def _previous_state(self) -> State | None:
        """Return the state of the previous checkpoint: what it needs must stay while it stands."""
        try:
            return checkpoint_format.read_state(_mapped(self._directory / PREVIOUS))
        except (Damaged, FileNotFoundError):
            return None

    @property
    def busy(self) -> bool:
        """Is a save under way, or has one just found no room on the disk?"""
        return self._lane.busy or time.monotonic() < self._retry_at

    def save(self, saved: Saved, position: State) -> None:
        """Begin to save a copy of the state; `busy` until it is durable."""
        self._lane.start(lambda: self._save(saved, position))

    def step(self, wait: bool = False) -> bool:
        """Take over a save that has ended; return False when it found no room, and was given up.

        Raises FsyncFailed, OSError.
        """
        try:
            self._lane.take(wait)
        except DiskFull as full:
            logger.warning("no room for a checkpoint: %s", full)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.waiting = True
            return False
        return True

    def _save(self, saved: Saved, position: State) -> None:
        state = saved.state | position | self._store.save_part(saved.identities)
        current = self._directory / CURRENT
        encoded = checkpoint_format.encode(state, saved.arrays)
        disk.atomic_write(current, encoded, self._staging, self._keep_previous)
        self._current_whole = True
        self.previous, self.saved = self.saved, state
        self.saved_at = time.time()
        self.waiting = False
        self._store.remove_others(kept for kept in (self.saved, self.previous) if kept)
        size = sum(memoryview(buffer).nbytes for buffer in encoded)
        disk.prepare_write(current, size * PREPARED_PERCENT // 100)

    def _keep_previous(self) -> None:
        """Give the old checkpoint the previous one's name; it keeps its own until it is replaced.

        So a copy is linked, not moved.
        """
        current = self._directory / CURRENT
        if current.exists() and self._current_whole:
            spare = self._directory / (PREVIOUS + ".new")
            with disk.full_disk_told():
                spare.unlink(missing_ok=True)
                os.link(current, spare)
                os.replace(spare, self._directory / PREVIOUS)
            disk.sync_directory(self._directory)


def _mapped(path: Path) -> memoryview:
    """Return a file's bytes; the mapping lives as long as they are used."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
