"""What an actor counts about itself: counters, gauges and histograms, as plain numbers in dicts.

A name is written as Prometheus shows it, without the prefix and with its labels:
``events_ingested_total{mode="sync"}``.  It is a constant where it is used, so counting costs one
dict access; nothing is formatted on the way of an event.  `Actor` sends a snapshot to the metrics
actor about once a second when something changed, and that actor alone knows Prometheus.

Values are totals since the process started, so a lost snapshot loses nothing.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from typing import Any

# Upper bounds of histogram buckets; one more bucket follows for what is larger.
SECONDS_BOUNDS = tuple(0.0001 * 2**power for power in range(18))  # 0.1 ms … 13 s
COUNT_BOUNDS = tuple(float(4**power) for power in range(13))  # 1 … 16 Mi: events, bytes, rows

# An unchanged snapshot is repeated so often, for a metrics actor that has restarted.
REPEAT_TURNS = 10

Snapshot = dict[str, Any]


def bounds_of(name: str) -> tuple[float, ...]:
    """Return the bucket bounds of a histogram: by its unit, the last word of its name."""
    return SECONDS_BOUNDS if name.partition("{")[0].endswith("_seconds") else COUNT_BOUNDS


class Telemetry:
    """The numbers of one actor."""

    def __init__(self, actor: str) -> None:
        self.actor = actor
        self._counters: dict[str, int] = {}
        self._gauges: dict[str, float] = {}
        self._histograms: dict[str, list[float]] = {}  # sum, then a count per bucket
        self._changed = True
        self._turns_unchanged = 0

    def add(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        self._counters[name] = self._counters.get(name, 0) + amount
        self._changed = True

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        if self._gauges.get(name) != value:
            self._gauges[name] = value
            self._changed = True

    def observe(self, name: str, value: float, count: int = 1) -> None:
        """Add `count` observations of `value` to a histogram."""
        bounds = bounds_of(name)
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = [0.0] * (len(bounds) + 2)
        histogram[0] += value * count
        histogram[1 + bisect_left(bounds, value)] += count
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
            "gauges": dict(self._gauges),
            "histograms": {name: list(values) for name, values in self._histograms.items()},
        }
