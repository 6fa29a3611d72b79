"""Runs of identities in memory: what files hold, without files."""

from __future__ import annotations

import numpy as np

from meterd.core.kernels import runs as kernels
from meterd.core.kernels.index import clear
from meterd.core.state import identity_runs
from meterd.core.state.identity_runs import (
    Entries,
    Facts,
    Run,
    RunMaker,
    Source,
    memory_source,
    merge_source,
)
from meterd.core.state.machine import StateMachine


def run_of(entries: Entries) -> Run:
    """A run of entries in any order."""
    facts = identity_runs.facts_of_entries(entries)
    return _made(facts, memory_source(entries, facts, np.empty_like(entries)))


def merge_of(runs: list[Run], horizon_day: int) -> Run:
    """A run in place of others, without what has expired."""
    return _made(identity_runs.facts_of_merge(runs, horizon_day), merge_source(runs, horizon_day))


def flush(state: StateMachine) -> Run:
    """Move all identities of memory to a run of their own, the only one in use."""
    run = run_of(state.begin_flush())
    state.use_runs([run])
    clear(state.end_flush())
    return run


def entries_of(run: Run) -> Entries:
    """All entries of a run, sorted."""
    out = np.empty((int(run.facts[kernels.COUNT]), 2), np.uint64)
    arrays = (run.lines, run.starts, run.entries)
    state = np.zeros(3, np.int64)
    taken = kernels.take_entries(arrays, run.facts, state, np.uint64(0), 0, out)
    assert taken == len(out)
    return out


def _made(facts: Facts, source: Source) -> Run:
    maker = RunMaker(facts)
    pieces = [[array.copy() for array in piece] for piece in maker.pieces(source)]
    lines, starts, entries = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    entries = np.append(entries, np.zeros(kernels.ENTRIES_MARGIN, np.uint8))
    lines = lines.reshape(-1)
    for array in (lines, starts, entries):
        array.flags.writeable = False
    return Run(lines, starts, entries, entries, maker.facts)
