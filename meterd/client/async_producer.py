"""The producer for asyncio: `producer`'s names, awaited, and a task where that has a thread.

`send` waits while the queue is full. Two tasks send, one of which gathers at a time, so events
leave in the order they came. What went wrong with a batch is raised by the next `flush` or `close`,
once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from meterd.client.events import Event
from meterd.client.outbox import SENDERS_COUNT, Counters, OnItem, Outbox, check_event
from meterd.client.results import IngestResult

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
        on_item: OnItem | None,
    ) -> None:
        """See `Producer`; nothing is started before the first event."""
        self._ingest = ingest
        self._outbox = Outbox(max_batch, linger, queue_size, on_item)
        self._changed = asyncio.Condition()
        self._gathering = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def counters(self) -> Counters:
        """What became of the events so far."""
        return self._outbox.counters

    async def send(self, event: Event) -> None:
        """Queue an event; waits while the queue is full."""
        check_event(event)
        async with self._changed:
            while self._outbox.full:
                await self._changed.wait()
            if self._outbox.add(event, _now()):
                self._changed.notify_all()
            if not self._tasks:
                self._tasks = [
                    asyncio.create_task(self._send_batches()) for _ in range(SENDERS_COUNT)
                ]

    async def flush(self) -> Counters:
        """Wait until every event sent so far has its answer.

        Raises ProducerFailed when a batch has failed since the last flush.
        """
        async with self._changed:
            count = self._outbox.hurry()
            self._changed.notify_all()
            while not self._outbox.settled(count):
                await self._changed.wait()
            return self._outbox.answer()

    async def close(self) -> Counters:
        """Flush and end; events can no longer be sent. A second time does nothing."""
        async with self._changed:
            self._outbox.closed = True
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
            await self._send_batch(batch)

    async def _gather(self) -> list[Event]:
        """Wait for a batch; empty when the producer is closed and nothing is left."""
        async with self._changed:
            while (wait := self._outbox.wait(_now())) != 0.0:
                if self._outbox.over:
                    return []
                with contextlib.suppress(TimeoutError):  # the batch is due as it is
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
            batch = self._outbox.take(_now())
            self._changed.notify_all()
            return batch

    async def _send_batch(self, batch: list[Event]) -> None:
        failure: Exception | None = None
        result = IngestResult()
        try:
            result = await self._ingest(batch)
        except Exception as error:  # the task must live on; flush raises it
            failure = error
        outcome = self._outbox.judge(batch, result, failure)
        async with self._changed:
            self._outbox.count(outcome)
            self._changed.notify_all()


def _now() -> float:
    return asyncio.get_running_loop().time()
