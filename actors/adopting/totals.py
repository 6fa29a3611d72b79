"""Totals files of a node that adopts: with what a peer has folded of partitions, without its own.

What comes of peers stands for log file 0, before the first; a later adoption joins it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from meterd.actors.adopting.loaded import Loaded
from meterd.actors.adopting.rows import Mask
from meterd.actors.files import totals_files
from meterd.actors.files.totals_files import ADOPTED, Covered, Making, Source
from meterd.core.kernels.hashing import partition_of
from meterd.core.questions.totals_file import TotalsFile
from meterd.core.state.erasures import Erasures


def adopt(own: Loaded, donor: Loaded, groups: Mask, erasures: Erasures, target: str) -> int:
    """Write the totals files that change; return how many events came of the donor.

    groups: bool[257]; erasures: those of the own state, which has adopted already.  Raises Corrupt,
    StorageError, DiskFull, FsyncFailed, OSError.
    """
    making = Making(own.replayer.state.totals_horizon, erasures)
    # The own state has all that the donor's knows of these groups.
    theirs = [
        Source(file, erasures.since(file.applied), _others_than(groups)) for file in donor.totals
    ]
    coming = bool(theirs)
    for file in own.totals:
        mine = Source(file, erasures.since(file.applied), _those_of(groups))
        covered = Covered(file.first, file.last)
        if coming and covered.first == ADOPTED:
            totals_files.join(target, covered, [mine, *theirs], making)
            coming = False
        elif _has(file, groups):
            totals_files.join(target, covered, [mine], making)
    if coming:
        totals_files.join(target, Covered(ADOPTED, ADOPTED), theirs, making)
    return sum(_events_of(source) for source in theirs)


def _has(file: TotalsFile, groups: Mask) -> bool:
    is_theirs = _those_of(groups)
    return any(is_theirs(file.account(place).decode()) for place in range(file.account_count))


def _events_of(source: Source) -> int:
    assert source.leaves_out is not None
    file, count = source.file, 0
    for span in file.spans("", False):
        part = file.read(span).behind(source.newer.floor)
        count += part.without(source.leaves_out).count
    return count


def _those_of(groups: Mask) -> Callable[[str], bool]:
    def belongs(account: str) -> bool:
        text = np.frombuffer(account.encode(), np.uint8)
        return bool(groups[int(partition_of(text, 0, len(text)))])

    return belongs


def _others_than(groups: Mask) -> Callable[[str], bool]:
    belongs = _those_of(groups)
    return lambda account: not belongs(account)
