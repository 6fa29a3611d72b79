"""Leaves the rows of erased accounts out of what is read from a segment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from meterd.core.erasures import Erasures
from meterd.core.kernels.gather import ENTRY, POSITION, Wanted
from meterd.core.kernels.segment_match import ACCOUNT
from meterd.core.segment_data import Runs
from meterd.core.segment_reader import SegmentReader

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


def _floors(runs: Runs, erasures: Erasures) -> tuple[int, Ints]:
    """Return the first account of runs, and the floors of it and those after it."""
    if not len(runs.rows):
        return 0, np.zeros(0, np.int64)
    first, last = int(runs.rows[:, ACCOUNT].min()), int(runs.rows[:, ACCOUNT].max())
    accounts = runs.accounts
    return first, erasures.floors(accounts.text, accounts.text_end, first, last + 1)
