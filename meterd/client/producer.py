"""Sends events in the background, in batches, for applications that produce them one by one.

`send` puts an event in a bounded queue and blocks while it is full, so a slow node slows the
application instead of filling its memory. Two threads send: while one waits for its answer the
other gathers and encodes, and only one gathers at a time, so events leave in the order they came
(their requests may still be answered in another).

Nothing fails silently: events that were not stored are handed to `on_item` and counted, and what
went wrong with a whole batch, or in `on_item`, is raised by the next `flush` or `close`, once. What
`on_item` calls of its own producer raises RuntimeError where waiting would have no end: it runs in
one of the threads that it would wait for. It does not survive a fork, like its client.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from meterd.client.events import Event
from meterd.client.outbox import SENDERS_COUNT, Counters, OnItem, Outbox, check_event
from meterd.client.results import IngestResult

Ingest = Callable[[Sequence[Event]], IngestResult]


class Producer:
    """A bounded queue of events and the threads that send them; ends with `close` or `with`."""

    def __init__(
        self,
        ingest: Ingest,
        max_batch: int,
        linger: float,
        queue_size: int,
        on_item: OnItem | None,
    ) -> None:
        """Start sending: a batch leaves when it is full or `linger` seconds after its first event.

        `on_item` is called, in a sending thread, for each event that was not simply stored. It may
        `send`, but neither `flush` nor `close`.
        """
        self._ingest = ingest
        self._outbox = Outbox(max_batch, linger, queue_size, on_item)
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._gathering = threading.Lock()
        self._filled = threading.Condition(self._lock)  # there is something to gather
        self._freed = threading.Condition(self._lock)  # there is room, or all is answered
        self._held_count = 0  # of the threads, those that wait for room in `on_item`
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

    @property
    def counters(self) -> Counters:
        """What became of the events so far."""
        return self._outbox.counters

    def send(self, event: Event) -> None:
        """Queue an event; blocks while the queue is full.

        Raises RuntimeError in `on_item` when nobody else is left who could make room.
        """
        check_event(event)
        self._check_owner()
        with self._lock:
            while self._outbox.full:
                self._wait_for_room()
            if self._outbox.add(event, time.monotonic()):
                self._filled.notify()

    def flush(self) -> Counters:
        """Wait until every event sent so far has its answer.

        Raises ProducerFailed when a batch has failed since the last flush, RuntimeError in
        `on_item`, whose event it would wait for.
        """
        self._check_owner()
        self._check_thread()
        with self._lock:
            count = self._outbox.hurry()
            self._filled.notify_all()
            while not self._outbox.settled(count):
                self._freed.wait()
            return self._outbox.answer()

    def close(self) -> Counters:
        """Flush and end; events can no longer be sent. A second time does nothing.

        Nor does it in a child process, where it has nothing: its queue is the parent's to send.
        """
        if self._owner_pid != os.getpid():
            return self.counters
        self._check_thread()
        with self._lock:
            self._outbox.closed = True
            self._freed.notify_all()
            self._filled.notify_all()
        try:
            return self.flush()
        finally:
            for thread in self._threads:
                thread.join()

    def _check_owner(self) -> None:
        """Raise RuntimeError in a child process, where no thread would ever send anything."""
        if self._owner_pid != os.getpid():
            raise RuntimeError(
                f"this producer was made in process {self._owner_pid}: make one after the fork"
            )

    def _check_thread(self) -> None:
        """Raise RuntimeError in `on_item`, which everybody who waits for all events waits for."""
        if threading.current_thread() in self._threads:
            raise RuntimeError("on_item can neither flush nor close the producer that calls it")

    def _wait_for_room(self) -> None:
        """Wait until something has changed. Raises RuntimeError when nothing ever would."""
        held = threading.current_thread() in self._threads
        if held and self._held_count == SENDERS_COUNT - 1:
            raise RuntimeError("the queue is full, and all who could send wait in on_item")
        self._held_count += held
        try:
            self._freed.wait()
        finally:
            self._held_count -= held

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
            while (wait := self._outbox.wait(time.monotonic())) != 0.0:
                if self._outbox.over:
                    return []
                self._filled.wait(wait)
            batch = self._outbox.take(time.monotonic())
            self._freed.notify_all()
            return batch

    def _send_batch(self, batch: list[Event]) -> None:
        failure: BaseException | None = None
        result = IngestResult()
        try:
            result = self._ingest(batch)
        except BaseException as error:  # the thread must live on; flush raises it
            failure = error
        outcome = self._outbox.judge(batch, result, failure)
        with self._lock:
            self._outbox.count(outcome)
            self._freed.notify_all()
