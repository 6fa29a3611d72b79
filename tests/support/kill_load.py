"""Clients that never give up: they send batches while the node is being killed, and settle them.

Each worker is a thread that sends batches of 1 to 500 events through `meterd.client`, which
retries inside its deadline; what is undecided then is queued and sent again, by whichever worker
comes first, until it is settled.  Some batches that were acknowledged are sent again as they are:
all must be duplicates.  A reader asks for totals meanwhile: an answer must hold what was
acknowledged before the question, and nothing that was not sent.

What breaks the contract is noted in `violations`, never raised: the campaign goes on and reports.
"""

from __future__ import annotations

import collections
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meterd.client import Client, DeadlineExceeded, IngestUndecided, Unreachable
from meterd.client.results import IngestResult
from tests.support.kill_ledger import CALLS, DAY, METRICS, Batch, Ledger, account_name, draw_rows
from tests.support.waiting import eventually

BATCH_EVENTS_MAX = 500
# Deadlines of the workers' clients: the short ones give up in the middle of a restart.
TIMEOUTS = (0.5, 2.0, 5.0, 20.0, 60.0)
PAUSE_SECONDS_MAX = 0.03
RESEND_SHARE = 0.05
KNOWN_BATCHES_MAX = 500
VIOLATIONS_MAX = 50
SETTLE_SECONDS = 120.0
READER_TIMEOUT = 20.0
# The client number of events that measure how long the node was away.
PROBE = 9


@dataclass
class Watch:
    """Waits for the first acknowledgement of a call that began after `since`."""

    since: float
    answered: float = float("inf")


