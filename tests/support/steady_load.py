"""Sends events to a node without rest, and knows at any moment which were acknowledged.

Every event has an account, a metric and an id of its own, so a node can be asked for each.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from meterd.client import Client, Event
from meterd.protocol.errors import MeterdError

BATCH = 500
ACCOUNTS = 50
METRICS = ("calls", "bytes")


def put_metrics(client: Client) -> None:
    """Register what the load counts."""
    for code in METRICS:
        client.put_metric(code, aggregation="sum", decimals=0)


class SteadyLoad:
    """with SteadyLoad(address) as load: events are sent until it ends."""

    def __init__(self, address: str, first: int = 0, rest: float = 0.0) -> None:
        self.acknowledged = first  # events 0 to here, all of them stored
        self._address = address
        self._rest = rest
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            with Client([self._address], timeout=30) as client:
                while not self._stop.is_set():
                    self._send(client)
        except MeterdError as failure:
            self._failure = failure

    def _send(self, client: Client) -> None:
        first = self.acknowledged
        result = client.ingest([event(number) for number in range(first, first + BATCH)])
        assert result.stored + result.duplicate == BATCH, result
        self.acknowledged += BATCH
        self._stop.wait(self._rest)


def event(number: int) -> Event:
    """The event of a number: always the same one."""
    return Event(
        f"account-{number % ACCOUNTS}",
        METRICS[number % 2],
        number,
        BASE + number,
        f"event-{number}",
        properties={"number": str(number), "filler": FILLER},
    )


# So that log files become full soon.
FILLER = 200 * "x"
# Of the day on which the process began: within every retention.
BASE = time.time_ns() // 86_400_000_000_000 * 86_400_000_000_000


def expected_totals(count: int) -> dict[tuple[str, str], tuple[int, int]]:
    """(account, metric) → (events, sum) of the first events."""
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for number in range(count):
        key = (f"account-{number % ACCOUNTS}", METRICS[number % 2])
        events, total = totals.get(key, (0, 0))
        totals[key] = (events + 1, total + number)
    return totals


def held_totals(client: Client) -> dict[tuple[str, str], tuple[int, int]]:
    """The same, as a node answers it."""
    start, end = BASE - 10**9, BASE + 10**15
    return {
        (row.account, metric): (row.count, int(row.value))
        for metric in METRICS
        for row in client.accounts(metric, start=start, end=end)
        if row.count
    }


def check_prefix(client: Client, at_least: int) -> int:
    """Check that a node holds the first events, each once, and so many; return how many."""
    totals = held_totals(client)
    count = sum(events for events, _ in totals.values())
    assert count >= at_least, f"{count} events are held, and {at_least} were acknowledged"
    assert totals == expected_totals(count)
    return count
