"""Whether this node's wall clock is right, judged by its peers'.

Terms, leases and timeouts rest on clocks that run evenly, not on what they show.  What they show
is data: a leader writes its time into ops.  So a node whose clock is off by more than a limit
from a majority of all nodes does not lead (and does not expire events).
"""

from __future__ import annotations

# An answer that took longer says too little about the other clock.
ROUND_TRIP_MS_MAX = 300
# After so long without an answer a peer's clock is not known any more: the dead have no say.
SAMPLE_AGE_MS_MAX = 1_500


class ClockCheck:
    """Offsets of the peers' clocks, from the answers to beats."""

    def __init__(self, limit_ms: int) -> None:
        self._limit_ms = limit_ms
        self._offsets: dict[int, tuple[int, int]] = {}  # peer -> offset ms, when
        self._answers: dict[int, tuple[int, int]] = {}  # peer -> round trip ms, when

    def take(self, peer: int, now: int, round_trip_ms: int, ahead_ms: int) -> None:
        """Take the answer to a beat; `ahead_ms`: its clock minus mine when it came."""
        self._answers[peer] = (round_trip_ms, now)
        if 0 <= round_trip_ms <= ROUND_TRIP_MS_MAX:
            self._offsets[peer] = (ahead_ms + round_trip_ms // 2, now)

    def heard(self, peer: int, now: int) -> tuple[int, int] | None:
        """Return a peer's last round trip and how long ago that was, in ms; None: never."""
        if peer not in self._answers:
            return None
        round_trip_ms, at = self._answers[peer]
        return round_trip_ms, now - at

    def offset(self, peer: int, now: int) -> int | None:
        """Return a peer's clock minus mine, in ms; None when that is not known now."""
        offset, at = self._offsets.get(peer, (0, now - SAMPLE_AGE_MS_MAX - 1))
        return offset if now - at <= SAMPLE_AGE_MS_MAX else None

    def is_off(self, now: int) -> bool:
        """Whether a majority of the peers known says so: the fault is here, not there."""
        fresh = [o for o, at in self._offsets.values() if now - at <= SAMPLE_AGE_MS_MAX]
        far = [offset for offset in fresh if abs(offset) > self._limit_ms]
        return 2 * len(far) > len(fresh) and len(far) >= 2
