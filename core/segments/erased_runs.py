"""Leaves the rows of erased accounts out of what is read from a segment, and finds such rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.gather import ENTRY, POSITION, Wanted
from meterd.core.kernels.segment_match import ACCOUNT, Accounts, Slices
from meterd.core.kernels.segment_merge import EVERYTHING_GONE
from meterd.core.segments.data import Runs
from meterd.core.segments.reader import EVERYTHING, SegmentReader
from meterd.core.state.erasures import Erasures
from meterd.protocol.log_format import GROUP_COUNT

Ints = NDArray[np.int64]
# Of each account the position before which it is erased, or 0; its partition; slices of those.
Rules = tuple[Ints, Ints, Slices]
_NONE = np.zeros(0, np.int64)


def touched(runs: Runs, erasures: Erasures) -> bool:
    """Was one of the accounts of these runs erased at all?"""
    return bool(len(erasures) and _floors(runs, erasures)[1].any())


def found(
    reader: SegmentReader, runs: Runs, wanted: Wanted, erasures: Erasures | None
) -> Iterator[tuple[Ints, Ints]]:
    """Yield (matches, ordinals) as `SegmentReader.found` does, of what is not erased."""
    if not erasures or not touched(runs, erasures):
        yield from reader.found(runs, wanted)
        return
    first, floors = _floors(runs, erasures)
    for matches, ordinals in reader.found(runs, wanted):
        stays = matches[:, POSITION] >= floors[(matches[:, ENTRY] >> 32) - first]
        yield matches[stays], ordinals[stays]


def holds_erased(reader: SegmentReader, erasures: Erasures) -> bool:
    """Does a segment hold a row that is erased?  Raises Corrupt."""
    for runs in reader.runs(EVERYTHING) if len(erasures) else ():
        first, floors = _floors(runs, erasures)
        some = Runs(runs.rows[floors[runs.rows[:, ACCOUNT] - first] > 0], runs.accounts)
        if not len(some.rows):
            continue
        for matches, _ in reader.found(some, EVERYTHING):
            if (matches[:, POSITION] < floors[(matches[:, ENTRY] >> 32) - first]).any():
                return True
    return False


def erased_rules(
    reader: SegmentReader,
    accounts: Accounts,
    erasures: Erasures | None,
    groups: NDArray[np.bool_] | None = None,
) -> Rules:
    """Return what tells which rows of a segment are erased, by position.

    groups bool[257]: of others all are; by default of none.
    """
    floors = np.zeros(len(accounts.text_end), np.int64)
    if erasures and len(floors):
        text = np.concatenate([accounts.text, np.zeros(8, np.uint8)])
        floors[:] = erasures.floors(text, accounts.text_end, 0, len(floors))
    if groups is not None:
        floors[~groups[accounts.partition]] = EVERYTHING_GONE
    starts, parts = np.zeros(GROUP_COUNT + 1, np.int64), [(_NONE, _NONE, _NONE)]
    by_position = (floors > 0) & (floors < EVERYTHING_GONE)
    for partition in np.unique(accounts.partition[by_position]).tolist():
        found = reader.slices(partition, partition)
        parts.append((found.first, found.index, found.term))
        starts[partition + 1] = len(found.first)
    first, index, term = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return floors, accounts.partition, Slices(first, index, term, np.cumsum(starts))


def _floors(runs: Runs, erasures: Erasures) -> tuple[int, Ints]:
    """Return the first account of runs, and the floors of it and those after it."""
    if not len(runs.rows):
        return 0, np.zeros(0, np.int64)
    first, last = int(runs.rows[:, ACCOUNT].min()), int(runs.rows[:, ACCOUNT].max())
    accounts = runs.accounts
    return first, erasures.floors(accounts.text, accounts.text_end, first, last + 1)
