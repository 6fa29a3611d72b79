"""Keeps the checkpoints of a data directory: saves, loads, and clears away what none refers to.

A checkpoint is `checkpoint.bin` (tables, registry, position in the log) and the id runs it names
(`ids-<n>.run`: the identities entered since the one before, merged eight at a time so that their
number stays small).  `checkpoint.prev.bin` is the one before, with everything it names; a damaged
newest falls back to it.

Order of a save: the new run is durable, then the old checkpoint takes the name of the previous,
then the new one its place.  A crash anywhere leaves one of them whole, and every run it names.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.actors import disk
from meterd.core.kernels.tables import DAY_MASK, DAY_NS
from meterd.core.state import Saved
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import Damaged

CURRENT, PREVIOUS = "checkpoint.bin", "checkpoint.prev.bin"
RUN_PATTERN = "ids-*.run"
# So many runs of one level become one of the next.
RUNS_PER_LEVEL = 8

logger = logging.getLogger(__name__)

State = dict[str, Any]
Entries = NDArray[np.uint64]
Arrays = dict[str, NDArray[Any]]


class Run(NamedTuple):
    """One file of identities, as a checkpoint names it."""

    name: str
    level: int
    count: int  # type: ignore[assignment]


class Checkpoints:
    """The checkpoints of one directory.  One save at a time, in a thread of its own."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._runs: list[Run] = []
        self._loaded: list[Entries] = []  # identities of the runs, until they are taken
        self._current_whole = True  # may the current checkpoint become the previous one?
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.saved: State | None = None  # the state of the newest durable one
        self.previous: State | None = None
        self.saved_at = 0.0  # seconds since the epoch, when the newest became durable

    def load(self) -> tuple[State, Arrays] | None:
        """Return the newest checkpoint that is whole; None when there is none.

        Raises Corrupt when there are some and none is whole.
        """
        damage: Corrupt | None = None
        for name in (CURRENT, PREVIOUS):
            path = self._directory / name
            if not path.exists():
                continue
            try:
                state, arrays = checkpoint_format.decode(_mapped(path))
                self._runs = [Run(*run) for run in state["runs"]]
                self._loaded = [part for run in self._runs for part in self._read_run(run)]
            except Damaged as error:
                damage = Corrupt(str(path), error.offset, error.reason)
            except Corrupt as error:  # of a run
                damage = error
            else:
                self._current_whole = name == CURRENT
                self.saved = state
                self.previous = self._previous_state() or state
                self.saved_at = path.stat().st_mtime
                return state, arrays
            logger.warning("%s; falling back", damage)
        if damage is not None:
            raise damage
        return None

    def _previous_state(self) -> State | None:
        """Return the state of the previous checkpoint: what it needs must stay while it stands."""
        try:
            return checkpoint_format.read_state(_mapped(self._directory / PREVIOUS))
        except (Damaged, FileNotFoundError):
            return None

    def identities(self) -> Iterator[Entries]:
        """Yield the identities of the checkpoint that was loaded, oldest run first; once."""
        while self._loaded:
            yield self._loaded.pop(0)

    @property
    def busy(self) -> bool:
        """Is a save under way?  Raises what ended the last one."""
        if self._failure is not None:
            raise self._failure
        return self._thread is not None and self._thread.is_alive()

    def save(self, saved: Saved, position: State) -> None:
        """Begin to save a copy of the state; `busy` until it is durable."""
        self._thread = threading.Thread(
            target=self._save_guarded, args=(saved, position), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until no save is under way."""
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _save_guarded(self, saved: Saved, position: State) -> None:
        try:
            self._save(saved, position)
        except BaseException as error:  # handed to the actor's loop, which ends the process
            self._failure = error

    def _save(self, saved: Saved, position: State) -> None:
        number = 1 + max((_number(run.name) for run in self._runs), default=0)
        if len(saved.identities):
            run = self._write_run(number, 0, [saved.identities])
            self._runs = self._merged([*self._runs, run], saved.state["horizon"])
        state = saved.state | position | {"runs": [list(run) for run in self._runs]}
        current = self._directory / CURRENT
        if current.exists() and self._current_whole:
            # The old one keeps its place until the new one is whole: a copy is linked, not moved.
            spare = self._directory / (PREVIOUS + ".new")
            spare.unlink(missing_ok=True)
            os.link(current, spare)
            os.replace(spare, self._directory / PREVIOUS)
            disk.sync_directory(self._directory)
        disk.atomic_write(current, checkpoint_format.encode(state, saved.arrays))
        self._current_whole = True
        self.previous, self.saved = self.saved, state
        self.saved_at = time.time()
        self._clear()

    def _merged(self, runs: list[Run], horizon: int) -> list[Run]:
        """Merge the last runs while eight of one level stand together."""
        while len(runs) >= RUNS_PER_LEVEL:
            tail = runs[-RUNS_PER_LEVEL:]
            if any(run.level != tail[0].level for run in tail):
                break
            parts = [_living(part, horizon) for run in tail for part in self._read_run(run)]
            number = 1 + max(_number(run.name) for run in runs)
            merged = self._write_run(number, tail[0].level + 1, parts)
            runs = [*runs[:-RUNS_PER_LEVEL], merged]
        return runs

    def _write_run(self, number: int, level: int, parts: list[Entries]) -> Run:
        """Write a run.  Nothing reads it before the next start or merge, so memory lets it go."""
        name = f"ids-{number:012d}.run"
        arrays = {f"identities.{place}": part for place, part in enumerate(parts)}
        path = self._directory / name
        disk.atomic_write(path, checkpoint_format.encode({"kind": "identities"}, arrays))
        disk.uncache(path)
        return Run(name, level, sum(map(len, parts)))

    def _read_run(self, run: Run) -> list[Entries]:
        """Return the identities of a run, in parts.  Raises Corrupt, also when it is missing."""
        path = self._directory / run.name
        try:
            if not path.exists():
                raise Damaged(0, "a checkpoint names it, and it is missing")
            parts = list(checkpoint_format.decode(_mapped(path))[1].values())
            if sum(map(len, parts)) != run.count:
                raise Damaged(0, f"a checkpoint says it has {run.count} identities")
        except Damaged as error:
            raise Corrupt(str(path), error.offset, error.reason) from error
        return parts

    def _clear(self) -> None:
        """Remove runs that neither checkpoint names."""
        named = {run.name for run in self._runs}
        for state in (self.saved, self.previous):
            named |= {name for name, *_ in (state or {}).get("runs", ())}
        for path in self._directory.glob(RUN_PATTERN):
            if path.name not in named:
                path.unlink()


def _living(entries: Entries, horizon: int) -> Entries:
    """Return the identities whose events have not expired; usually all of them, not copied."""
    days = (entries[:, 1] & DAY_MASK).astype(np.int64)
    living = days >= horizon // DAY_NS
    return entries if living.all() else entries[living]


def _number(run_name: str) -> int:
    return int(run_name.removeprefix("ids-").removesuffix(".run"))


def _mapped(path: Path) -> memoryview:
    """Return a file's bytes; the mapping lives as long as they are used."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
