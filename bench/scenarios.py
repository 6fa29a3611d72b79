"""Measures one node in the situations that operators ask about: `python -m bench.scenarios`.

Each function starts a fresh node, brings it into its situation and returns figures; its docstring
says what they mean.  Nothing here compares with other products: see `bench.compare`.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event as Signal
from pathlib import Path
from typing import Any

import numpy as np

from bench.hops import hops_us
from bench.node import NO_CHECKPOINTS, Node, meterd_node, node_directory
from bench.support import directory_size, fdatasync_us, percentiles_us, say, write_result

REPLAY_EVENTS = 10_000_000
DISK_EVENTS = 5_000_000
TOTALS = 1_000_000
IDLE_SECONDS = 120.0
QUERIES = 2_000
QUERY_SECONDS_MAX = 60.0
COLUMNS_COUNT = 100_000  # events handed to the client library at once
STARTS = 5
FORK = multiprocessing.get_context("fork")


def start_up(parent: Path) -> dict[str, Any]:
    """Seconds from starting the process until it says READY: first start, and later ones."""
    with node_directory(parent) as directory:
        seconds = []
        for _ in range(STARTS):
            with meterd_node(directory) as node:
                seconds.append(round(node.ready_seconds, 3))
    return {"first_seconds": seconds[0], "later_seconds": sorted(seconds[1:])}


def replay(parent: Path) -> dict[str, Any]:
    """Start of a node that was killed with 10 million events in its log and no checkpoint."""
    with node_directory(parent) as directory:
        with meterd_node(directory, NO_CHECKPOINTS) as node:
            empty = node.ready_seconds
            fill(node, REPLAY_EVENTS, accounts=100_000)
            node.kill()
        with meterd_node(directory, NO_CHECKPOINTS) as node:
            ready = node.ready_seconds
            stored = total_count(node)
    if stored != REPLAY_EVENTS:
        raise RuntimeError(f"{stored} events after the replay, not {REPLAY_EVENTS}")
    return {
        "events": REPLAY_EVENTS,
        "ready_seconds": round(ready, 2),
        "events_per_second": round(REPLAY_EVENTS / (ready - empty)),
    }


def queries_under_load(parent: Path) -> dict[str, Any]:
    """Latency of questions, as a client sees it, while events come at half the top speed."""
    with node_directory(parent) as directory, meterd_node(directory) as node:
        top = node.bench(batch=500, seconds=5, warm_up=2)["events_per_second"]
        stop, stored = FORK.Event(), FORK.Value("q")
        sender = FORK.Process(target=send_at, args=(node.address, top / 2, stop, stored))
        sender.start()
        begin = time.monotonic()
        try:
            now = time.time_ns()
            figures = {
                "current_period": ask(node, {"period": "current"}),
                "last_minute": ask(node, {"start": now - 60 * 10**9, "end": now}),
            }
        finally:
            stop.set()
            sender.join()
        rate = round(stored.value / (time.monotonic() - begin))
    return {"top_events_per_second": top, "stored_events_per_second": rate, "latency_us": figures}


def memory(parent: Path) -> dict[str, Any]:
    """Memory of an event's id, and of a total: events on one total, then on totals of their own.

    The first events only fill the buffers that any load fills.
    """
    with node_directory(parent) as directory, meterd_node(directory) as node:
        empty = node.pss_bytes()
        fill(node, TOTALS, accounts=1)
        loaded = node.pss_bytes()
        fill(node, 4 * TOTALS, accounts=1)
        one_total = node.pss_bytes()
        fill(node, TOTALS, accounts=TOTALS, in_turn=True)
        all_totals = node.pss_bytes()
    per_id = (one_total - loaded) / (4 * TOTALS)
    return {
        "empty_bytes": empty,
        "loaded_bytes": loaded,
        "bytes_per_event_id": round(per_id, 1),
        "bytes_per_total": round((all_totals - one_total) / TOTALS - per_id, 1),
    }


def disk(parent: Path) -> dict[str, Any]:
    """Bytes of the data directory for each event, after a clean stop."""
    with node_directory(parent) as directory:
        with meterd_node(directory) as node:
            fill(node, DISK_EVENTS, accounts=100_000)
        size = directory_size(directory / "data")
    return {"events": DISK_EVENTS, "bytes_per_event": round(size / DISK_EVENTS, 1)}


def single_events(parent: Path) -> dict[str, Any]:
    """One event a request: one at a time beside a raw fdatasync and an empty way; 256 at once."""
    with node_directory(parent) as directory, meterd_node(directory) as node:
        before, hops = fdatasync_us(directory), hops_us()
        alone = node.bench(batch=1, in_flight=1, seconds=10)
        many = node.bench(batch=1, in_flight=256, seconds=10)
        after = fdatasync_us(directory)
    disk = {"fdatasync_us": [before, after], "empty_way_us": hops}
    return {**disk, "one_at_a_time": alone, "in_flight_256": many}


def slices(parent: Path) -> dict[str, Any]:
    """2, 20 and 200 events for each partition a request touches, and one account taking all."""
    shapes = {
        "2": {"batch": 512},
        "20": {"batch": 5120},
        "200": {"batch": 10_000, "accounts": 50},
        "one_account": {"batch": 5120, "accounts": 1},
    }
    figures = {}
    for name, shape in shapes.items():
        with node_directory(parent) as directory, meterd_node(directory) as node:
            found = node.bench(**shape, seconds=10, warm_up=2)
            size = directory_size(directory / "data")
        figures[name] = {**found, "disk_bytes_per_event": round(size / found["stored"], 1)}
    return figures


def idle(parent: Path) -> dict[str, Any]:
    """Share of one core, and memory, of a node that nobody talks to."""
    with node_directory(parent) as directory, meterd_node(directory) as node:
        used = node.cpu_seconds()
        begin = time.monotonic()
        time.sleep(IDLE_SECONDS)
        share = (node.cpu_seconds() - used) / (time.monotonic() - begin)
        return {
            "seconds": IDLE_SECONDS,
            "cpu_percent": round(100 * share, 2),
            "pss_bytes": node.pss_bytes(),
            "processes": len(node.pids()),
        }


def fill(node: Node, count: int, accounts: int, in_turn: bool = False) -> None:
    """Send so many events as columns; accounts at random, or each in turn."""
    from meterd.client import Client

    random = np.random.default_rng(1)
    names = np.array([f"filled-{number:09d}" for number in range(accounts)])
    with Client([node.address], timeout=120) as client:
        client.put_metric("filled", aggregation="sum", decimals=0)
        for first in range(0, count, COLUMNS_COUNT):
            rows = np.arange(first, min(first + COLUMNS_COUNT, count))
            chosen = rows % accounts if in_turn else random.integers(0, accounts, len(rows))
            found = client.ingest_columns(account=names[chosen], metric="filled", value=rows % 100)
            if found.stored != len(rows):
                raise RuntimeError(f"not all of {len(rows)} events were stored: {found}")


def total_count(node: Node) -> int:
    from meterd.client import Client

    with Client([node.address], timeout=120) as client:
        return sum(row.count for row in client.accounts("filled", period="current"))


def send_at(address: str, rate: float, stop: Signal, stored: Any) -> None:
    """Send requests of 500 events at an even rate until told to stop; count what was stored."""
    import msgpack
    import zmq

    from meterd.commands.bench_client import Body, Load, Random

    load = Load((address,), 500, 1, 0, "sync", 10_000, 5, 1, rate=0.0, timeout=30.0)
    random = np.random.default_rng()
    bodies, ids = [Body(load, random) for _ in range(50)], Random(random)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"tcp://{address}")
        due, number = time.monotonic(), 0
        while not stop.is_set():
            body = bodies[number % len(bodies)]
            body.refresh(ids)
            header = {"v": 1, "id": number, "kind": "ingest", "deadline": 30_000}
            socket.send_multipart([msgpack.packb(header), body.bytes])
            due, number = due + load.batch / rate, number + 1
            while socket.poll(int(max(0.0, due - time.monotonic()) * 1000)):
                stored.value += msgpack.unpackb(socket.recv_multipart()[1])["stored"]


def ask(node: Node, question: dict[str, Any]) -> dict[str, float]:
    """Ask for one account after the other; how long the answers took."""
    from meterd.client import Client

    random, taken = np.random.default_rng(3), []
    deadline = time.monotonic() + QUERY_SECONDS_MAX
    with Client([node.address]) as client:
        for number in random.integers(0, 10_000, QUERIES).tolist():
            begin = time.perf_counter_ns()
            client.usage(f"bench-{number:09d}", "bench_0", **question)
            taken.append(time.perf_counter_ns() - begin)
            if time.monotonic() > deadline:
                break
    return {"questions": len(taken), **percentiles_us(taken)}


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (
    start_up,
    single_events,
    slices,
    queries_under_load,
    replay,
    disk,
    memory,
    idle,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [scenario.__name__ for scenario in SCENARIOS]
    parser.add_argument("--only", choices=names, action="append")
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    options = parser.parse_args()
    figures = {}
    for scenario in SCENARIOS:
        if scenario.__name__ in (options.only or names):
            disk_price = fdatasync_us(options.directory)
            found = scenario(options.directory)
            figures[scenario.__name__] = {"fdatasync_us": disk_price, **found}
            say(f"{scenario.__name__}: {found}")
    say(f"wrote {write_result('scenarios', {'results': figures})}")


if __name__ == "__main__":
    main()