class Load:
    """All workers and the reader; they run from `start` to `stop`, except while paused."""

    def __init__(
        self,
        addresses: Sequence[str],
        ledger: Ledger,
        seed: int,
        timeouts: Sequence[float] = TIMEOUTS,
        reader_timeout: float = READER_TIMEOUT,
    ) -> None:
        """`timeouts`: deadlines in seconds, one worker for each."""
        self.addresses = addresses
        self.ledger = ledger
        self._timeouts, self._reader_timeout = timeouts, reader_timeout
        self.violations: list[str] = []
        self.counters: Counter[str] = Counter()
        self._random = np.random.default_rng([seed, PROBE])
        self._probes = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._undecided: collections.deque[Batch] = collections.deque()
        self._known: list[Batch] = []
        self._in_flight = 0
        self._watches: list[Watch] = []
        self._parked: set[int] = set()
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._work, worker, seed))
            for worker in range(len(timeouts))
        ]
        self._threads.append(threading.Thread(target=self._guarded, args=(self._read, seed)))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all threads, after what they are doing."""
        self._stopping.set()
        self._running.set()
        for thread in self._threads:
            thread.join()

    def pause(self) -> None:
        """Wait until everything is settled and no thread asks for anything."""
        self._running.clear()
        eventually(
            lambda: len(self._parked) == sum(one.is_alive() for one in self._threads),
            "every event is settled",
            SETTLE_SECONDS,
        )

    def resume(self) -> None:
        self._running.set()

    def in_flight(self) -> int:
        """Return how many ingest calls wait for their answer."""
        return self._in_flight

    def violation(self, text: str) -> None:
        with self._lock:
            self.counters["violations"] += 1
            if len(self.violations) < VIOLATIONS_MAX:
                self.violations.append(text)

    # How long the node was away

    def watch(self) -> Watch:
        """Begin to watch; until a probe has ended, whoever's call is acknowledged first counts."""
        watch = Watch(time.monotonic())
        with self._lock:
            self._watches.append(watch)
        return watch

    def probe(self) -> None:
        """Send one event with a client of its own until it is acknowledged; end all watches."""
        self._probes += 1
        rows = draw_rows(self._random, 1, self.ledger.accounts, time.time_ns(), PROBE)
        batch = Batch(PROBE, self._probes, rows)
        self.ledger.add(batch)
        with Client(self.addresses, timeout=SETTLE_SECONDS) as client:
            self._send(client, batch, np.arange(1))
        with self._lock:
            self._watches = []

    def probe_all(self, accounts: NDArray[np.int64]) -> float:
        """Send an event to each of these accounts until all are settled; return when that was."""
        self._probes += 1
        rows = draw_rows(self._random, len(accounts), self.ledger.accounts, time.time_ns(), PROBE)
        rows["account"] = accounts
        batch = Batch(PROBE, self._probes, rows)
        self.ledger.add(batch)
        with Client(self.addresses, timeout=SETTLE_SECONDS) as client:
            self._send(client, batch, np.arange(len(rows)))
        if not batch.acknowledged.all():
            self.violation(
                f"{len(batch.undecided())} accounts take no events for {SETTLE_SECONDS} s"
            )
        return time.monotonic()

    def _seeds(self, worker: int) -> list[str]:
        """Return the addresses, another one first for each worker."""
        first = worker % len(self.addresses)
        return [*self.addresses[first:], *self.addresses[:first]]

    # Workers

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception:
            self.violation(traceback.format_exc())

    def _work(self, worker: int, seed: int) -> None:
        random = np.random.default_rng([seed, worker])
        number = 0
        with Client(self._seeds(worker), timeout=self._timeouts[worker]) as client:
            while not self._stopping.is_set():
                if batch := self._next_undecided():
                    self.counters["batches sent again while undecided"] += 1
                    self._send(client, batch, batch.undecided())
                elif not self._running.is_set():
                    self._park()
                elif self._known and random.random() < RESEND_SHARE:
                    self._resend(client, self._known[random.integers(len(self._known))])
                else:
                    number += 1
                    # Many small batches, some large ones.
                    count = round(BATCH_EVENTS_MAX ** (random.random() ** 2))
                    batch = self._draw(random, worker, number, count)
                    self._send(client, batch, np.arange(count))
                self._stopping.wait(random.random() * PAUSE_SECONDS_MAX)

    def _draw(self, random: np.random.Generator, worker: int, number: int, count: int) -> Batch:
        rows = draw_rows(random, count, self.ledger.accounts, time.time_ns(), worker)
        batch = Batch(worker, number, rows)
        self.ledger.add(batch)
        return batch

    def _park(self) -> None:
        """Wait for the end of a pause, as somebody who has nothing left to settle."""
        name = threading.get_ident()
        self._parked.add(name)
        while not self._running.is_set() and not self._undecided and not self._stopping.is_set():
            self._running.wait(PAUSE_SECONDS_MAX)
        self._parked.discard(name)

    def _next_undecided(self) -> Batch | None:
        try:
            return self._undecided.popleft()
        except IndexError:
            return None

    def _send(self, client: Client, batch: Batch, rows: NDArray[np.int64]) -> None:
        """Send rows of a batch; note what is settled, queue the batch if something is not."""
        result, began, ended = self._ingest(client, batch, rows)
        settled = np.ones(len(rows), bool)
        for index, status, reason in result.items:
            settled[index] = status == "duplicate"
            if status not in ("duplicate", "unknown"):
                event = batch.event(int(rows[index]))
                self.violation(f"{event.metric} {event.account} {event.id} is {status} {reason}")
        if settled.any():
            self.ledger.acknowledge(batch, rows[settled])
            with self._lock:
                for watch in self._watches:
                    if began >= watch.since:
                        watch.answered = min(watch.answered, ended)
        self._note(result)
        if not settled.all():
            self._undecided.append(batch)
        elif batch.client != PROBE:
            self._remember(batch)

    def _ingest(
        self, client: Client, batch: Batch, rows: NDArray[np.int64]
    ) -> tuple[IngestResult, float, float]:
        """Return what became of the rows, and from when to when the call took."""
        events = batch.events(rows)
        with self._lock:
            self._in_flight += 1
        began = time.monotonic()
        try:
            result = client.ingest(events)
        except IngestUndecided as error:
            result = error.result
        finally:
            ended = time.monotonic()
            with self._lock:
                self._in_flight -= 1
        if result.received != len(events):
            self.violation(f"{len(events)} events were sent, {result.received} received")
        return result, began, ended

    def _note(self, result: IngestResult) -> None:
        with self._lock:
            self.counters["requests"] += 1
            self.counters["answered stored"] += result.stored
            self.counters["answered duplicate"] += result.duplicate
            self.counters["undecided at a deadline"] += result.unknown

    def _remember(self, batch: Batch) -> None:
        with self._lock:
            if len(self._known) < KNOWN_BATCHES_MAX:
                self._known.append(batch)
            else:
                self._known[batch.number % KNOWN_BATCHES_MAX] = batch

    def _resend(self, client: Client, batch: Batch) -> None:
        """Send a batch that is acknowledged: nothing of it may be stored again."""
        result, _, _ = self._ingest(client, batch, np.arange(len(batch.rows)))
        with self._lock:
            self.counters["acknowledged events sent again"] += result.duplicate
        if result.duplicate + result.unknown != result.received:
            self.violation(f"resend of batch {batch.client}.{batch.number}: {result}")

    # The reader

    def _read(self, seed: int) -> None:
        random = np.random.default_rng([seed, PROBE + 1])
        seen = np.zeros(self.ledger.accounts, np.int64)
        with Client(self._seeds(seed), timeout=self._reader_timeout) as client:
            while not self._stopping.is_set():
                if not self._running.is_set():
                    self._park_reader()
                    continue
                # Few accounts most of the time, so that each is asked for again.
                account = int(self.ledger.accounts * random.random() ** 3)
                self._ask(client, account, random.random() < 0.5, seen)
                self._stopping.wait(random.random() * PAUSE_SECONDS_MAX)

    def _park_reader(self) -> None:
        self._parked.add(threading.get_ident())
        self._running.wait()
        self._parked.discard(threading.get_ident())

    def _ask(self, client: Client, account: int, from_files: bool, seen: NDArray[np.int64]) -> None:
        """Ask for a total over all time, from memory or from the log files.

        `seen`: what was counted the last time; it never becomes less.
        """
        now = time.time_ns()
        whole = {"start": now - 2 * 40 * DAY, "end": now + DAY} if from_files else {}
        least = int(self.ledger.acknowledged[account, CALLS])
        try:
            usage = client.usage(account_name(account), METRICS[CALLS].code, **whole)
        except (DeadlineExceeded, Unreachable) as error:
            self.violation(f"no answer to a question within {self._reader_timeout} s: {error}")
            return
        most = int(self.ledger.sent[account, CALLS])
        self.counters["totals read meanwhile"] += 1
        least, seen[account] = max(least, int(seen[account])), usage.count
        if not least <= usage.count <= most:
            self.violation(
                f"{account_name(account)} {whole}: {usage.count} events counted; {least} were "
                f"acknowledged or counted before, {most} sent"
            )
