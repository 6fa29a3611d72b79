"""What a leader knows of one follower, and how much it may send it.

  PROBE      where the logs agree is not known: one append at a time, `next` moves on an answer
  REPLICATE  it is: appends follow each other without waiting, `next` moves when they are sent
  SNAPSHOT   the log no longer reaches back far enough: nothing until the snapshot is there

Invariants:
  * match < next, except that a refusal may take `next` back (never `match`)
  * match falls in a term only when a follower refuses what it acked, or has started anew: it may
    have lost its tail
"""

from __future__ import annotations

from collections import deque
from typing import Final

PROBE: Final = 0
REPLICATE: Final = 1
SNAPSHOT: Final = 2
NEVER_SENT: Final = -(1 << 60)
ONE_BY_ONE: Final = -1


class Progress:
    """Changed by `leading` and `snapshots` alone."""

    __slots__ = (
        "accepted",
        "back",
        "damaged",
        "flight_bytes",
        "flights",
        "known_at",
        "match",
        "nearest",
        "next",
        "room",
        "round",
        "round_sent_at",
        "sent_at",
        "state",
        "uncertain_since",
    )

    def __init__(self, next_index: int) -> None:
        self.state = PROBE
        self.match = 0  # durable and undamaged there
        self.accepted = 0  # there, by its last word
        self.next = next_index  # first op not sent
        # By how much the last probe went back whose term only the disk knows, and where the logs
        # may agree at best; ONE_BY_ONE: files reach back no further than a few ops from there.
        self.back = self.nearest = 0
        self.sent_at = NEVER_SENT  # when something was last sent
        self.flights: deque[tuple[int, int]] = deque()  # last index and bytes of each append
        self.flight_bytes = 0
        self.round = 0  # newest round of beats answered
        self.round_sent_at = NEVER_SENT  # when that round was sent, by our clock
        self.room = True
        self.damaged = False
        # Not 0: it may have forgotten acks and votes before that start of its, and is not counted.
        self.uncertain_since = 0
        self.known_at = 0  # where my log ended when I heard that

    @property
    def counted(self) -> int:
        """Up to where it counts for a majority."""
        return 0 if self.uncertain_since else self.match

    @property
    def counted_round(self) -> int:
        """The newest round that it counts for: who is uncertain may follow somebody else."""
        return 0 if self.uncertain_since else self.round

    @property
    def counted_sent_at(self) -> int:
        """When that round was sent."""
        return NEVER_SENT if self.uncertain_since else self.round_sent_at

    @property
    def is_silent(self) -> bool:
        """Has it answered no beat that was sent after the last append?"""
        return self.sent_at >= 0 and self.round_sent_at < self.sent_at

    def take_off(self, last_index: int, size: int, now: int) -> None:
        """An append was sent."""
        self.next = last_index + 1
        self.flights.append((last_index, size))
        self.flight_bytes += size
        self.sent_at = now

    def land(self, match: int) -> None:
        """Ops up to `match` are durable there."""
        self.match = match
        while self.flights and self.flights[0][0] <= match:
            self.flight_bytes -= self.flights.popleft()[1]
        if self.next <= match:
            self.next = match + 1

    def probe_from(self, index: int) -> None:
        """Begin again, at an index where the logs may agree."""
        self.state = PROBE
        self.next = max(1, index)
        self.flights.clear()
        self.flight_bytes = 0
        self.sent_at = NEVER_SENT

    def start_anew(self, index: int) -> None:
        """The follower has started: what it acked before counts when it says so again."""
        self.match = self.accepted = self.back = self.nearest = 0
        if self.state != SNAPSHOT:
            self.probe_from(index)

    def step_back(self, most: int) -> int:
        """Return by how much the next probe goes back: 1, 2, 4…, or 1 each time."""
        if self.back != ONE_BY_ONE:
            self.back = min(most, max(1, 2 * self.back))
        return abs(self.back)

    def replicate(self) -> None:
        """The logs agree up to `accepted`."""
        self.state = REPLICATE
        self.flights.clear()
        self.flight_bytes = self.back = self.nearest = 0
        self.next = max(self.accepted, self.match) + 1
