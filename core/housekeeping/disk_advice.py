"""Names the most likely cause of a full disk, and the command that helps next.

The tree of questions that an operator would ask, in their order: is anything wrong at all; is it
inodes; is it somebody else; is it a quota; and else, what of ours is the largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meterd.core.housekeeping.disk_state import Cause, Space, State

# Below this many days of growth left, say so although all is well.
SOON_DAYS = 7.0
_NEXT = {
    "log": ("log files that are not deleted yet", "meterctl wal status --holders"),
    "segments": ("stored events", "meterctl retention show"),
    "ids": ("ids of stored events", "meterctl retention show"),
    "checkpoints": ("totals and their copies", "meterctl status"),
    "reserve": ("space that is kept for bad times", "meterctl disk free-reserve"),
}
_ENLARGE = "enlarge the file system; the node notices by itself"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about the disk of a node."""

    state: State
    cause: Cause | None
    space: Space
    kinds: Mapping[str, int]  # bytes of the data directory by kind
    reserve: int  # bytes that `disk free-reserve` would give back
    full_in_days: float | None


@dataclass(frozen=True, slots=True)
class Advice:
    """One sentence, and one command (or action)."""

    cause: str
    next: str


def advise(facts: Facts) -> Advice:
    """Return the most likely cause and what to do next."""
    if facts.state == "ok":
        if facts.full_in_days is not None and facts.full_in_days < SOON_DAYS:
            return Advice(f"it will be full in {facts.full_in_days:.1f} days", _ENLARGE)
        return Advice("there is room", "nothing to do")
    if facts.cause == "inodes" or _lacks_inodes(facts.space):
        return Advice(
            "the file system has hardly an inode left: too many files, most likely not meterd's",
            "meterctl disk status --inodes",
        )
    used = facts.space.size - facts.space.free
    own = sum(facts.kinds.values())
    if facts.cause == "no_room" and facts.space.free > own // 10:
        return Advice(
            "writes find no room although the file system has some: a quota, or a write that is"
            " larger than what is left",
            "quota -s; repquota -a; " + _ENLARGE,
        )
    if used - own > own:
        return Advice(
            "most of what is used does not belong to this node",
            "du -xh --max-depth=1 on the file system; delete or move what is not needed",
        )
    largest = max(facts.kinds, key=lambda kind: facts.kinds[kind], default="")
    what, command = _NEXT.get(largest, (f"files of the kind {largest or 'other'}", _ENLARGE))
    if facts.state == "hard" and facts.reserve:
        command = "meterctl disk free-reserve"
    return Advice(f"most of what this node uses are {what}", command)


def _lacks_inodes(space: Space) -> bool:
    return space.inodes > 0 and space.inodes_free * 50 < space.inodes
