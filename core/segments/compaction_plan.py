"""Decides which neighbouring segments to merge next.

Segments that follow each other without a gap are merged when enough of them are of like size, or
together nearly fill the size that is aimed at.  The largest is never more than half of the whole,
so each merge at least doubles the size of the segment that an event lies in: an event is written
again at most log2(target / its first segment) times, about twice with the usual options.  What
costs the fewest bytes for each file that goes comes first; of equals the oldest.

An operator can ask for more: `ASKED` needs no minimum of files, `AGGRESSIVE` merges whatever fits.

Does not know: files, clocks, what is in a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from meterd.protocol.segment_format import SegmentName

# Segments merged at once: each takes some memory while it lasts.
PARTS_MAX: Final = 32
# Rows of the log files, stored or not, are counted in 32 bits.
ORDINALS_MAX: Final = (1 << 32) - 1
# So full of what is aimed at that two are merged.
NEARLY_FULL: Final = 0.75


class Effort(Enum):
    """How much is merged."""

    USUAL = "usual"
    ASKED = "asked"
    AGGRESSIVE = "aggressive"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete segment that no other one supersedes."""

    name: SegmentName
    size: int  # bytes
    ordinals: int  # rows of its log files
    is_free: bool = True  # nothing forbids that it is merged


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator has set."""

    min_files: int
    target_size: int  # bytes


def next_merge(
    segments: Sequence[Candidate], rules: Rules, effort: Effort = Effort.USUAL
) -> Sequence[Candidate]:
    """Return the neighbours (`segments` rise) to merge next, at least two; none: nothing to do."""
    best: Sequence[Candidate] = ()
    for chain in _chains(segments):
        for first in range(len(chain)):
            for found in _beginning(chain[first : first + PARTS_MAX], rules, effort):
                if not best or _cost(found) < _cost(best):
                    best = found
    return best


def whole_plan(
    segments: Sequence[Candidate], rules: Rules, effort: Effort = Effort.USUAL
) -> list[Sequence[Candidate]]:
    """Return all merges until nothing is left to do, in order; later ones use what others make."""
    left, plan = list(segments), []
    while parts := next_merge(left, rules, effort):
        plan.append(parts)
        place = left.index(parts[0])
        left[place : place + len(parts)] = [_joined(parts)]
    return plan


def pending(segments: Sequence[Candidate], rules: Rules, effort: Effort = Effort.USUAL) -> int:
    """Return how many segments wait to be merged, as far as can be said now."""
    count = 0
    for chain in _chains(segments):
        first = 0
        while first < len(chain):
            found = _beginning(chain[first : first + PARTS_MAX], rules, effort)
            count += len(found[-1]) if found else 0
            first += len(found[-1]) if found else 1
    return count


def _joined(parts: Sequence[Candidate]) -> Candidate:
    return Candidate(
        SegmentName(parts[0].name.first, parts[-1].name.last),
        sum(one.size for one in parts),
        sum(one.ordinals for one in parts),
    )


def _chains(segments: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the free segments, those that follow each other together."""
    chains: list[list[Candidate]] = []
    last = None
    for one in segments:
        if one.is_free:
            if last is None or last.name.last + 1 != one.name.first:
                chains.append([])
            chains[-1].append(one)
        last = one if one.is_free else None
    return chains


def _beginning(
    chain: Sequence[Candidate], rules: Rules, effort: Effort
) -> list[Sequence[Candidate]]:
    """Return the merges that may be done of the first of these neighbours, the shortest first."""
    found = []
    size = largest = ordinals = 0
    for count, one in enumerate(chain, 1):
        size, ordinals = size + one.size, ordinals + one.ordinals
        largest = max(largest, one.size)
        if size > rules.target_size or ordinals > ORDINALS_MAX:
            break
        if count > 1 and _is_worth(count, size, largest, rules, effort):
            found.append(chain[:count])
    return found


def _is_worth(count: int, size: int, largest: int, rules: Rules, effort: Effort) -> bool:
    if effort is Effort.AGGRESSIVE:
        return True
    if 2 * largest > size:
        return False
    needed = 2 if effort is Effort.ASKED else rules.min_files
    return count >= needed or size >= NEARLY_FULL * rules.target_size


def _cost(merge: Sequence[Candidate]) -> tuple[float, int]:
    """Return the bytes that are written for each file that goes; the larger merge of equals."""
    return sum(one.size for one in merge) / (len(merge) - 1), -len(merge)
