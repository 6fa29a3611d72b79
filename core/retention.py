"""Decides which log files are past the retention.

Only whole files go, and only from the oldest on: what is left is always one unbroken piece of the
log, so a reader can tell from the first file number whether anything was ever deleted.  An
event that lies ahead of its time keeps its file, and those after it, for as much longer.

Does not know: whether a checkpoint still needs a file; the usage actor says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Final

DAY_NS: Final = 86_400_000_000_000
# Files to fold and delete at once; then the next sweep comes at once.
FILES_PER_SWEEP_MAX: Final = 16


def limit_of(now: int, days: int) -> int:
    """Return the moment (UTC ns) before which events are past the retention."""
    return now - days * DAY_NS


def expired_files(numbers: Sequence[int], newest: Mapping[int, int], limit: int) -> list[int]:
    """Return the oldest files (`numbers` rise) all of whose events are older than the limit.

    `newest` has the newest event of each file that has an index; a file without one stays.
    """

    def is_expired(number: int) -> bool:
        return number in newest and newest[number] < limit

    return list(takewhile(is_expired, numbers))[:FILES_PER_SWEEP_MAX]
