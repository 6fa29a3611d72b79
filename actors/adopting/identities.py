"""Identities of adopted partitions, as runs.

They follow from the rows (core/state/identity_rebuild.py), but for those of erased accounts: these
rows have gone, and their ids stay used.  An identity does not say of which partition it is.  So
when an adopted partition has had an account erased, everything that the peer's identities hold
beyond those of all its rows is taken as well: that is what was erased, perhaps of other partitions,
too.  Where the node has one of these itself, and has not come to an event of that account yet, the
event counts for nothing here, as it does everywhere once the erasure is applied.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from meterd.actors.adopting.loaded import Loaded
from meterd.actors.adopting.rows import Mask
from meterd.actors.files.segment_files import read_segment
from meterd.actors.keeping import identity_store, run_files
from meterd.core.kernels import runs as kernels
from meterd.core.kernels.tables import DAY_NS
from meterd.core.segments.reader import SegmentReader
from meterd.core.state import identity_runs
from meterd.core.state.identity_rebuild import IdentityRebuild, rows_of_segment
from meterd.core.state.identity_runs import Entries, Run, memory_source
from meterd.protocol.limits import I64_MAX
from meterd.protocol.segment_format import SegmentName

# Name, level and count of a file, as a checkpoint has them.
FileOfRun = list[Any]
# Identities that are compared together, about.
COMPARED: Final = 1 << 20
SCRATCH: Final = "rows"


def write(
    own: Loaded, donor: Loaded, groups: Mask, segments: list[SegmentName], target: str
) -> list[FileOfRun]:
    """Write runs of the identities of some groups, whose rows are in `segments` of `target`.

    Raises Corrupt, DiskFull, FsyncFailed, OSError.
    """
    number = identity_store.next_number(path.name for path in Path(own.directory).glob("ids-*"))
    readers = (read_segment(target, name) for name in segments)
    runs = _of_rows(own, readers, Path(target), number)
    if any(groups[one.partition] for one in donor.replayer.state.erasures):
        runs += _of_erased(own, donor, Path(target), number + len(runs))
    return runs


def _of_rows(
    own: Loaded, readers: Iterable[SegmentReader], folder: Path, number: int
) -> list[FileOfRun]:
    """Write runs, numbered from one on, of the identities of all rows in segments."""
    state = own.replayer.state
    key: tuple[int, int] = tuple(state.tables.key.tolist())
    work = IdentityRebuild(key, state.registry, state.leader_time, state.horizon)
    runs: list[FileOfRun] = []
    for reader in readers:
        for some in rows_of_segment(reader, I64_MAX):
            work.take(some)
            if work.full:
                runs.append(_write_run(folder, number + len(runs), work.take_entries()))
    if work.count:
        runs.append(_write_run(folder, number + len(runs), work.take_entries()))
    return runs


def _write_run(folder: Path, number: int, entries: Entries) -> FileOfRun:
    facts = identity_runs.facts_of_entries(entries)
    name = f"ids-{number:012d}.run"
    source = memory_source(entries, facts, np.empty_like(entries))
    return [name, 0, run_files.write_run(folder / name, facts, source)]


def _of_erased(own: Loaded, donor: Loaded, folder: Path, number: int) -> list[FileOfRun]:
    """Write a run of what the donor's identities hold beyond those of its rows."""
    scratch = folder / SCRATCH
    scratch.mkdir()
    readers = (donor.open(name) for name in donor.segments())
    known = [
        run_files.open_run(scratch / name, check=False)
        for name, _, _ in _of_rows(own, readers, scratch, 1)
    ]
    state = donor.replayer.state
    held = [*state.runs, *_in_memory(donor, scratch)]
    # What has expired has no rows either, but is no erased one: by the horizon that they went by.
    state.horizons.hold(donor.holds())
    found = [entries for entries in beyond(held, known, state.horizon) if len(entries)]
    del known, held
    shutil.rmtree(scratch)
    return [_write_run(folder, number, np.concatenate(found))] if found else []


def _in_memory(donor: Loaded, scratch: Path) -> list[Run]:
    """Return the donor's identities that are in no run yet as one."""
    state = donor.replayer.state
    entries = state.tables.journal[: state.recent].copy()
    if not len(entries):
        return []
    name = _write_run(scratch, 999_999, entries)[0]
    return [run_files.open_run(scratch / name, check=False)]


def beyond(held: list[Run], known: list[Run], horizon: int) -> Iterator[Entries]:
    """Yield the entries of runs that no run of `known` has and that have not expired."""
    day = max(0, horizon // DAY_NS)
    count = sum(int(run.facts[kernels.COUNT]) for run in held)
    steps = 1 + count // COMPARED
    mine, theirs = (np.zeros((len(runs), 3), np.int64) for runs in (held, known))
    for step in range(1, steps + 1):
        end = np.uint64(0 if step == steps else step * (2**64 // steps))
        some, rest = (_until(runs, at, end, day) for runs, at in ((held, mine), (known, theirs)))
        # The first word is a keyed hash of 64 bits: that it says enough is as sure as anything.
        yield some[~np.isin(some[:, 0], rest[:, 0])]


def _until(runs: list[Run], states: Any, end: np.uint64, day: int) -> Entries:
    """Return the entries of runs whose first word is below `end` and not yet read (0: the rest)."""
    parts = [np.empty((0, 2), np.uint64)]
    for run, state in zip(runs, states, strict=True):
        left = int(run.facts[kernels.COUNT] - state[kernels.READ_RANK])
        out = np.empty((left, 2), np.uint64)
        arrays = (run.lines, run.starts, run.entries)
        taken = kernels.take_entries(arrays, run.facts, state, end, day, out)
        parts.append(out[: int(taken)].copy())
    return np.concatenate(parts)
