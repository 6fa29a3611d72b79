"""The producer for asyncio, with an `ingest` that does what a test says."""

import asyncio
import functools
from collections.abc import Awaitable, Callable

import pytest

from meterd.client import Event, IngestUndecided, ProducerFailed
from meterd.client.async_producer import AsyncProducer
from meterd.client.results import IngestResult, Item


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Ingest:
    """Takes batches, and stores them once it may."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may = asyncio.Event()
        self.may.set()
        self.failures: list[Exception] = []

    async def __call__(self, events) -> IngestResult:
        self.batches.append([event.id for event in events])
        await self.may.wait()
        if self.failures:
            raise self.failures.pop()
        return IngestResult(received=len(events), stored=len(events))


def events(count: int) -> list[Event]:
    return [Event("a", "m", id=str(number)) for number in range(count)]


def made(ingest, max_batch=10, linger=3600.0, queue_size=50, on_item=None) -> AsyncProducer:
    return AsyncProducer(ingest, max_batch, linger, queue_size, on_item)


@in_a_loop
async def test_all_events_are_sent_in_order_in_batches() -> None:
    ingest = Ingest()
    async with made(ingest) as producer:
        for event in events(25):
            await producer.send(event)
        counters = await producer.flush()
        assert (counters.received, counters.stored, counters.batches) == (25, 25, 3)
        await producer.send(Event("a", "m", id="last"))
    assert [name for batch in ingest.batches for name in batch] == [
        *(str(number) for number in range(25)),
        "last",
    ]
    with pytest.raises(RuntimeError, match="closed"):
        await producer.send(Event("a", "m"))
    assert (await producer.close()).stored == 26


@in_a_loop
async def test_a_batch_leaves_when_it_has_lingered() -> None:
    ingest = Ingest()
    producer = made(ingest, linger=0.001)
    await producer.send(Event("a", "m", id="one"))
    while not producer.counters.stored:
        await asyncio.sleep(0.001)
    assert ingest.batches == [["one"]]
    await producer.close()


@in_a_loop
async def test_a_full_queue_makes_the_sender_wait() -> None:
    ingest = Ingest()
    ingest.may.clear()
    producer = made(ingest, max_batch=2, queue_size=4)
    sending = asyncio.create_task(asyncio.wait_for(_send_all(producer, events(20)), 60))
    while len(ingest.batches) < 2:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not sending.done() and len(ingest.batches) == 2  # two under way, a full queue
    ingest.may.set()
    await sending
    assert (await producer.close()).stored == 20


async def _send_all(producer: AsyncProducer, made: list[Event]) -> None:
    for event in made:
        await producer.send(event)


@in_a_loop
async def test_a_failure_is_raised_once_with_what_is_undecided() -> None:
    ingest = Ingest()
    known = IngestResult(received=2, stored=1, unknown=1, items=[Item(1, "unknown", "")])
    sent = events(2)
    ingest.failures.append(IngestUndecided("late", known, [sent[1]]))
    told: list[tuple[str, str]] = []
    producer = made(ingest, on_item=lambda event, item: told.append((event.id, item.status)))
    await _send_all(producer, sent)
    with pytest.raises(ProducerFailed) as caught:
        await producer.flush()
    assert caught.value.undecided == [sent[1]] and told == [("1", "unknown")]
    ingest.failures.append(ValueError("a bug"))
    await producer.send(sent[0])
    with pytest.raises(ProducerFailed, match="a bug") as caught:
        await producer.close()
    assert caught.value.undecided == [sent[0]]
    assert (producer.counters.received, producer.counters.unknown) == (3, 2)


@in_a_loop
async def test_what_is_no_event_and_senseless_limits_are_refused() -> None:
    with pytest.raises(TypeError, match="no Event"):
        await made(Ingest()).send("x")
    for limits in ({"max_batch": 0}, {"queue_size": 0}, {"linger": -1.0}):
        with pytest.raises(ValueError, match="at least"):
            made(Ingest(), **limits)


@in_a_loop
async def test_a_flush_does_not_wait_for_what_is_sent_behind_it() -> None:
    flushed = False

    async def ingest(batch: list[Event]) -> IngestResult:
        for one in batch:  # there is always one more
            if not flushed:
                await producer.send(one)
        await asyncio.sleep(0)
        return IngestResult(received=len(batch), stored=len(batch))

    async with made(ingest, max_batch=5, linger=0.0) as producer:
        for event in events(7):
            await producer.send(event)
        try:
            async with asyncio.timeout(10.0):
                await producer.flush()
        finally:
            flushed = True


@in_a_loop
async def test_a_flush_waits_for_an_older_batch_when_a_newer_one_is_answered() -> None:
    slow = asyncio.Event()

    async def ingest(batch: list[Event]) -> IngestResult:
        if batch[0].id == "0":
            await slow.wait()
        return IngestResult(received=len(batch), stored=len(batch))

    async with made(ingest, max_batch=2) as producer:
        for event in events(4):
            await producer.send(event)
        flush = asyncio.create_task(producer.flush())
        while producer.counters.stored < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert not flush.done()
        slow.set()
        assert (await flush).stored == 4
