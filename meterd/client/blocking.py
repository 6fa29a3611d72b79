"""The client for programs with threads, or with one: every call returns when it is done.

One client may be used by many threads at once; see `driver` for how they take turns. It does not
survive a fork: make one in each process.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, Unpack

from meterd.client import questions
from meterd.client.batches import ColumnSource, EventSource, Route
from meterd.client.connections import check_address
from meterd.client.driver import Driver
from meterd.client.events import Event
from meterd.client.producer import Producer
from meterd.client.questions import (
    Account,
    AccountsOptions,
    EventsOptions,
    FeedOptions,
    IngestColumns,
    Listing,
    MetricOptions,
    MetricOutcome,
    PageOptions,
    Plan,
    Row,
    UsageOptions,
)
from meterd.client.results import (
    AccountUsage,
    IngestResult,
    Item,
    RejectedEvent,
    StoredEvent,
    Usage,
)
from meterd.client.session import Session
from meterd.client.tables import Columns, Tabular
from meterd.protocol.columns import Durability

TIMEOUT_S_DEFAULT = 30.0

Result = TypeVar("Result")


def make_session(seeds: Sequence[str], timeout: float) -> Session:
    """Check a client's arguments and begin its session."""
    if isinstance(seeds, str):
        raise TypeError(f"seeds is a list of addresses: [{seeds!r}]")
    addresses = [check_address(seed) for seed in seeds]
    if not addresses:
        raise ValueError("seeds is empty: name at least one node, such as 127.0.0.1:7001")
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout!r}: it is a number of seconds above 0")
    return Session(addresses, timeout, random.random)


def route_of(session: Session) -> Route | None:
    """Give what chooses a leader, once a map with several nodes is known."""
    known = session.map
    return known.leader_of if known is not None and len(known.nodes) > 1 else None


class Client:
    """Talks to a cluster; ends with `close` or a `with` block."""

    def __init__(self, seeds: Sequence[str], timeout: float = TIMEOUT_S_DEFAULT) -> None:
        """Make a client; `seeds` are addresses host:port of some nodes, the rest is discovered.

        Each request is tried until it is answered or `timeout` seconds have passed. Nothing is
        sent yet.
        """
        self._session = make_session(seeds, timeout)
        self._driver = Driver(self._session)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a second time does nothing."""
        self._driver.close()

    def run(self, plan: Plan[Result]) -> Result:
        """Carry out a plan (see `questions`)."""
        try:
            while True:
                self._driver.run(next(plan))
        except StopIteration as end:
            return end.value

    # Metrics

    def put_metric(
        self, code: str, aggregation: str, **options: Unpack[MetricOptions]
    ) -> MetricOutcome:
        """Register a metric; the same definition again changes nothing."""
        return self.run(questions.put_metric(code, aggregation, options))

    def list_metrics(self) -> list[dict[str, Any]]:
        """Give the definitions of all metrics."""
        return self.run(questions.list_metrics())

    def show_metric(self, code: str) -> dict[str, Any]:
        """Give {"metric": the definition, "versions": all of them}."""
        return self.run(questions.ask("metric_show", {"code": code}))

    def delete_metric(self, code: str) -> None:
        """Delete a metric; its events stay until they expire."""
        self.run(questions.ask("metric_delete", {"code": code}))

    # Accounts

    def erase_account(self, account: str, subtree: bool = False) -> dict[str, Any]:
        """Erase what an account has had so far; its ids stay used, new events are taken."""
        body = {"account": account, "subtree": subtree, "id": uuid.uuid4().hex}
        return self.run(questions.ask("account_erase", body))

    def import_balances(
        self, import_id: str, balances: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Bring usage from another system, once for each import id."""
        body = {"id": import_id, "balances": list(balances)}
        return self.run(questions.ask("balance_import", body))

    # Events

    def ingest(self, events: Iterable[Event], durability: Durability = "sync") -> IngestResult:
        """Store events; returns when each has its answer.

        Raises IngestUndecided, which has the partial result, when some are not decided in time.
        """
        source = EventSource(events)
        return self.run(questions.ingest(source, durability, route_of(self._session)))

    def ingest_columns(
        self, durability: Durability = "sync", **columns: Unpack[IngestColumns]
    ) -> IngestResult:
        """Store events given as columns: lists, numpy arrays, or one value for all rows."""
        source = ColumnSource(columns)
        return self.run(questions.ingest(source, durability, route_of(self._session)))

    def producer(
        self,
        max_batch: int = 5_000,
        linger: float = 0.005,
        queue_size: int = 50_000,
        durability: Durability = "sync",
        on_item: Callable[[Event, Item], object] | None = None,
    ) -> Producer:
        """Make a sender that works in the background; see `producer`."""
        self._driver.check_owner()
        return Producer(
            lambda events: self.ingest(events, durability), max_batch, linger, queue_size, on_item
        )

    # Questions

    def usage(self, account: Account, metric: str, **options: Unpack[UsageOptions]) -> Usage:
        """Say how much an account used of a metric, in the current period unless told otherwise."""
        return self.run(questions.usage(account, metric, options))

    def accounts(self, metric: str, **options: Unpack[AccountsOptions]) -> Pages[AccountUsage]:
        """List the usage of every account of a metric."""
        return Pages(self, questions.accounts(metric, options))

    def events(self, account: Account, **options: Unpack[EventsOptions]) -> Pages[StoredEvent]:
        """List the stored events of an account by time."""
        return Pages(self, questions.events(account, options))

    def feed(
        self,
        after: str | None = None,
        account: Account | None = None,
        **options: Unpack[FeedOptions],
    ) -> Pages[StoredEvent]:
        """List stored events in log order, from a cursor to what is now the end."""
        return Pages(self, questions.feed(after, account, options))

    def rejected(self, **options: Unpack[PageOptions]) -> Pages[RejectedEvent]:
        """List refused events, the newest first."""
        return Pages(self, questions.rejected(options))

    # The node

    def hello(self) -> dict[str, Any]:
        """Say who the node is and which limits it has."""
        return self.run(questions.ask("hello", {}))

    def status(self) -> dict[str, Any]:
        """Describe the node, its actors, its log and its totals."""
        return self.run(questions.ask("status", {}))

    def health(self) -> dict[str, Any]:
        """Say whether the node can do its work, as `GET /health` does."""
        return self.run(questions.ask("health", {}))

    def metrics(self, name_filter: str = "") -> str:
        """Give the node's telemetry as Prometheus text."""
        return self.run(questions.telemetry(name_filter))


class Pages(Tabular, Generic[Row]):
    """The rows of a listing; each iteration asks from the start, page by page.

    `cursor` is where the next page begins, `head` the rest of the last answer (the range and the
    log position of an invoice run, say).
    """

    def __init__(self, client: Client, listing: Listing[Row]) -> None:
        self._client = client
        self._listing = listing
        self.cursor: str | None = None
        self.head: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Row]:
        cursor, taken_count = self._listing.fields.get("after"), 0
        while not self._listing.is_complete(taken_count):
            page = self._client.run(self._listing.page(cursor, taken_count))
            self.cursor, self.head = page.cursor or cursor, page.head
            yield from page.rows
            taken_count += len(page.rows)
            if page.cursor is None:
                return
            cursor = page.cursor

    def columns(self) -> Columns:
        """Give all rows as columns."""
        return dict(self._listing.columns_of(list(self)))
