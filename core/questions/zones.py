"""Turns local time into moments and back, from a zone's transitions alone.

A zone is its `Transitions`: pairs (UTC ns, offset in seconds from then on), rising, the first at
the beginning of time.  They are data (logged with a metric, sent with a question), never read from
the host here, so every replica computes the same boundaries.

A local time that the clock shows twice means its first moment; one that it never shows means the
first moment after the gap.  Both follow from one rule: stretch i of constant offset ends when the
local clock shows `end[i]`; the first stretch whose end lies behind a local time is the one that
shows it, and if that stretch begins later than the local time would, it begins at the gap's end.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.limits import I64_MAX, I64_MIN

Transitions = tuple[tuple[int, int], ...]
Moments = NDArray[np.int64]

SECOND: Final = 1_000_000_000
HOUR: Final = 3_600 * SECOND
DAY: Final = 24 * HOUR
UTC: Final[Transitions] = ((I64_MIN, 0),)
# Local time may differ from UTC by a day and a bit (Samoa changed sides of the date line).
OFFSET_NS_MAX: Final = 27 * HOUR
# Zones worth remembering as arrays; a node has few, a question names at most one more.
ZONES_KEPT: Final = 256


class Stretches(NamedTuple):
    """The transitions as arrays: a row per stretch of constant offset."""

    start: Moments  # UTC ns; the first is the least int64
    offset: Moments  # ns
    local_end: Moments  # greatest local time shown up to its end, exclusive; rising


@lru_cache(ZONES_KEPT)
def stretches(transitions: Transitions) -> Stretches:
    """Return the transitions as arrays."""
    start = np.array([at for at, _ in transitions], np.int64)
    offset = np.array([seconds * SECOND for _, seconds in transitions], np.int64)
    ends = [at + seconds * SECOND for (_, seconds), (at, _) in pairwise(transitions)]
    local_end = np.maximum.accumulate(np.array([*ends, I64_MAX], np.int64))
    return Stretches(start, offset, local_end)


def offset_at(transitions: Transitions, moment: int) -> int:
    """Return the offset from UTC in seconds that holds at a moment."""
    return transitions[bisect_right(transitions, moment, key=_moment) - 1][1]


def moments_of_local(transitions: Transitions, local: Moments) -> Moments:
    """Return the first moment at which the clock shows each local time, or the end of its gap."""
    zone = stretches(transitions)
    row = np.searchsorted(zone.local_end, local, side="right")
    return np.maximum(local - zone.offset[row], zone.start[row])


def moment_of_local(transitions: Transitions, local: int) -> int:
    """Return the first moment at which the clock shows a local time, or the end of its gap."""
    return int(moments_of_local(transitions, np.array([local], np.int64))[0])


def _moment(transition: tuple[int, int]) -> int:
    return transition[0]
