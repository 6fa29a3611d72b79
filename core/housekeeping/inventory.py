"""Knows every kind of file in a data directory, by its name: how it changes, what a copy needs.

Names carry the truth (docs/STORAGE.md): a file whose kind never changes has the same bytes for as
long as it exists, so it can be read at any time and shared between backups.

Does not know: what is in a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from meterd.protocol.log_format import number_of
from meterd.protocol.segment_format import SUFFIXES, SegmentName, parse_name


class Change(Enum):
    """How a file changes."""

    IMMUTABLE = "never"
    REPLACED = "atomic replace"
    GROWING = "append"
    SCRATCH = "no copy needs it"


class FileKind(NamedTuple):
    """What a name says about its file."""

    change: Change
    folder: str  # of a backup


# The first that matches the whole name counts.  What nobody knows is small, newer than this
# table, and replaced whole: everything that is read again at a start is one of these kinds.
_KINDS: Final = (
    (r"checkpoint(\.prev)?\.bin", FileKind(Change.REPLACED, "checkpoint")),
    (r"ids-\d+\.\w+", FileKind(Change.IMMUTABLE, "checkpoint")),
    (r"seg-\d+-\d+(-\d+)?\.\w+", FileKind(Change.IMMUTABLE, "segments")),
    (r"wal-\d{20}\.(log|idx)", FileKind(Change.IMMUTABLE, "wal")),
    (r"wal\.log", FileKind(Change.GROWING, "wal")),
    (r"totals-\d+-\d+\.tot|erased\.bin", FileKind(Change.REPLACED, "meta")),
    (r"refused(\.1)?\.log|alert_log\.bin", FileKind(Change.GROWING, "meta")),
    (
        r"held[.-].*|wal-\d{20}\.open|wal\.spare|lock|run|ballast.*|(pins|last_backup)\.bin"
        r"|(restored|claim|boot|behind|heard)\.json|incoming",
        FileKind(Change.SCRATCH, ""),
    ),
    (r".*\.(tmp|new|old|incomplete|partial|spare)|\..*", FileKind(Change.SCRATCH, "")),
)
_KNOWN: Final = tuple((re.compile(pattern), kind) for pattern, kind in _KINDS)
_OTHER: Final = FileKind(Change.REPLACED, "meta")
_NONE: Final = SegmentName(0, 0)


def kind_of(name: str) -> FileKind:
    """Return what kind of file a name belongs to."""
    for pattern, kind in _KNOWN:
        if pattern.fullmatch(name):
            return kind
    return _OTHER


def is_known(name: str) -> bool:
    """Whether a pattern of this table knows the name."""
    return kind_of(name) is not _OTHER


def identity_files(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the files of identities that the state of a checkpoint names."""
    return [name for kind in ("runs", "parts") for name, *_ in checkpoint[kind]]


def segment_of(name: str) -> SegmentName | None:
    """Return the segment that a file is a part of; None for another."""
    parsed = parse_name(name)
    return parsed[0] if parsed else None


def whole_segments(names: Iterable[str]) -> list[SegmentName]:
    """Return the segments that have all their parts, rising; superseded ones are left out."""
    parts: dict[SegmentName, int] = {}
    for name in names:
        found = segment_of(name)
        if found is not None:
            parts[found] = parts.get(found, 0) + 1
    whole = [found for found, held in parts.items() if held == len(SUFFIXES)]
    return sorted(one for one in whole if not any(other.supersedes(one) for other in whole))


def immutable_files(
    names: Iterable[str], first_log: int, end_log: int, through: int = 0
) -> list[str]:
    """Return the files that never change and that a copy needs, cut within log file `end_log`.

    Log files from `first_log` on are replayed; before it those count that no segment covers.
    Files of identities are left out: the checkpoint names those it needs.
    through: the last log file that the totals files of the copy stand for.
    """
    names = sorted(names)
    segments = whole_segments(name for name in names if _stands(name, end_log, through))
    needed = []
    for name in names:
        kind = kind_of(name)
        if kind.change is not Change.IMMUTABLE or kind.folder == "checkpoint":
            continue
        segment = segment_of(name)
        if segment is not None:
            if segment in segments:
                needed.append(name)
            continue
        number = log_number(name)
        covered = any(one.first <= number <= one.last for one in segments)
        if number < end_log and (number >= first_log or not covered):
            needed.append(name)
    return needed


def _stands(name: str, end_log: int, through: int) -> bool:
    """Whether a file is not of a segment that reaches beyond what it may stand for.

    One that reaches behind the cut holds too much, and one of which totals files hold a part is
    not read: what it was merged from is still there.
    """
    segment = segment_of(name) or _NONE
    return segment.last < end_log and not segment.first <= through < segment.last


def log_number(name: str) -> int:
    """Return the number of a full log file, from its name or that of the index beside it."""
    number = number_of(name.rpartition(".")[0] + ".log")
    assert number is not None, f"{name} belongs to no log file"
    return number
