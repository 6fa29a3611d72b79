"""What an actor counts about itself: counters, gauges and histograms, as plain numbers in dicts.

A name is written as Prometheus shows it, without the prefix and with its labels:
``events_ingested_total{mode="sync"}``.  It is a constant where it is used, so counting costs one
dict access; nothing is formatted on the way of an event.  `Actor` sends a snapshot to the metrics
actor about once a second when something changed, and that actor alone knows Prometheus.

Values are totals since the process started, so a lost snapshot loses nothing.  What the state keeps
over restarts (`keep`) is a total as it is.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from typing import Any

# Upper bounds of histogram buckets: 0.1 ms … 13 s.  One more follows for what is larger.
BOUNDS = tuple(0.0001 * 2**power for power in range(18))

# An unchanged snapshot is repeated so often, for a metrics actor that has restarted.
REPEAT_TURNS = 10

Snapshot = dict[str, Any]


class Telemetry:
    """The numbers of one actor."""

    def __init__(self, actor: str) -> None:
        self.actor = actor
        self._counters: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self._gauges: dict[str, float] = {}
        self._histograms: dict[str, list[float]] = {}  # sum, then a count per bucket
        self._changed = True
        self._turns_unchanged = 0

    def add(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        self._counters[name] = self._counters.get(name, 0) + amount
        self._changed = True

    def keep(self, name: str, total: int) -> None:
        """Set a counter that is kept elsewhere, and does not begin anew with the process."""
        if self._totals.get(name) != total:
            self._totals[name] = total
            self._changed = True

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        if self._gauges.get(name) != value:
            self._gauges[name] = value
            self._changed = True

    def observe(self, name: str, seconds: float, count: int = 1) -> None:
        """Add `count` observations of `seconds` to a histogram."""
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = [0.0] * (len(BOUNDS) + 2)
        histogram[0] += seconds * count
        histogram[1 + bisect_left(BOUNDS, seconds)] += count
        self._changed = True

    def snapshot(self) -> Snapshot | None:
        """Return all numbers, or None when nothing has changed (and no repeat is due)."""
        self._turns_unchanged = 0 if self._changed else self._turns_unchanged + 1
        if not self._changed and self._turns_unchanged < REPEAT_TURNS:
            return None
        self._changed = False
        self._turns_unchanged = 0
        return {
            "pid": os.getpid(),
            "counters": dict(self._counters),
            "totals": dict(self._totals),
            "gauges": dict(self._gauges),
            "histograms": {name: list(values) for name, values in self._histograms.items()},
        }
