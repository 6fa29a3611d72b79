"""The producer for asyncio: `producer`'s names, awaited, and a task where that has a thread.

`send` waits while the queue is full. Two tasks send, one of which gathers at a time, so events
leave in the order they came. What went wrong with a batch is raised by the next `flush` or `close`,
once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from meterd.client.events import Event
from meterd.client.producer import (
    SENDERS_COUNT,
    UNDECIDED_COUNT_MAX,
    Counters,
    ProducerFailed,
    check_limits,
    outcome_of,
    tell_items,
)
from meterd.client.results import IngestResult, Item

Ingest = Callable[[Sequence[Event]], Awaitable[IngestResult]]


class AsyncProducer:
    """A bounded queue of events and the tasks that send them; ends with `close` or `async with`.

    It belongs to the loop that sends the first event.
    """

    def __init__(
        self,
        ingest: Ingest,
        max_batch: int,
        linger: float,
        queue_size: int,
        on_item: Callable[[Event, Item], object] | None,
    ) -> None:
        """See `Producer`; nothing is started before the first event."""
        check_limits(max_batch, linger, queue_size)
        self.counters = Counters()
        self._ingest = ingest
        self._max_batch = min(max_batch, queue_size)
        self._linger = linger
        self._queue_size = queue_size
        self._on_item = on_item
        self._queue: deque[Event] = deque()
        self._open_count = 0  # events taken from the queue and not yet answered
        self._first_at = 0.0  # when the queue's first event came, or later
        self._flushes = 0  # who waits for all there is
        self._closed = False
        self._error: Exception | None = None
        self._undecided: list[Event] = []
        self._changed = asyncio.Condition()
        self._gathering = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def send(self, event: Event) -> None:
        """Queue an event; waits while the queue is full."""
        if not isinstance(event, Event):
            raise TypeError(f"{event!r:.200} is no Event")
        async with self._changed:
            while len(self._queue) >= self._queue_size and not self._closed:
                await self._changed.wait()
            if self._closed:
                raise RuntimeError("this producer is closed")
            if not self._tasks:
                self._tasks = [
                    asyncio.create_task(self._send_batches()) for _ in range(SENDERS_COUNT)
                ]
            self._queue.append(event)
            if len(self._queue) == 1:
                self._first_at = asyncio.get_running_loop().time()
            if len(self._queue) in (1, self._max_batch):
                self._changed.notify_all()

    async def flush(self) -> Counters:
        """Wait until every event sent so far has its answer.

        Raises ProducerFailed when a batch has failed since the last flush.
        """
        async with self._changed:
            self._flushes += 1
            self._changed.notify_all()
            try:
                while self._queue or self._open_count:
                    await self._changed.wait()
            finally:
                self._flushes -= 1
            error, self._error = self._error, None
            undecided, self._undecided = self._undecided, []
        if error is not None:
            raise ProducerFailed(
                f"{len(undecided)} events are undecided: {error}", undecided
            ) from error
        return self.counters

    async def close(self) -> Counters:
        """Flush and end; events can no longer be sent. A second time does nothing."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
        try:
            return await self.flush()
        finally:
            await asyncio.gather(*self._tasks)

    async def _send_batches(self) -> None:
        while True:
            async with self._gathering:
                batch = await self._gather()
            if not batch:
                return
            failure: Exception | None = None
            result = IngestResult()
            try:
                result = await self._ingest(batch)
            except Exception as error:  # the task must live on; flush raises it
                failure = error
            await self._count(batch, result, failure)

    async def _gather(self) -> list[Event]:
        """Wait for a batch; empty when the producer is closed and nothing is left."""
        async with self._changed:
            while not self._is_due():
                if self._queue:
                    left = self._first_at + self._linger - asyncio.get_running_loop().time()
                    await self._wait_at_most(left)
                elif self._closed:
                    return []
                else:
                    await self._changed.wait()
            count = min(len(self._queue), self._max_batch)
            batch = [self._queue.popleft() for _ in range(count)]
            self._first_at = asyncio.get_running_loop().time()
            self._open_count += count
            self._changed.notify_all()
            return batch

    async def _wait_at_most(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass  # the batch is due as it is

    def _is_due(self) -> bool:
        queue = self._queue
        if len(queue) >= self._max_batch or (queue and (self._flushes or self._closed)):
            return True
        now = asyncio.get_running_loop().time()
        return bool(queue) and now >= self._first_at + self._linger

    async def _count(
        self, batch: list[Event], result: IngestResult, failure: Exception | None
    ) -> None:
        result, undecided = outcome_of(batch, result, failure)
        mistake = tell_items(self._on_item, batch, result)
        async with self._changed:
            self.counters.add(result)
            self._error = self._error or failure or mistake
            room = UNDECIDED_COUNT_MAX - len(self._undecided)
            self._undecided += undecided[: max(room, 0)]
            self._open_count -= result.received
            self._changed.notify_all()
