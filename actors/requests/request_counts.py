"""What became of the events of the requests of one record, until the metrics hear of it."""

from __future__ import annotations

import time
from collections import Counter

from meterd.actors.measuring.telemetry import Telemetry
from meterd.protocol.result import IngestResult

DURATION = 'ingest_duration_seconds{{mode="{}"}}'
MODES = ("sync", "async")
# What counts events that were not stored, by status; with the reason, where it has that label.
COUNTERS = {
    "duplicate": "events_duplicate_total",
    "conflict": "events_conflict_total",
    "rejected": 'events_rejected_total{{reason="{}"}}',
    "unknown": "events_unknown_total",
}


class RequestCounts:
    """Filled while answers are made; told once they are on their way."""

    __slots__ = ("_began", "_received", "_refused", "_stored", "_waited_for")

    def __init__(self, began: float) -> None:
        """`began`: when the first of the requests came, in monotonic seconds."""
        self._began = began
        self._received = 0
        self._stored = dict.fromkeys(MODES, 0)
        self._waited_for = dict.fromkeys(MODES, 0)  # requests that get their answer only now
        self._refused: Counter[tuple[str, str]] | None = None  # by status and reason, if any is

    def add(self, result: IngestResult, mode: str, waited_for: bool) -> None:
        """Count a request."""
        self._received += result.received
        self._stored[mode] += result.stored
        self._waited_for[mode] += waited_for
        if result.items:
            self._refused = self._refused or Counter()
            self._refused.update(item[1:] for item in result.items)

    def tell(self, telemetry: Telemetry) -> None:
        """Hand the numbers to the metrics."""
        telemetry.add("events_received_total", self._received)
        seconds = time.monotonic() - self._began
        for mode in MODES:
            telemetry.add(f'events_ingested_total{{mode="{mode}"}}', self._stored[mode])
            if self._waited_for[mode]:
                telemetry.observe(DURATION.format(mode), seconds, self._waited_for[mode])
        for (status, reason), count in self._refused.items() if self._refused else ():
            telemetry.add(COUNTERS[status].format(reason), count)
