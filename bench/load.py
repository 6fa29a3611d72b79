"""Drives any server with the same requests from several processes, and counts for itself.

A request is a *body*: arrays of accounts, metrics and values made once, sent again and again with
fresh ids and timestamps, so the clients take little of the processor that they share with the
server.  What each account must have afterwards follows from how often each body was answered; that
is reckoned here with numpy, without asking anybody, and `Measurement.sums` is held against what the
server says.

A `Peer` knows how to talk to one kind of server.  Each of its slots has at most one request under
way; requests of different slots may be made durable together.  Rates and latencies are those of
requests answered in the measured time, sums those of the whole run.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.support import percentiles_us

BODY_ROWS = 100_000  # rows of all the bodies of a client, a bound on its memory
BODIES_MIN, BODIES_MAX = 8, 4096
VALUE_MIN, VALUE_MAX = 100, 999  # always three digits, so that text has a fixed width
ACCOUNT_SIZE = 15
ANSWER_SECONDS_MAX = 120.0
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Shape:
    """What is sent, and for how long; the defaults are those of `meterctl bench`."""

    batch: int = 500
    accounts: int = 10_000
    metrics: int = 5
    warm_up: float = 10.0
    seconds: float = 20.0


@dataclass
class Body:
    """The rows of a request; `pair` is account * metrics + metric."""

    account: NDArray[np.int64]
    metric: NDArray[np.int64]
    value: NDArray[np.int64]
    pair: NDArray[np.int64]

    def names(self) -> NDArray[np.bytes_]:
        return np.array([account_name(number) for number in self.account.tolist()])


class Peer(Protocol):
    """A client of one kind of server, used by one process."""

    slots: int

    def connect(self, bodies: list[Body]) -> None: ...

    def send(self, slot: int, body: int, random: np.random.Generator) -> None: ...

    def wait(self) -> list[int]:
        """Wait for at least one answer; the slots whose request is durable."""
        ...

    def resend(self, slot: int) -> int:
        """Send the slot's last request again, ids and all; how many events were stored."""
        ...


@dataclass
class Measurement:
    """What one process, or all of them, measured."""

    events: int = 0  # in the measured time
    requests: int = 0
    seconds: float = 0.0
    sent: int = 0  # events of the whole run
    sums: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    latency: list[int] = field(default_factory=list)
    client_seconds: float = 0.0  # processor time
    resent_stored: int = 0  # must be 0

    def document(self) -> dict[str, Any]:
        return {
            "events_per_second": round(self.events / self.seconds),
            "requests_per_second": round(self.requests / self.seconds),
            "latency_us": percentiles_us(self.latency),
            "client_cores": round(self.client_seconds / self.seconds, 2),
            "events": self.sent,
        }


def account_name(number: int) -> bytes:
    return b"bench-%09d" % number


def make_bodies(shape: Shape, random: np.random.Generator) -> list[Body]:
    bodies = []
    for _ in range(min(BODIES_MAX, max(BODIES_MIN, BODY_ROWS // shape.batch))):
        account = random.integers(0, shape.accounts, shape.batch)
        metric = random.integers(0, shape.metrics, shape.batch)
        value = random.integers(VALUE_MIN, VALUE_MAX + 1, shape.batch)
        bodies.append(Body(account, metric, value, account * shape.metrics + metric))
    return bodies


def run_clients(make: Callable[[], Peer], shape: Shape, processes: int) -> Measurement:
    """Run client processes against a server that is up; their measurements together."""
    barrier = FORK.Barrier(processes)
    seeds = np.random.SeedSequence().spawn(processes)
    running = []
    for seed in seeds:
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=client_process, args=(make, shape, seed, barrier, theirs))
        process.start()
        theirs.close()
        running.append((process, ours))
    patience = shape.warm_up + shape.seconds + ANSWER_SECONDS_MAX
    total = Measurement(seconds=shape.seconds, sums=np.zeros(shape.accounts * shape.metrics, int))
    for process, pipe in running:
        if not pipe.poll(patience):
            process.kill()
            raise TimeoutError("a client process does not end")
        merge(total, pipe.recv())
        process.join()
    return total


def merge(total: Measurement, part: Measurement) -> None:
    total.sums += part.sums
    total.latency += part.latency
    for name in ("events", "requests", "sent", "client_seconds", "resent_stored"):
        setattr(total, name, getattr(total, name) + getattr(part, name))


def client_process(
    make: Callable[[], Peer],
    shape: Shape,
    seed: np.random.SeedSequence,
    barrier: Barrier,
    pipe: Connection,
) -> None:
    random = np.random.Generator(np.random.SFC64(seed))
    bodies = make_bodies(shape, random)
    peer = make()
    peer.connect(bodies)
    barrier.wait(ANSWER_SECONDS_MAX)
    measured = client_run(peer, shape, bodies, random)
    measured.resent_stored = sum(peer.resend(slot) for slot in range(peer.slots))
    pipe.send(measured)
    pipe.close()


def client_run(
    peer: Peer, shape: Shape, bodies: list[Body], random: np.random.Generator
) -> Measurement:
    clock = time.perf_counter_ns
    start = clock() + int(shape.warm_up * 1e9)
    end = start + int(shape.seconds * 1e9)
    answered = [0] * len(bodies)
    under_way: dict[int, tuple[int, int]] = {}
    measured = Measurement(sums=np.zeros(shape.accounts * shape.metrics, np.int64))
    body = 0
    free = list(range(peer.slots))
    processor = 0.0
    while free or under_way:
        now = clock()
        for slot in free if now < end else []:
            under_way[slot] = (clock(), body)
            peer.send(slot, body, random)
            body = (body + 1) % len(bodies)
        if not under_way:
            break
        free = peer.wait()
        now = clock()
        if now < start:
            processor = processor_seconds()
        elif now < end:
            measured.client_seconds = processor_seconds() - processor
        for slot in free:
            sent_at, number = under_way.pop(slot)
            answered[number] += 1
            if start <= now < end:
                measured.requests += 1
                measured.latency.append(now - sent_at)
    measured.events = measured.requests * shape.batch
    for one, times in zip(bodies, answered, strict=True):
        np.add.at(measured.sums, one.pair, one.value * times)
    measured.sent = sum(answered) * shape.batch
    return measured


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
