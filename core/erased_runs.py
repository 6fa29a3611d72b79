"""Leaves the rows of erased accounts out of what is read from a segment, and finds such rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from meterd.core.erasures import Erasures
from meterd.core.kernels.cells import POSITION_ROW_BITS
from meterd.core.kernels.gather import ENTRY, POSITION, Wanted
from meterd.core.kernels.segment_match import ACCOUNT, Accounts
from meterd.core.segment_data import Runs
from meterd.core.segment_reader import EVERYTHING, SegmentReader

Ints = NDArray[np.int64]


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


def first_left(reader: SegmentReader, accounts: Accounts, erasures: Erasures | None) -> Ints:
    """Return the first ordinal of each account that is not erased; 0: nothing of it is.

    A floor is where an entry of the partition's log begins, so no slice lies on both sides of it.
    """
    left = np.zeros(len(accounts.text_end), np.int64)
    if not erasures or not len(left):
        return left
    text = np.concatenate([accounts.text, np.zeros(8, np.uint8)])
    floors = erasures.floors(text, accounts.text_end, 0, len(left))
    for number in np.flatnonzero(floors).tolist():
        partition = int(accounts.partition[number])
        slices = reader.slices(partition, partition)
        place = int(slices.index.searchsorted(floors[number] >> POSITION_ROW_BITS))
        firsts = np.append(slices.first, reader.header.ordinal_count)
        left[number] = firsts[place]
    return left


def _floors(runs: Runs, erasures: Erasures) -> tuple[int, Ints]:
    """Return the first account of runs, and the floors of it and those after it."""
    if not len(runs.rows):
        return 0, np.zeros(0, np.int64)
    first, last = int(runs.rows[:, ACCOUNT].min()), int(runs.rows[:, ACCOUNT].max())
    accounts = runs.accounts
    return first, erasures.floors(accounts.text, accounts.text_end, first, last + 1)
