"""Says where the microseconds of one durable event go: `python -m bench.where [--requests N]`.

One event at a time; the actors of the node note when they wake and when they hand on
(`traced_meterd.py`).  For each leg of the way: how long it took from the moment the one before
handed on until the actor was awake (*hop*), and from then on until it handed on (*work*); medians.
"""

import time
from bisect import bisect_left, bisect_right
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import msgpack
import numpy as np
import zmq

from bench.node import Node, meterd_node, node_directory
from bench.support import CHECKOUT, fdatasync_us, percentiles_us, say, write_result

# Who is on the way, and what it does last there.
LEGS = (
    ("router", "to ingest"),
    ("ingest", "to replication"),
    ("replication", "to wal_writer"),
    ("wal_writer", "to usage"),
    ("usage", "to router"),
    ("router", "to client"),
)
WARM_UP = 500
# Notes are written down by the beats of the actors, one a second.
NOTED_SECONDS = 3.0

Moments = dict[tuple[str, str], list[int]]


def requests(node: Node, count: int) -> list[tuple[int, int]]:
    """Send so many events, one at a time; return when each was sent and answered."""
    from meterd.commands.bench_client import Body, Load, Random

    node.bench(batch=1, in_flight=1, seconds=1, warm_up=0)  # makes the metrics
    load = Load((node.address,), 1, 1, 0, "sync", 10_000, 5, 1, rate=0.0, timeout=30.0)
    random, taken = np.random.default_rng(), []
    body, ids = Body(load, random), Random(random)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"tcp://{node.address}")
        for number in range(WARM_UP + count):
            body.refresh(ids)
            header = {"v": 1, "id": number, "kind": "ingest", "deadline": 30_000}
            frames = [msgpack.packb(header), body.bytes]
            begin = time.monotonic_ns()
            socket.send_multipart(frames)
            answer = msgpack.unpackb(socket.recv_multipart()[1])
            taken.append((begin, time.monotonic_ns()))
            if answer["stored"] != 1:
                raise RuntimeError(f"an event was not stored: {answer}")
    return taken[WARM_UP:]


def moments_of(directory: Path) -> Moments:
    """Return when each actor did what, rising."""
    found: Moments = {}
    for path in directory.iterdir():
        for line in path.read_text().splitlines():
            what, moment = line.split("\t")
            found.setdefault((path.name, what), []).append(int(moment))
    return found


def legs_of(moments: Moments, sent: int, answered: int) -> list[tuple[int, int]] | None:
    """Return (hop, work) in ns of each leg, (hop, 0) of the way back; None: not all was noted."""
    legs, before = [], sent
    for actor, does in LEGS:
        done, wakes = moments[actor, does], moments[actor, "wakes"]
        at = bisect_left(done, before)
        if at == len(done) or done[at] > answered:
            return None
        last = bisect_right(wakes, done[at]) - 1
        awake = max(before, wakes[last] if last >= 0 else before)
        legs.append((awake - before, done[at] - awake))
        before = done[at]
    return [*legs, (answered - before, 0)]


def disk_ns(moments: Moments, sent: int, answered: int) -> int:
    """Return how long the log was written in that time."""
    begins, ends = moments["wal_writer", "disk begins"], moments["wal_writer", "disk ends"]
    at = bisect_left(begins, sent)
    return ends[at] - begins[at] if at < len(ends) and ends[at] <= answered else 0


def table(moments: Moments, taken: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return the medians of each leg, in µs."""
    ways = [way for one in taken if (way := legs_of(moments, *one)) is not None]
    if len(ways) < len(taken) // 2:
        raise RuntimeError(f"only {len(ways)} of {len(taken)} requests were noted whole")
    rows = []
    for place, actor in enumerate([*(actor for actor, _ in LEGS), "client"]):
        hop, work = (median(way[place][k] for way in ways) / 1000 for k in (0, 1))
        rows.append({"actor": actor, "hop_us": round(hop, 1), "work_us": round(work, 1)})
    return rows


@click.command()
@click.option("--requests", "count", default=3_000, show_default=True)
def main(count: int) -> None:
    """Say where the time of one durable event goes."""
    program = CHECKOUT / "bench" / "traced_meterd.py"
    with TemporaryDirectory(prefix="where-") as traces, node_directory(Path("/tmp")) as directory:
        settings = {"TRACE_DIR": traces, "PYTHONPATH": str(CHECKOUT)}
        with meterd_node(directory, settings, program) as node:
            disk = fdatasync_us(directory)
            taken = requests(node, count)
            time.sleep(NOTED_SECONDS)
        moments = moments_of(Path(traces))
    document = {
        "requests": count,
        "fdatasync_us": disk,
        "request_us": percentiles_us([answered - sent for sent, answered in taken]),
        "disk_us": round(median(disk_ns(moments, *one) for one in taken) / 1000, 1),
        "legs": table(moments, taken),
    }
    for row in document["legs"]:
        say(f"{row['actor']:12} hop {row['hop_us']:7.1f} µs   work {row['work_us']:7.1f} µs")
    say(f"disk {document['disk_us']} µs of the work of wal_writer; {document['request_us']}")
    print(write_result("where", document))


if __name__ == "__main__":
    main()
