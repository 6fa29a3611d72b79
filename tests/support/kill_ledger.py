"""What clients sent to a node that is being killed, what they were answered, and what must follow.

Every event is made from one row of an array, so that millions of them can be kept, made again for
a resend, and added up with numpy.  A row is *acknowledged* once an answer called it stored or
duplicate; until then it is undecided, and whoever sent it sends it again.  When nothing is
undecided the node must give exactly the rows of the ledger, each once.

Invariants:
  * a batch is in the ledger before its first attempt: it knows whatever can be stored
  * two events of an account never have the same timestamp, so there is one latest value
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meterd.client import Client, Event, StoredEvent

DAY = 86_400 * 10**9
LATE_DAYS = 40
PATHS = 3  # every so many accounts is a path below another

REGIONS = ("eu", "us", "ap", "sa")
ROW = np.dtype(
    [
        ("account", np.uint16),
        ("metric", np.uint8),
        ("region", np.int8),  # -1: the event has no such property
        ("value", np.int64),
        ("timestamp", np.int64),
    ]
)
Rows = NDArray[np.void]
# Kept with every event, so that log files become full while the node is being killed.
PADDING = "all work and no rest makes events dull. " * 6
PADDED = ("padding-1", "padding-2", "padding-3", "padding-4")
MEMBERS = 40


@dataclass(frozen=True)
class Counted:
    """A metric of the campaign."""

    code: str
    aggregation: str
    period: str | dict[str, Any]


METRICS = (
    # A period of ten years from 1970: every event is in the current one, which memory answers.
    Counted("calls", "count", {"kind": "fixed", "duration": 316_224_000, "epoch": 0}),
    Counted("bytes", "sum", "day"),
    Counted("level", "latest", "month"),
    Counted("members", "unique", "week"),
)
CALLS = 0


def put_metrics(client: Client) -> None:
    """Register all metrics; doing so again changes nothing."""
    for metric in METRICS:
        client.put_metric(
            metric.code, metric.aggregation, dimensions=["region"], period=metric.period
        )


def account_name(number: int) -> str:
    return f"team-{number - 1}/key" if number % PATHS == PATHS - 1 else f"team-{number}"


def draw_rows(
    random: np.random.Generator, count: int, accounts: int, now: int, client: int
) -> Rows:
    """Make events of `count` rows; most happened just now, some weeks ago.

    The last digits of a timestamp name client and row, so none is drawn twice.
    """
    rows = np.zeros(count, ROW)
    rows["account"] = (accounts * random.random(count) ** 2).astype(np.uint16)
    rows["metric"] = random.integers(0, len(METRICS), count)
    rows["region"] = random.integers(-1, len(REGIONS), count)
    rows["value"] = random.integers(-(10**9), 10**9, count)
    members = rows["metric"] == len(METRICS) - 1
    rows["value"][members] %= MEMBERS
    late = random.random(count) < 0.2
    happened = now - late * (random.random(count) * LATE_DAYS * DAY).astype(np.int64)
    rows["timestamp"] = happened // 10_000 * 10_000 + np.arange(count) * 10 + client
    return rows


class Batch:
    """Events that are sent together, and which of them are acknowledged."""

    def __init__(self, client: int, number: int, rows: Rows) -> None:
        self.client = client
        self.number = number
        self.rows = rows
        self.acknowledged = np.zeros(len(rows), bool)

    def event_id(self, row: int) -> str:
        """Return the identity of a row: a UUID for some clients, text for others."""
        if self.client % 2:
            return f"{self.client}.{self.number}.{row}"
        digits = f"{self.client:016x}{self.number:012x}{row:04x}"
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        return "-".join(parts)

    def event(self, row: int) -> Event:
        account, metric, region, value, timestamp = self.rows[row].item()
        return Event(
            account_name(account),
            METRICS[metric].code,
            value,
            timestamp,
            self.event_id(row),
            properties=properties_of(region, value),
        )

    def events(self, rows: NDArray[np.int64]) -> list[Event]:
        return [self.event(row) for row in rows.tolist()]

    def undecided(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self.acknowledged)


def properties_of(region: int, value: int) -> dict[str, str]:
    properties = dict.fromkeys(PADDED, PADDING[: value % len(PADDING)])
    if region >= 0:
        properties["region"] = REGIONS[region]
    return properties


@dataclass(frozen=True)
class Total:
    """What an account used of a metric."""

    value: Decimal | None
    count: int


class Ledger:
    """All batches; used by many threads at once."""

    def __init__(self, accounts: int) -> None:
        self.accounts = accounts
        self.batches: list[Batch] = []
        self._lock = threading.Lock()
        # Events by account and metric, for whoever asks while events arrive.
        self.sent = np.zeros((accounts, len(METRICS)), np.int64)
        self.acknowledged = np.zeros((accounts, len(METRICS)), np.int64)

    def add(self, batch: Batch) -> None:
        """Note a batch that is about to be sent for the first time."""
        with self._lock:
            self.batches.append(batch)
            np.add.at(self.sent, (batch.rows["account"], batch.rows["metric"]), 1)

    def acknowledge(self, batch: Batch, rows: NDArray[np.int64]) -> None:
        """Note rows that were stored or duplicate and had been undecided."""
        with self._lock:
            batch.acknowledged[rows] = True
            columns = batch.rows[rows]
            np.add.at(self.acknowledged, (columns["account"], columns["metric"]), 1)

    def count(self) -> int:
        return int(self.acknowledged.sum())

    def expected(self) -> Expected:
        """Return what the node must answer now that nothing is undecided."""
        assert self.sent.sum() == self.acknowledged.sum(), "some events are undecided"
        return Expected(self.accounts, self.batches)


class Expected:
    """Every answer that follows from a ledger, by plain numpy over all its rows."""

    def __init__(self, accounts: int, batches: list[Batch]) -> None:
        self.accounts = accounts
        self._batches = batches
        self._rows = np.concatenate([batch.rows for batch in batches])
        sizes = [len(batch.rows) for batch in batches]
        self._batch_of = np.repeat(np.arange(len(batches)), sizes)
        self._number = np.concatenate([np.arange(size) for size in sizes])
        self._by_account = np.argsort(self._rows["account"], kind="stable")
        self._ends = np.cumsum(np.bincount(self._rows["account"], minlength=accounts))

    def __len__(self) -> int:
        return len(self._rows)

    def totals(self, metric: int, start: int, end: int) -> dict[str, Total]:
        """Return the usage of every account that has events of a metric in [start, end)."""
        rows = self._rows[self._rows["metric"] == metric]
        rows = rows[(rows["timestamp"] >= start) & (rows["timestamp"] < end)]
        rows = rows[np.lexsort((rows["timestamp"], rows["account"]))]
        return {
            account_name(number): total(metric, of_account)
            for number, of_account in split(rows, "account")
        }

    def groups(self, account: int, metric: int, start: int, end: int) -> dict[str | None, Total]:
        """Return what an account used in [start, end), by region."""
        rows = self.of_account(account)
        rows = rows[rows["metric"] == metric]
        rows = rows[(rows["timestamp"] >= start) & (rows["timestamp"] < end)]
        rows = rows[np.lexsort((rows["timestamp"], rows["region"]))]
        return {
            REGIONS[region] if region >= 0 else None: total(metric, of_region)
            for region, of_region in split(rows, "region")
        }

    def of_account(self, account: int) -> Rows:
        return self._rows[self._places(account)]

    def _places(self, account: int) -> NDArray[np.int64]:
        start = self._ends[account - 1] if account else 0
        return self._by_account[start : self._ends[account]]

    def listing(self, account: int) -> dict[str, StoredEvent]:
        """Return the events of an account by id, as the node must list them."""
        found = {}
        for event in self._events(self._places(account)):
            found[event.id] = StoredEvent(
                event.account,
                event.metric,
                Decimal(event.value),
                event.timestamp,
                event.id,
                "none",
                dict(event.properties),
            )
        return found

    def identities(self) -> set[tuple[str, str]]:
        """Return (account, id) of every event."""
        return {
            (account_name(account), batch.event_id(row))
            for batch in self._batches
            for row, account in enumerate(batch.rows["account"].tolist())
        }

    def events(self, account: int, most: int, random: Random) -> list[Event]:
        """Return some events of an account as they were sent."""
        places = self._places(account)
        chosen = random.sample(range(len(places)), min(most, len(places)))
        return list(self._events(places[chosen]))

    def _events(self, places: NDArray[np.int64]) -> Iterator[Event]:
        for place in places.tolist():
            yield self._batches[self._batch_of[place]].event(int(self._number[place]))


def split(rows: Rows, column: str) -> Iterator[tuple[int, Rows]]:
    """Give each value of a column by which the rows are sorted, and its rows."""
    keys, starts = np.unique(rows[column], return_index=True)
    yield from zip(keys.tolist(), np.split(rows, starts[1:]), strict=bool(len(keys)))


def total(metric: int, rows: Rows) -> Total:
    """Add up the events of a metric, sorted by timestamp; there is at least one."""
    values = rows["value"]
    value = {
        "count": lambda: len(rows),
        "sum": lambda: int(values.sum()),
        "latest": lambda: int(values[-1]),
        "unique": lambda: len(np.unique(values)),
    }[METRICS[metric].aggregation]()
    return Total(Decimal(value), len(rows))
