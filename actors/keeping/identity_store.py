"""Keeps the identities of a data directory: what memory holds, and the runs of all older ones.

Identities that are in no run yet lie in memory (`StateMachine.recent`) and, as far as a checkpoint
covers them, in *parts*, `ids-<n>.part`, in the order they came.  When there are enough they become
a run, `ids-<n>.run`; eight runs of one level become one of the next.  So memory is bounded however
many events are stored, and each identity is written a few times.  Neither kind of file ever
changes; a checkpoint names those it needs, and what neither checkpoint nor memory uses is removed.

The work is done beside the actor's loop, which calls `step`: flushing in one thread, merging in
two, and what the filter of all runs needs in another (`filter_lane.py`).  Checkpoints copy from
the memory that is flushed, so only one of the two is under way.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meterd.actors.files import disk
from meterd.actors.files.direct_file import Staging
from meterd.actors.keeping import run_files
from meterd.actors.keeping.filter_lane import FilterLane
from meterd.actors.machine.background import Background
from meterd.core.kernels import runs as kernels
from meterd.core.kernels.index import clear
from meterd.core.kernels.memory import reserve
from meterd.core.kernels.tables import DAY_NS
from meterd.core.state import identity_runs
from meterd.core.state.identity_filter import LINES_MIN
from meterd.core.state.identity_runs import Entries, Facts, Run, Source, memory_source, merge_source
from meterd.core.state.machine import StateMachine
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Corrupt, DiskFull
from meterd.protocol.log_format import Damaged

# So many runs of one level become one of the next.
RUNS_PER_LEVEL = 8
# So many parts become one, so that saves of few events do not leave a file each.
PARTS_MAX = 8
# Lines of the smallest filter.
FILTER_LINES_MIN = LINES_MIN
# What found no room on the disk is tried again after so long.
RETRY_SECONDS = 10.0
NAME = re.compile(r"ids-([0-9]{12})\.(run|part)")

logger = logging.getLogger(__name__)

# What the loop is to do when work beside it has ended.
Done = Callable[[], None]
State = dict[str, Any]


class FileName(NamedTuple):
    """A file as a checkpoint names it; of parts the level says nothing."""

    name: str
    level: int
    count: int  # type: ignore[assignment]


class OpenRun(NamedTuple):
    """A run in use."""

    file: FileName
    run: Run


class Opened(NamedTuple):
    """What a checkpoint names: checked, and not yet in use."""

    runs: list[OpenRun]
    parts: list[FileName]
    entries: list[Entries]  # of the parts


class IdentityStore:
    """See the module."""

    def __init__(self, directory: str, state: StateMachine, flush_at: int) -> None:
        """`flush_at`: how many identities in memory are enough for a run."""
        self._directory = Path(directory)
        self._state = state
        self._flush_at = flush_at
        self._runs: list[OpenRun] = []
        self._parts: list[FileName] = []  # what of those in memory is durable
        # Numbers go on, so nothing would ever replace what a killed flush or merge has left.
        for path in self._directory.glob("ids-*.tmp"):
            path.unlink()
        names = (path.name for path in self._directory.glob("ids-*"))
        self._next = next_number(names)
        self._unfinished: set[str] = set()  # files that are made and not in use yet
        self._flushing: Entries | None = None
        self._made: list[OpenRun] | None = None  # the run of them, not in use yet
        self._room: Entries | None = None
        self._retry_at = 0.0
        self._flusher: Background[Done] = Background("flush")
        # Large merges take minutes, in which many small runs would come together.
        self._merger: Background[Done] = Background("merge")
        self._deep_merger: Background[Done] = Background("merge deep")
        self._filter = FilterLane(state, FILTER_LINES_MIN)
        self._staging = Staging()

    def open(self, named: State) -> Opened:
        """Return what a checkpoint names.  Raises Corrupt when a part of it is damaged."""
        return open_named(self._directory, named)

    def take_over(self, opened: Opened) -> None:
        """Use what was opened, in the state that was restored with it."""
        self._use(opened.runs)
        self._parts = opened.parts
        for entries in opened.entries:
            self._state.restore_identities(entries)

    # For a checkpoint, in the thread that saves it

    def save_part(self, entries: Entries) -> State:
        """Make durable what of the identities in memory is not; return the names of all files.

        `entries` are those in memory, oldest first.  Raises DiskFull, FsyncFailed, OSError.
        """
        parts, durable = self._parts, sum(part.count for part in self._parts)
        if len(entries) > durable:
            if len(parts) >= PARTS_MAX:
                parts, durable = [], 0
            name = self._new_name("part")
            held = {"identities": entries[durable:]}
            encoded = checkpoint_format.encode({"kind": "identities"}, held)
            disk.atomic_write(self._directory / name, encoded, self._staging)
            self._parts = [*parts, FileName(name, 0, len(entries) - durable)]
            self._unfinished.discard(name)
        return self._named()

    def remove_others(self, checkpoints: Iterable[State]) -> None:
        """Remove the files that none of these checkpoints names, and memory does not use."""
        kept = set(self._unfinished)
        for named in (self._named(), *checkpoints):
            kept |= {file[0] for kind in ("runs", "parts") for file in named[kind]}
        for path in self._directory.glob("ids-*"):
            if NAME.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    def _named(self) -> State:
        return {
            "runs": [list(one.file) for one in self._runs],
            "parts": [list(part) for part in self._parts],
        }

    # Beside the loop

    @property
    def busy(self) -> bool:
        """Are identities on their way from memory to a run?  Then no checkpoint may begin."""
        return self._flushing is not None

    def step(self, now: float, may_flush: bool, wait: bool = False) -> None:
        """Take over what has ended and begin what is due.

        `may_flush`: no checkpoint is under way; `wait`: for a flush.  Raises FsyncFailed, Corrupt.
        """
        self._step_flush(may_flush, wait, now)
        for lane, deep in ((self._merger, False), (self._deep_merger, True)):
            self._take(lane, wait=False)
            if now >= self._retry_at and not lane.busy:
                self._merge(lane, deep)
        self._drop_expired()

    def settle(self, beat: Callable[[], None]) -> None:
        """Wait until the filter holds the identities of all runs, which makes a look-up fast."""
        self._filter.settle(beat)

    def finish(self) -> None:
        """Wait for what is under way, and take it over.  Raises FsyncFailed, Corrupt."""
        self._take(self._flusher, wait=True)
        self._filter.step(wait=True)
        self._end_flush()
        self._filter.finish()
        self._take(self._flusher, wait=True)
        self._take(self._merger, wait=True)
        self._take(self._deep_merger, wait=True)

    def _take(self, lane: Background[Done], wait: bool) -> None:
        try:
            done = lane.take(wait)
        except DiskFull as full:
            logger.warning("no room for a run of identities: %s", full)
            self._retry_at = time.monotonic() + RETRY_SECONDS
        else:
            if done is not None:
                done()

    def _step_flush(self, may_flush: bool, wait: bool, now: float) -> None:
        self._take(self._flusher, wait)
        self._filter.step(wait)
        self._end_flush()
        if now < self._retry_at or self._flusher.busy or self._made is not None:
            return
        if self._flushing is not None:  # the last try found no room
            self._flush(self._flushing)
        elif may_flush and self._state.recent >= self._flush_at and self._filter.may_begin_flush:
            self._flushing, self._parts = self._state.begin_flush(), []
            self._filter.begin_flush(self._flushing)
            self._flush(self._flushing)

    def _flush(self, entries: Entries) -> None:
        """Make a run of identities that memory has set aside."""
        name = self._new_name("run")

        def work() -> Done:
            facts = identity_runs.facts_of_entries(entries)
            if self._room is None:
                self._room = reserve(self._state.tables.journal.shape, np.uint64)
            made = self._make(name, 0, facts, memory_source(entries, facts, self._room))

            def done() -> None:
                self._made = made

            return done

        self._flusher.start(work)

    def _end_flush(self) -> None:
        """Use the run that was made, and have the table that it takes the place of emptied."""
        if self._made is None or not self._filter.has_flushing:
            return
        self._use([*self._runs, *self._made])
        flushed = self._state.end_flush()
        self._flushing = self._made = None
        self._filter.end_flush()

        def work() -> Done:
            clear(flushed)
            return lambda: None

        self._flusher.start(work)

    def _drop_expired(self) -> None:
        """Use no run any more of which everything has expired."""
        day = self._horizon_day
        kept = [one for one in self._runs if int(one.run.facts[kernels.NEWEST_DAY]) >= day]
        if len(kept) < len(self._runs):
            self._use(kept)

    def _merge(self, lane: Background[Done], deep: bool) -> None:
        """Begin to merge the oldest runs of the lowest level that has enough; deep: above 0."""
        levels = [one.file.level for one in self._runs if (one.file.level > 0) == deep]
        due = [level for level in set(levels) if levels.count(level) >= RUNS_PER_LEVEL]
        if not due:
            return
        level, day = min(due), self._horizon_day
        old = [one for one in self._runs if one.file.level == level][:RUNS_PER_LEVEL]
        name = self._new_name("run")

        def work() -> Done:
            runs = [one.run for one in old]
            facts = identity_runs.facts_of_merge(runs, day)
            made = self._make(name, level + 1, facts, merge_source(runs, day))
            kept = {one.file.name for one in old}
            return lambda: self._use(
                [*(one for one in self._runs if one.file.name not in kept), *made]
            )

        lane.start(work)

    def _make(self, name: str, level: int, facts: Facts, source: Source) -> list[OpenRun]:
        """Write a run and open it; no run when nothing has not expired."""
        path = self._directory / name
        count = run_files.write_run(path, facts, source)
        if count == 0:
            return []
        return [OpenRun(FileName(name, level, count), run_files.open_run(path, check=False))]

    def _use(self, runs: list[OpenRun]) -> None:
        self._runs = runs
        self._unfinished -= {one.file.name for one in runs}
        self._state.use_runs([one.run for one in runs])

    @property
    def _horizon_day(self) -> int:
        return max(0, self._state.horizon // DAY_NS)

    def _new_name(self, kind: str) -> str:
        name = f"ids-{self._next:012d}.{kind}"
        self._next += 1
        self._unfinished.add(name)
        return name


def open_named(directory: Path, named: State) -> Opened:
    """Return what a checkpoint names, all of it checked.  Raises Corrupt."""
    parts = [FileName(*file) for file in named["parts"]]
    return Opened(
        [open_run(directory, FileName(*file)) for file in named["runs"]],
        parts,
        [read_part(directory, part) for part in parts],
    )


def open_run(directory: Path, file: FileName) -> OpenRun:
    """Return a run, all of it checked.  Raises Corrupt."""
    path = directory / file.name
    run = run_files.open_run(path, check=True)
    if int(run.facts[kernels.COUNT]) != file.count:
        raise Corrupt(str(path), 0, f"a checkpoint says it has {file.count} identities")
    return OpenRun(file, run)


def read_part(directory: Path, part: FileName) -> Entries:
    """Return the identities of a part.  Raises Corrupt."""
    path = directory / part.name
    try:
        entries: Entries = checkpoint_format.decode(path.read_bytes())[1]["identities"]
        if len(entries) != part.count:
            raise Damaged(0, f"a checkpoint says it has {part.count} identities")
    except FileNotFoundError:
        raise Corrupt(str(path), 0, "a checkpoint names it, and it is missing") from None
    except Damaged as damage:
        raise Corrupt(str(path), damage.offset, damage.reason) from damage
    return entries


def next_number(names: Iterable[str]) -> int:
    """Return the number of the next file beside these."""
    matches = map(NAME.fullmatch, names)
    return 1 + max((int(match[1]) for match in matches if match), default=0)
