"""Decides which segments are past the retention, and which ones another has replaced.

Only whole segments go, and only from the oldest on: what is left is always one unbroken piece of
the log, so a reader can tell from the first file number whether anything was ever deleted.  An
event that lies ahead of its time keeps its segment, and those after it, for as much longer.

Does not know: what holds a log file (`log_holds`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from meterd.protocol.segment_format import SegmentName

# Files to delete at once; the rest follows in the next sweep, which comes at once then.
FILES_PER_SWEEP_MAX: Final = 1_000


class Kept(NamedTuple):
    """A complete segment, as far as retention looks at it."""

    name: SegmentName
    newest: int  # UTC ns: its latest timestamp
    made_at: int  # UTC ns: since when it is there
    rows: int


def expired_segments(segments: Sequence[Kept], horizon: int, through: int) -> list[Kept]:
    """Return the oldest segments (they rise) all of whose events are older than the horizon.

    Those behind log file `through`, up to which totals stand, follow each other: a log file that
    has no segment yet keeps all after it.
    """
    expired, expected = [], through + 1
    for one in segments:
        if one.newest >= horizon or (one.name.last > through and one.name.first != expected):
            break
        expired.append(one)
        expected = max(expected, one.name.last + 1)
    return expired


def droppable_segments(
    expired: Sequence[Kept], first_needed: int, log_files: Sequence[int], pinned: Sequence[int]
) -> list[Kept]:
    """Return the oldest expired segments that nothing holds.

    Their log files have gone already, so that nobody makes them again; the kept checkpoints begin
    with file `first_needed` or later; nobody reads on from one of the files `pinned`.
    """
    end = min([first_needed, *log_files, *pinned])
    return list(takewhile(lambda one: one.name.last < end, expired))[:FILES_PER_SWEEP_MAX]


def superseded_segments(
    segments: Sequence[Kept], since: int, pinned: Sequence[int] = ()
) -> list[Kept]:
    """Return the segments in whose place another one stands that was made before `since`.

    Nobody reads on from one of the files `pinned`.
    """
    end = min(pinned, default=1 << 62)
    return [
        one
        for one in segments
        if one.name.last < end
        and any(other.name.supersedes(one.name) and other.made_at < since for other in segments)
    ][:FILES_PER_SWEEP_MAX]
