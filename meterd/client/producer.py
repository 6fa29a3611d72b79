"""Sends events in the background, in batches, for applications that produce them one by one.

`send` puts an event in a bounded queue and blocks while it is full, so a slow node slows the
application instead of filling its memory. Two threads send: while one waits for its answer the
other gathers and encodes, and only one gathers at a time, so events leave in the order they came
(their requests may still be answered in another).

Nothing fails silently: events that were not stored are handed to `on_item` and counted, and what
went wrong with a whole batch is raised by the next `flush` or `close`, once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from meterd.client.batches import code_of
from meterd.client.events import Event
from meterd.client.results import IngestResult, IngestUndecided, Item
from meterd.protocol.errors import MeterdError
from meterd.protocol.result import COUNTS

SENDERS_COUNT = 2
# Undecided events kept for the application to send again; beyond it they are only counted.
UNDECIDED_COUNT_MAX = 1_000_000

Ingest = Callable[[Sequence[Event]], IngestResult]


class ProducerFailed(MeterdError):
    """A batch failed in the background: the first error is the cause.

    `undecided` are the events that are not known to be stored; they may be sent again.
    """

    code = "deadline_exceeded"

    def __init__(self, message: str, undecided: list[Event]) -> None:
        super().__init__(message)
        self.undecided = undecided

    def __reduce__(self) -> tuple[type[ProducerFailed], tuple[Any, ...]]:
        return type(self), (self.message, self.undecided)


@dataclass(slots=True)
class Counters:
    """What became of the events so far; `received` is their sum, sent and answered."""

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0
    unknown: int = 0
    accepted: int = 0
    batches: int = field(default=0)

    def add(self, result: IngestResult) -> None:
        """Add the result of a batch."""
        self.batches += 1
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(result, name))


def check_limits(max_batch: int, linger: float, queue_size: int) -> None:
    """Raise ValueError for limits that no producer can have."""
    if max_batch < 1 or queue_size < 1 or linger < 0:
        raise ValueError("max_batch and queue_size are at least 1, linger at least 0")


def outcome_of(
    batch: list[Event], result: IngestResult, failure: Exception | None
) -> tuple[IngestResult, list[Event]]:
    """Return what is known of a batch, and its events that are undecided.

    result: of the request, when there is no failure.
    """
    if failure is None:
        return result, []
    if isinstance(failure, IngestUndecided):
        known = failure.result
        return known, [batch[item.index] for item in known.items if item.status == "unknown"]
    result = IngestResult()
    result.add_unknown(range(len(batch)), code_of(failure))
    return result, batch


def tell_items(
    on_item: Callable[[Event, Item], object] | None, batch: list[Event], result: IngestResult
) -> Exception | None:
    """Tell the application of each event that was not simply stored; return what that raised."""
    try:
        if on_item is not None:
            for item in result.items:
                on_item(batch[item.index], item)
    except Exception as failure:  # the application's mistake, told to the application
        return failure
    return None


class Producer:
    """A bounded queue of events and the threads that send them; ends with `close` or `with`."""

    def __init__(
        self,
        ingest: Ingest,
        max_batch: int,
        linger: float,
        queue_size: int,
        on_item: Callable[[Event, Item], object] | None,
    ) -> None:
        """Start sending: a batch leaves when it is full or `linger` seconds after its first event.

        `on_item` is called, in a sending thread, for each event that was not simply stored.
        """
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
        self._hurry = False  # send what there is
        self._closed = False
        self._error: Exception | None = None
        self._undecided: list[Event] = []
        self._lock = threading.Lock()
        self._gathering = threading.Lock()
        self._filled = threading.Condition(self._lock)  # there is something to gather
        self._freed = threading.Condition(self._lock)  # there is room, or all is answered
        self._threads = [
            threading.Thread(target=self._send_batches, name=f"producer-{number}", daemon=True)
            for number in range(SENDERS_COUNT)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def send(self, event: Event) -> None:
        """Queue an event; blocks while the queue is full."""
        if not isinstance(event, Event):
            raise TypeError(f"{event!r:.200} is no Event")
        with self._lock:
            while len(self._queue) >= self._queue_size and not self._closed:
                self._freed.wait()
            if self._closed:
                raise RuntimeError("this producer is closed")
            queue = self._queue
            queue.append(event)
            if len(queue) == 1:
                self._first_at = time.monotonic()
            if len(queue) == 1 or len(queue) == self._max_batch:
                self._filled.notify()

    def flush(self) -> Counters:
        """Wait until every event sent so far has its answer.

        Raises ProducerFailed when a batch has failed since the last flush.
        """
        with self._lock:
            self._hurry = True
            self._filled.notify_all()
            while self._queue or self._open_count:
                self._freed.wait()
            self._hurry = False
            error, self._error = self._error, None
            undecided, self._undecided = self._undecided, []
        if error is not None:
            raise ProducerFailed(
                f"{len(undecided)} events are undecided: {error}", undecided
            ) from error
        return self.counters

    def close(self) -> Counters:
        """Flush and end; events can no longer be sent. A second time does nothing."""
        with self._lock:
            self._closed = True
            self._freed.notify_all()
            self._filled.notify_all()
        try:
            return self.flush()
        finally:
            for thread in self._threads:
                thread.join()

    def _send_batches(self) -> None:
        while True:
            with self._gathering:
                batch = self._gather()
            if not batch:
                return
            self._send_batch(batch)

    def _gather(self) -> list[Event]:
        """Wait for a batch; empty when the producer is closed and nothing is left."""
        with self._lock:
            while not self._is_due():
                if not self._queue:
                    if self._closed:
                        return []
                    self._filled.wait()
                else:
                    self._filled.wait(self._first_at + self._linger - time.monotonic())
            count = min(len(self._queue), self._max_batch)
            batch = [self._queue.popleft() for _ in range(count)]
            self._first_at = time.monotonic()
            self._open_count += count
            self._freed.notify_all()
            return batch

    def _is_due(self) -> bool:
        queue = self._queue
        if len(queue) >= self._max_batch or (queue and (self._hurry or self._closed)):
            return True
        return bool(queue) and time.monotonic() >= self._first_at + self._linger

    def _send_batch(self, batch: list[Event]) -> None:
        failure: Exception | None = None
        result = IngestResult()
        try:
            result = self._ingest(batch)
        except Exception as error:  # the thread must live on; flush raises it
            failure = error
        result, undecided = outcome_of(batch, result, failure)
        mistake = tell_items(self._on_item, batch, result)
        self._count(result, failure or mistake, undecided)

    def _count(self, result: Any, error: Exception | None, undecided: list[Event]) -> None:
        with self._lock:
            self.counters.add(result)
            self._error = self._error or error
            room = UNDECIDED_COUNT_MAX - len(self._undecided)
            self._undecided += undecided[: max(room, 0)]
            self._open_count -= result.received
            self._freed.notify_all()
