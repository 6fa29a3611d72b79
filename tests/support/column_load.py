"""Processes that send a cluster batches of columns, as fast as they are told, until they know.

Every batch has one event of each account; so what each account must have follows from which batches
were acknowledged, and millions of events need no ledger.  A batch that is undecided is sent again
with its ids until it is settled: when the writers have ended, all they sent is acknowledged.

The processes are forked before this one talks to anybody, and are told what to do by shared memory.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from meterd.client import Client, IngestUndecided
from meterd.protocol.errors import MeterdError

ACCOUNTS = 1_000  # and events of a batch
METRIC = "calls"
VALUES = 7  # an event's value is the number of its batch, modulo this, and one
WRITERS = 3
CALL_SECONDS = 30.0
IDLE_SECONDS = 0.01
# Of shared memory: of each writer what it has had acknowledged, and the longest call.
BATCHES, SUM, LONGEST_NS, FAILURES = range(4)
FORK = multiprocessing.get_context("fork")


class Counted(NamedTuple):
    """What each account must have."""

    events: int
    total: int


class ColumnLoad:
    """with ColumnLoad(addresses) as load: the writers are there and wait; see `rate`."""

    def __init__(self, addresses: Sequence[str]) -> None:
        shared = np.frombuffer(mmap.mmap(-1, 8 * (2 + WRITERS * 4)), np.int64)
        self._wanted = shared[:2]  # events a second of one writer (-1: all it can); 1: end
        self._counts = shared[2:].reshape(WRITERS, 4)
        arguments = [(number, addresses, self._wanted, self._counts) for number in range(WRITERS)]
        self._processes = [FORK.Process(target=write, args=given) for given in arguments]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def rate(self, events_per_second: float | None) -> None:
        """Send so many events a second, 0 for none, or as many as can be (None)."""
        each = -1 if events_per_second is None else round(events_per_second / WRITERS)
        self._wanted[0] = each

    def end(self) -> None:
        """Settle what is under way, and end all writers."""
        self._wanted[1] = 1
        for process in self._processes:
            process.join()

    @property
    def acknowledged(self) -> int:
        """Return how many events are."""
        return int(self._counts[:, BATCHES].sum()) * ACCOUNTS

    @property
    def counted(self) -> Counted:
        """Return what each account must have when nothing is under way."""
        return Counted(int(self._counts[:, BATCHES].sum()), int(self._counts[:, SUM].sum()))

    @property
    def failures(self) -> int:
        """Return how many calls were undecided at their deadline, or failed."""
        return int(self._counts[:, FAILURES].sum())

    def longest_seconds(self) -> float:
        """Return how long the longest call took since the last time that this was asked."""
        longest = float(self._counts[:, LONGEST_NS].max()) / 1e9
        self._counts[:, LONGEST_NS] = 0
        return longest


def account(number: int) -> str:
    return f"away-{number}"


def write(number: int, addresses: Sequence[str], wanted: np.ndarray, counts: np.ndarray) -> None:
    """Be a writer."""
    os.nice(10)
    accounts = [account(one) for one in range(ACCOUNTS)]
    ids = np.zeros((ACCOUNTS, 4), np.uint32)
    ids[:, 0], ids[:, 1] = number + 1, np.arange(ACCOUNTS)
    seeds = [*addresses[number % len(addresses) :], *addresses[: number % len(addresses)]]
    due = time.monotonic()
    batch = 0
    with Client(seeds, timeout=CALL_SECONDS) as client:
        while not wanted[1]:
            rate, now = int(wanted[0]), time.monotonic()
            if rate == 0 or (rate > 0 and now < due):
                time.sleep(IDLE_SECONDS)
                continue
            due = max(due, now - 1.0) + (ACCOUNTS / rate if rate > 0 else 0.0)
            batch += 1
            ids[:, 2] = batch
            value = batch % VALUES + 1
            while not sent(client, accounts, ids, value, counts[number]):
                counts[number, FAILURES] += 1
            counts[number, SUM] += value
            counts[number, BATCHES] += 1


def sent(
    client: Client, accounts: list[str], ids: np.ndarray, value: int, counts: np.ndarray
) -> bool:
    """Send a batch; return whether all of it is stored now."""
    began = time.monotonic_ns()
    try:
        result = client.ingest_columns(
            account=accounts,
            metric=METRIC,
            value=np.full(ACCOUNTS, value, np.int64),
            id=ids.view(np.uint8).reshape(ACCOUNTS, 16).copy(),
        )
        return result.stored + result.duplicate == ACCOUNTS
    except IngestUndecided:
        return False
    except MeterdError:
        return False
    finally:
        counts[LONGEST_NS] = max(int(counts[LONGEST_NS]), time.monotonic_ns() - began)
