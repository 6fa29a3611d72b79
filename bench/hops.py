"""Measures what an event's way costs when nothing is done on it: an empty message, as many hops.

A durable event goes client → router → ingest → replication → wal_writer → usage → router → client.
Here as many processes as it visits actors pass a small message on, over the same kind of socket,
and do nothing else: so much of a request's latency is waking processes up.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import zmq

from bench.support import percentiles_us

RELAYS = 6
MESSAGES = 3_000
WARM_UP = 300
SIZE = 64
POLL_MS = 200
FORK = multiprocessing.get_context("fork")


def hops_us() -> dict[str, float]:
    """Median and 99th percentile of the whole way, and the number of its hops."""
    with tempfile.TemporaryDirectory(prefix="hops-") as directory:
        relays = [
            FORK.Process(target=relay, args=(directory, number), daemon=True)
            for number in range(RELAYS)
        ]
        for process in relays:
            process.start()
        taken = send_and_receive(directory)
        for process in relays:
            process.terminate()
            process.join()
    return {"hops": RELAYS + 1, **percentiles_us(taken)}


def address(directory: str, number: int) -> str:
    return f"ipc://{Path(directory, str(number))}"


def relay(directory: str, number: int) -> None:
    """Pass on what comes, until the process that began it all has gone."""
    parent = os.getppid()
    with zmq.Context() as context, context.socket(zmq.PULL) as inbox:
        inbox.bind(address(directory, number))
        with context.socket(zmq.PUSH) as outbox:
            outbox.connect(address(directory, number + 1))
            while os.getppid() == parent:
                if inbox.poll(POLL_MS):
                    outbox.send(inbox.recv())


def send_and_receive(directory: str) -> list[int]:
    """One message after the other; how long each took, in nanoseconds."""
    taken = []
    with zmq.Context() as context, context.socket(zmq.PULL) as inbox:
        inbox.bind(address(directory, RELAYS))
        with context.socket(zmq.PUSH) as outbox:
            outbox.connect(address(directory, 0))
            for _ in range(WARM_UP + MESSAGES):
                begin = time.perf_counter_ns()
                outbox.send(bytes(SIZE))
                inbox.recv()
                taken.append(time.perf_counter_ns() - begin)
    return taken[WARM_UP:]
