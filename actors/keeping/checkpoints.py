"""Keeps the checkpoints of a data directory: saves, loads, and clears away what none refers to.

A checkpoint is `checkpoint.bin` (tables, registry, position in the log) and the files of
identities that it names (`identity_store.py`).  `checkpoint.prev.bin` is the one before, with
everything it names; a damaged newest falls back to it.

Order of a save: the identities are durable, and the new checkpoint under a temporary name, then the
old one takes the name of the previous, then the new one its place.  A crash anywhere leaves one of
them whole, and every file it names.  A save that finds no room changes nothing, and `waiting` says
so until a later one has found it; the space for the next one is allocated ahead.

The loop goes on while a save is under way: it hands over the cells in turns
(core/state/snapshot.py).
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meterd.actors.files import disk
from meterd.actors.files.direct_file import Staging, page_memory
from meterd.actors.keeping.cell_stream import CellStream, Ended
from meterd.actors.keeping.identity_store import IdentityStore
from meterd.actors.machine.background import Background
from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.state.machine import StateMachine
from meterd.core.state.snapshot import CELLS, PIECE_SIZE, Snapshot, copied
from meterd.protocol import checkpoint_format
from meterd.protocol.checkpoint_format import Section
from meterd.protocol.errors import Corrupt, DiskFull
from meterd.protocol.log_format import Bytes, Damaged

CURRENT, PREVIOUS = "checkpoint.bin", "checkpoint.prev.bin"
# What found no room on the disk is tried again after so long.
RETRY_SECONDS = 5.0
# Allocate so much for the next checkpoint, in percent of the last: totals grow.
PREPARED_PERCENT = 125
# The loop hands over so many cells for each event applied meanwhile, so that few of them change
# before their turn and are held twice; and at least so many in a turn.
CELLS_PER_EVENT = 8
CELLS_PER_TURN = 16_384
# While the loop waits for a save it hands over as fast as the disk takes it.
WAIT_SECONDS = 0.05

logger = logging.getLogger(__name__)

State = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
Restore = Callable[[State, Arrays], None]
Failure = Literal["no room", "spoiled"]


class Checkpoints:
    """The checkpoints of one directory.  One save at a time, in a thread of its own."""

    def __init__(self, directory: str, store: IdentityStore) -> None:
        self._directory = Path(directory)
        self._store = store
        self._staging = Staging()
        self._cells = CellStream()
        self._room = np.frombuffer(page_memory(PIECE_SIZE), np.uint8)
        self._current_whole = True  # may the current checkpoint become the previous one?
        self._lane: Background[None] = Background("checkpoint")
        self._end: Callable[[], None] = lambda: None  # of the snapshot that is being saved
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

    @property
    def saving(self) -> bool:
        """Is a save under way, or its end not taken over yet?"""
        return self._lane.busy

    def save(self, machine: StateMachine, position: State) -> None:
        """Begin to save what is applied; `saving` until it is durable; call `turn` until then."""
        self._end = machine.end_save
        snapshot = machine.save()
        self._cells.begin(snapshot)
        self._lane.start(lambda: self._save(snapshot, position))

    def turn(self, events: int = 0) -> bool:
        """Hand over some of what is to be saved, more when events were applied since the last turn.

        Returns whether there is more, so that the next turn should come soon.
        """
        self._cells.feed(max(CELLS_PER_TURN, CELLS_PER_EVENT * events))
        return self._cells.unfinished and self._lane.busy

    def step(self, wait: bool = False) -> Failure | None:
        """Take over a save that has ended; say why it was given up, if it was.

        Raises FsyncFailed, OSError.
        """
        while wait and self._lane.working and self._cells.unfinished:
            self._cells.feed(CELLS_PER_TURN, WAIT_SECONDS)
        if not self._lane.ended(wait):
            return None
        self._end()
        try:
            self._lane.take(wait)
        except DiskFull as full:
            logger.warning("no room for a checkpoint: %s", full)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.waiting = True
            return "no room"
        except Ended:
            logger.info("a checkpoint is begun again: an account was erased meanwhile")
            return "spoiled"
        return None

    def _save(self, snapshot: Snapshot, position: State) -> None:
        state = snapshot.state | position | self._store.save_part(snapshot.identities)
        current = self._directory / CURRENT
        size = 0

        def pieces() -> Iterator[Bytes]:
            nonlocal size
            for piece in checkpoint_format.encoded(state, self._sections(snapshot)):
                size += memoryview(piece).nbytes
                yield piece
            if snapshot.spoiled:
                raise Ended

        disk.atomic_write(current, pieces(), self._staging, self._keep_previous)
        self._current_whole = True
        self.previous, self.saved = self.saved, state
        self.saved_at = time.time()
        self.waiting = False
        self._store.remove_others(kept for kept in (self.saved, self.previous) if kept)
        disk.prepare_write(current, size * PREPARED_PERCENT // 100)

    def _sections(self, snapshot: Snapshot) -> list[tuple[Section, Iterable[Bytes]]]:
        """Return what a checkpoint consists of: the cells first, so that few have to be kept."""
        cells = Section(CELLS, "<i8", (snapshot.cells, CELL_WORDS))
        found: list[tuple[Section, Iterable[Bytes]]] = [(cells, self._cells.pieces(snapshot))]
        for name, rows in (snapshot.growing | snapshot.fixed).items():
            found.append((checkpoint_format.section_of(name, rows), copied(rows, self._room)))
        return found

    def _keep_previous(self) -> None:
        """Give the old checkpoint the previous one's name; it keeps its own until it is replaced.

        So a copy is linked, not moved.
        """
        current = self._directory / CURRENT
        if current.exists() and self._current_whole:
            previous = self._directory / PREVIOUS
            spare, old = (previous.with_name(PREVIOUS + suffix) for suffix in (".new", ".old"))
            with disk.full_disk_told():
                for name in (spare, old):
                    name.unlink(missing_ok=True)
                os.link(current, spare)
                if previous.exists():
                    os.link(previous, old)
                os.replace(spare, previous)
            disk.sync_directory(self._directory)
            disk.remove_in_steps(old)


def _mapped(path: Path) -> memoryview:
    """Return a file's bytes; the mapping lives as long as they are used."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
