"""The client for asyncio: the same methods as the blocking one, awaited.

The loop watches ZeroMQ's descriptors itself. They tell only that something has changed, once, so
after every send and every wake-up all sockets are asked for what has arrived. A step encodes at
most one request before it lets the loop do other things.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, Unpack

import zmq

from meterd.client import questions
from meterd.client.async_producer import AsyncProducer
from meterd.client.batches import ColumnSource, EventSource
from meterd.client.blocking import TIMEOUT_S_DEFAULT, make_session, route_of
from meterd.client.connections import Connections, Socket
from meterd.client.events import Event
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
from meterd.client.session import Job, Session
from meterd.client.tables import Columns, to_arrow, to_pandas
from meterd.protocol.columns import Durability

Result = TypeVar("Result")


class LoopDriver:
    """Moves a session's frames in an event loop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that ran the first job
        self._connections: Connections | None = None
        self._futures: dict[Job, asyncio.Future[None]] = {}
        self._timer: asyncio.Handle | None = None
        self._closed = False

    async def run(self, job: Job) -> None:
        """Return when the job is done; forget it when cancelled."""
        loop = self._owned_loop()
        future = self._futures[job] = loop.create_future()
        self._session.start(loop.time(), job)
        try:
            self._step()
            await future
        finally:
            self._futures.pop(job, None)
            if not job.done:
                self._session.abandon(job)

    def close(self) -> None:
        """Close the sockets; who still waits gets RuntimeError."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._connections is not None:
            self._connections.close()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(RuntimeError("this client was closed"))

    def _owned_loop(self) -> asyncio.AbstractEventLoop:
        running = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._loop is None:
            self._loop = running
            self._connections = Connections(self._watch, self._unwatch)
        elif self._loop is not running:
            raise RuntimeError("this client belongs to another event loop: make one in each")
        return running

    def _watch(self, socket: Socket) -> None:
        if self._loop is not None:
            self._loop.add_reader(int(socket.get(zmq.FD)), self._step)

    def _unwatch(self, socket: Socket) -> None:
        if self._loop is not None:
            self._loop.remove_reader(int(socket.get(zmq.FD)))

    def _step(self) -> None:
        """Send what is to be sent, take what has arrived, and only then look at the time."""
        session, connections, loop = self._session, self._connections, self._loop
        if connections is None or loop is None or self._closed:
            return
        while True:
            sends = session.take_sends()
            for address, frames in sends:
                connections.send(address, frames)
            for address, frames in connections.receive_all():
                session.on_answer(loop.time(), address, frames)
            for address in connections.all_lost():
                session.on_lost(loop.time(), address)
            wake = session.next_wake()
            if wake is not None and 0 < wake <= loop.time():
                session.on_tick(loop.time())
            self._tell_finished()
            if not session.has_sends():
                break
        self._set_timer()

    def _on_timer(self) -> None:
        if self._session.next_wake() == 0 and self._loop is not None:
            self._session.on_tick(self._loop.time())
        self._step()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake = self._session.next_wake()
        if wake is not None and self._loop is not None:
            if wake == 0:
                self._timer = self._loop.call_soon(self._on_timer)
            else:
                self._timer = self._loop.call_at(wake, self._on_timer)

    def _tell_finished(self) -> None:
        for job in self._session.take_finished():
            future = self._futures.pop(job, None)
            if future is not None and not future.done():
                future.set_result(None)


class AsyncClient:
    """Talks to a cluster; ends with `close` or an `async with` block."""

    def __init__(self, seeds: Sequence[str], timeout: float = TIMEOUT_S_DEFAULT) -> None:
        """Make a client; see `Client`. It belongs to the loop that awaits it first."""
        self._session = make_session(seeds, timeout)
        self._driver = LoopDriver(self._session)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a second time does nothing."""
        self._driver.close()

    async def run(self, plan: Plan[Result]) -> Result:
        """Carry out a plan (see `questions`)."""
        try:
            while True:
                await self._driver.run(next(plan))
        except StopIteration as end:
            return end.value

    async def put_metric(
        self, code: str, aggregation: str, **options: Unpack[MetricOptions]
    ) -> MetricOutcome:
        """Register a metric; the same definition again changes nothing."""
        return await self.run(questions.put_metric(code, aggregation, options))

    async def list_metrics(self) -> list[dict[str, Any]]:
        """Give the definitions of all metrics."""
        return await self.run(questions.list_metrics())

    async def show_metric(self, code: str) -> dict[str, Any]:
        """Give {"metric": the definition, "versions": all of them}."""
        return await self.run(questions.ask("metric_show", {"code": code}))

    async def delete_metric(self, code: str) -> None:
        """Delete a metric; its events stay until they expire."""
        await self.run(questions.ask("metric_delete", {"code": code}))

    async def erase_account(self, account: str, subtree: bool = False) -> dict[str, Any]:
        """Erase what an account has had so far; see `Client.erase_account`."""
        body = {"account": account, "subtree": subtree, "id": uuid.uuid4().hex}
        return await self.run(questions.ask("account_erase", body))

    async def import_balances(
        self, import_id: str, balances: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Bring usage from another system; see `Client.import_balances`."""
        body = {"id": import_id, "balances": list(balances)}
        return await self.run(questions.ask("balance_import", body))

    async def ingest(
        self, events: Iterable[Event], durability: Durability = "sync"
    ) -> IngestResult:
        """Store events; see `Client.ingest`."""
        source = EventSource(events)
        return await self.run(questions.ingest(source, durability, route_of(self._session)))

    async def ingest_columns(
        self, durability: Durability = "sync", **columns: Unpack[IngestColumns]
    ) -> IngestResult:
        """Store events given as columns: lists, numpy arrays, or one value for all rows."""
        source = ColumnSource(columns)
        return await self.run(questions.ingest(source, durability, route_of(self._session)))

    def producer(
        self,
        max_batch: int = 5_000,
        linger: float = 0.005,
        queue_size: int = 50_000,
        durability: Durability = "sync",
        on_item: Callable[[Event, Item], object] | None = None,
    ) -> AsyncProducer:
        """Make a sender that works in the background; `send`, `flush` and `close` are awaited."""
        return AsyncProducer(
            lambda events: self.ingest(events, durability), max_batch, linger, queue_size, on_item
        )

    async def usage(
        self, account: Account, metric: str, **options: Unpack[UsageOptions]
    ) -> Usage:
        """Say how much an account used of a metric, in the current period unless told otherwise."""
        return await self.run(questions.usage(account, metric, options))

    def accounts(
        self, metric: str, **options: Unpack[AccountsOptions]
    ) -> AsyncPages[AccountUsage]:
        """List the usage of every account of a metric; for `async for`."""
        return AsyncPages(self, questions.accounts(metric, options))

    def events(
        self, account: Account, **options: Unpack[EventsOptions]
    ) -> AsyncPages[StoredEvent]:
        """List the stored events of an account by time; for `async for`."""
        return AsyncPages(self, questions.events(account, options))

    def feed(
        self,
        after: str | None = None,
        account: Account | None = None,
        **options: Unpack[FeedOptions],
    ) -> AsyncPages[StoredEvent]:
        """List stored events in log order, from a cursor to what is now the end."""
        return AsyncPages(self, questions.feed(after, account, options))

    def rejected(self, **options: Unpack[PageOptions]) -> AsyncPages[RejectedEvent]:
        """List refused events, the newest first; for `async for`."""
        return AsyncPages(self, questions.rejected(options))

    async def hello(self) -> dict[str, Any]:
        """Say who the node is and which limits it has."""
        return await self.run(questions.ask("hello", {}))

    async def status(self) -> dict[str, Any]:
        """Describe the node, its actors, its log and its totals."""
        return await self.run(questions.ask("status", {}))

    async def health(self) -> dict[str, Any]:
        """Say whether the node can do its work, as `GET /health` does."""
        return await self.run(questions.ask("health", {}))

    async def metrics(self, name_filter: str = "") -> str:
        """Give the node's telemetry as Prometheus text."""
        return await self.run(questions.telemetry(name_filter))


class AsyncPages(Generic[Row]):
    """The rows of a listing; see `Pages`."""

    def __init__(self, client: AsyncClient, listing: Listing[Row]) -> None:
        self._client = client
        self._listing = listing
        self.cursor: str | None = None
        self.head: dict[str, Any] = {}

    async def __aiter__(self) -> AsyncIterator[Row]:
        cursor, taken_count = self._listing.fields.get("after"), 0
        while not self._listing.is_complete(taken_count):
            page = await self._client.run(self._listing.page(cursor, taken_count))
            self.cursor, self.head = page.cursor or cursor, page.head
            for row in page.rows:
                yield row
            taken_count += len(page.rows)
            if page.cursor is None:
                return
            cursor = page.cursor

    async def columns(self) -> Columns:
        """Give all rows as columns."""
        return dict(self._listing.columns_of([row async for row in self]))

    async def to_pandas(self) -> Any:
        """Give the rows as a DataFrame; needs pandas."""
        return to_pandas(await self.columns())

    async def to_arrow(self) -> Any:
        """Give the rows as an Arrow table; needs pyarrow."""
        return to_arrow(await self.columns())
