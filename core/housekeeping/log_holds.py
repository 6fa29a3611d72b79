"""Says what holds each full log file; a file that nothing holds is deleted.

A log file is needed for six reasons: a start replays it (`checkpoint`), it is the only store of
its events (`uncovered`), somebody copies files and has listed it (`grace`), its copy is not in the
archive (`archive`), a follower that is behind reads it (`replica`, up to so many files: one that is
further behind takes a copy of a peer), a backup reads it (`pin`).  When none of these holds it
stays for as long as the operator wishes: `age`, and `count` for the newest few; beyond so many
files age no longer counts.  Files go from the oldest on, so that what is left is always one
unbroken piece of the log: one that nothing else holds may wait for an `older` one.

A file all of whose events are past the retention needs no segment, and nobody wishes to keep it:
`uncovered`, `grace`, `age` and `count` do not hold it.

Does not know where any of this comes from, nor what time it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

HOLDERS: Final = (
    "checkpoint",
    "uncovered",
    "grace",
    "archive",
    "replica",
    "pin",
    "age",
    "count",
    "older",
)


class LogFile(NamedTuple):
    """A full log file."""

    number: int
    size: int
    sealed: int  # UTC ns


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator has set; times in ns."""

    copy_grace: int
    keep: int
    files_max: int
    files_min: int
    replica_files_max: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the files."""

    now: int  # UTC ns
    first_needed: int  # the oldest file that one of the kept checkpoints needs for a replay
    covered: Mapping[int, int] = field(default_factory=dict)  # number → since when (UTC ns)
    archived_through: int | None = None  # None: no archive; files up to here are copied or given up
    replicas_from: int | None = None  # the oldest file that a follower may need; None: none
    pins: Collection[int] = ()  # each pins the files from this number on
    expired: Collection[int] = ()  # files all of whose events are past the retention


def holders(files: Sequence[LogFile], facts: Facts, rules: Rules) -> dict[int, tuple[str, ...]]:
    """Return what holds each file (their numbers rise), in the order of `HOLDERS`."""
    held: dict[int, tuple[str, ...]] = {}
    older_is_held = False
    for position, file in enumerate(files):
        younger = len(files) - 1 - position
        found = _needs(file, younger, facts, rules)
        if file.number not in facts.expired:
            found += _wishes(file, younger, facts, rules)
        if older_is_held and not found:
            found = ("older",)
        older_is_held = bool(found)
        held[file.number] = found
    return held


def _needs(file: LogFile, younger: int, facts: Facts, rules: Rules) -> tuple[str, ...]:
    """Return who cannot do without a file, behind which so many younger ones lie."""
    found = []
    if file.number >= facts.first_needed:
        found.append("checkpoint")
    if file.number not in facts.expired:
        since = facts.covered.get(file.number)
        if since is None:
            found.append("uncovered")
        elif facts.now - since < rules.copy_grace:
            found.append("grace")
    if facts.archived_through is not None and file.number > facts.archived_through:
        found.append("archive")
    needed = facts.replicas_from is not None and file.number >= facts.replicas_from
    if needed and younger < rules.replica_files_max:
        found.append("replica")
    if any(first <= file.number for first in facts.pins):
        found.append("pin")
    return tuple(found)


def _wishes(file: LogFile, younger: int, facts: Facts, rules: Rules) -> tuple[str, ...]:
    """Return which wishes keep a file, behind which so many younger ones lie."""
    found = []
    if facts.now - file.sealed < rules.keep and younger < rules.files_max:
        found.append("age")
    if younger < rules.files_min:
        found.append("count")
    return tuple(found)
