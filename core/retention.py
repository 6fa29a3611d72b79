"""Decides which log files are past the retention.

Only whole files go, and only from the oldest on: what is left is always one unbroken piece of the
log, so a reader can tell from the first file number whether anything was ever deleted.  An
event that lies ahead of its time keeps its file, and those after it, for as much longer.

Does not know: whether somebody still needs a file (`log_holds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Final

# Files to delete at once; the rest follows in the next sweep, which comes at once then.
FILES_PER_SWEEP_MAX: Final = 1_000


def expired_files(numbers: Sequence[int], newest: Mapping[int, int], horizon: int) -> list[int]:
    """Return the oldest files (`numbers` rise) all of whose events are older than the horizon.

    `newest` has the newest event of each file that has an index; a file without one stays.
    """

    def is_expired(number: int) -> bool:
        return number in newest and newest[number] < horizon

    return list(takewhile(is_expired, numbers))
