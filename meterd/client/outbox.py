"""Events on their way in the background: what is queued, what is taken, what became of it.

Decides when a batch is due and what the application hears; whoever sends (`producer`,
`async_producer`) locks it, waits, and says what time it is, in seconds of a clock that only runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from meterd.client.batches import code_of
from meterd.client.events import Event
from meterd.client.results import IngestResult, IngestUndecided, Item
from meterd.protocol.errors import MeterdError
from meterd.protocol.result import COUNTS

# While one waits for its answer the other gathers and encodes.
SENDERS_COUNT = 2
# Undecided events kept for the application to send again; beyond it they are only counted.
UNDECIDED_COUNT_MAX = 1_000_000

OnItem = Callable[[Event, Item], object]


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
    batches: int = 0

    def add(self, result: IngestResult) -> None:
        """Add the result of a batch."""
        self.batches += 1
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(result, name))


class Outcome(NamedTuple):
    """What became of a batch."""

    batch: list[Event]
    result: IngestResult
    undecided: list[Event]
    error: BaseException | None


class Outbox:
    """See the module."""

    def __init__(
        self, max_batch: int, linger: float, queue_size: int, on_item: OnItem | None
    ) -> None:
        """`on_item` is called for each event that was not simply stored. Raises ValueError."""
        if max_batch < 1 or queue_size < 1 or linger < 0:
            raise ValueError("max_batch and queue_size are at least 1, linger at least 0")
        self.counters = Counters()
        self.closed = False
        self._max_batch = min(max_batch, queue_size)
        self._linger = linger
        self._queue_size = queue_size
        self._on_item = on_item
        self._queue: deque[Event] = deque()
        self._taken_count = 0  # events ever taken from the queue
        self._hurried_count = 0  # so many of all events ever queued are to leave at once
        self._open: list[tuple[int, list[Event]]] = []  # taken and not yet answered: place, batch
        self._first_at = 0.0  # when the queue's first event came, or later
        self._error: BaseException | None = None
        self._undecided: list[Event] = []

    @property
    def full(self) -> bool:
        """Does an event have to wait?"""
        return len(self._queue) >= self._queue_size and not self.closed

    @property
    def over(self) -> bool:
        """Is it closed, and nothing left to take?"""
        return self.closed and not self._queue

    def add(self, event: Event, now: float) -> bool:
        """Queue an event; return whether whoever gathers should look. Raises RuntimeError."""
        if self.closed:
            raise RuntimeError("this producer is closed")
        self._queue.append(event)
        if len(self._queue) == 1:
            self._first_at = now
        return len(self._queue) in (1, self._max_batch)

    def hurry(self) -> int:
        """Have everything leave that is queued; return how many events that is since the first."""
        self._hurried_count = self._taken_count + len(self._queue)
        return self._hurried_count

    def settled(self, count: int) -> bool:
        """Have the first so many events their answers, whatever was queued behind them?"""
        return min([place for place, _ in self._open], default=self._taken_count) >= count

    def wait(self, now: float) -> float | None:
        """Return after how many seconds a batch is due, 0: now; None: there is nothing to send."""
        if not self._queue:
            return None
        hurried = self._taken_count < self._hurried_count
        if len(self._queue) >= self._max_batch or hurried or self.closed:
            return 0.0
        return max(0.0, self._first_at + self._linger - now)

    def take(self, now: float) -> list[Event]:
        """Take the next batch."""
        count = min(len(self._queue), self._max_batch)
        batch = [self._queue.popleft() for _ in range(count)]
        self._first_at = now
        self._open.append((self._taken_count, batch))
        self._taken_count += count
        return batch

    def judge(
        self, batch: list[Event], result: IngestResult, failure: BaseException | None
    ) -> Outcome:
        """Return what became of a batch, and tell the application; needs no lock.

        result: of the request, when there is no `failure`.
        """
        undecided: list[Event] = []
        if isinstance(failure, IngestUndecided):
            result = failure.result
            undecided = [batch[item.index] for item in result.items if item.status == "unknown"]
        elif failure is not None:
            result, undecided = IngestResult(), batch
            result.add_unknown(range(len(batch)), code_of(failure))
        try:
            if self._on_item is not None:
                for item in result.items:
                    self._on_item(batch[item.index], item)
        except BaseException as mistake:  # the application's, told to the application
            failure = failure or mistake
        return Outcome(batch, result, undecided, failure)

    def count(self, outcome: Outcome) -> None:
        """Note what became of a batch."""
        self.counters.add(outcome.result)
        self._error = self._error or outcome.error
        room = UNDECIDED_COUNT_MAX - len(self._undecided)
        self._undecided += outcome.undecided[: max(room, 0)]
        self._open = [one for one in self._open if one[1] is not outcome.batch]

    def answer(self) -> Counters:
        """Return the counters. Raises ProducerFailed, once, when a batch has failed."""
        error, self._error = self._error, None
        undecided, self._undecided = self._undecided, []
        if error is not None:
            raise ProducerFailed(
                f"{len(undecided)} events are undecided: {error}", undecided
            ) from error
        return self.counters


def check_event(event: object) -> None:
    """Raise TypeError for what is no event."""
    if not isinstance(event, Event):
        raise TypeError(f"{event!r:.200} is no Event")
