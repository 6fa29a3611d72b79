"""What became of the events of the requests of one record, until the metrics hear of it."""

from __future__ import annotations

import time
from collections import Counter

from meterd.actors.telemetry import Telemetry
from meterd.protocol.result import IngestResult

DURATION = 'ingest_duration_seconds{mode="sync"}'
# What counts events that were not stored, by status; with the reason, where it has that label.
COUNTERS = {
    "duplicate": "events_duplicate_total",
    "conflict": "events_conflict_total",
    "rejected": 'events_rejected_total{{reason="{}"}}',
    "unknown": "events_unknown_total",
}


class RequestCounts:
    """Filled while answers are made; told once they are on their way."""

    __slots__ = ("_async", "_began", "_received", "_refused", "_requests", "_sync")

    def __init__(self, began: float) -> None:
        """`began`: when the first of the requests came, in monotonic seconds."""
        self._began = began
        self._received = self._sync = self._async = 0
        self._requests = 0  # that somebody waits for
        self._refused: Counter[tuple[str, str]] | None = None  # by status and reason, if any is

    def add(self, result: IngestResult, synchronous: bool) -> None:
        """Count a request."""
        self._received += result.received
        if synchronous:
            self._requests += 1
            self._sync += result.stored
        else:
            self._async += result.stored
        if result.items:
            self._refused = self._refused or Counter()
            self._refused.update(item[1:] for item in result.items)

    def tell(self, telemetry: Telemetry) -> None:
        """Hand the numbers to the metrics."""
        telemetry.add("events_received_total", self._received)
        telemetry.add('events_ingested_total{mode="sync"}', self._sync)
        telemetry.add('events_ingested_total{mode="async"}', self._async)
        telemetry.observe(DURATION, time.monotonic() - self._began, self._requests)
        for (status, reason), count in self._refused.items() if self._refused else ():
            telemetry.add(COUNTERS[status].format(reason), count)
