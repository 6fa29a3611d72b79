"""Measures meterd, PostgreSQL and Redis side by side: `python -m bench.compare`.

Disks and neighbours of a shared machine change by the hour, so the three take turns, several
rounds, each on a fresh server; the raw fdatasync of the same directory is measured with every turn.
The peers run in whichever way was fastest in a short trial just before.  Reported are all runs,
their medians, and how many times faster meterd's median is.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from bench.load import Shape
from bench.node import Node, meterd_node, node_directory
from bench.peers import BATCHES, best
from bench.support import directory_size, fdatasync_us, say, write_result

ROUNDS = 3
RESENT_COUNT = 500
PEERS = ("postgresql", "redis")


def run_meterd(shape: Shape, parent: Path) -> dict[str, Any]:
    """Measure a fresh node; its totals are verified by account, its dedup by a resend."""
    with node_directory(parent) as directory, meterd_node(directory) as node:
        found = node.bench(
            batch=shape.batch,
            accounts=shape.accounts,
            metrics=shape.metrics,
            warm_up=shape.warm_up,
            seconds=shape.seconds,
        )
        verified = counted(node, shape) == found["stored"] and dedup_holds(node)
        size = directory_size(directory / "data")
    say(f"meterd     batch {shape.batch:>5} {found['events_per_second']:>9,} events/s")
    return {
        "peer": "meterd",
        **found,
        "verified": verified,
        "disk_bytes_per_event": round(size / found["stored"], 1),
    }


def counted(node: Node, shape: Shape) -> int:
    """The number of events that the totals of all accounts hold, asked for page by page."""
    from meterd.client import Client

    with Client([node.address]) as client:
        return sum(
            row.count
            for metric in range(shape.metrics)
            for row in client.accounts(f"bench_{metric}", period="current")
        )


def dedup_holds(node: Node) -> bool:
    """Whether events that are sent twice are stored once."""
    from meterd.client import Client, Event

    with Client([node.address]) as client:
        events = [Event(f"resent-{number}", "bench_0") for number in range(RESENT_COUNT)]
        first, second = client.ingest(events), client.ingest(events)
    return (first.stored, second.duplicate) == (RESENT_COUNT, RESENT_COUNT)


def compare(shape: Shape, rounds: int, parent: Path) -> dict[str, Any]:
    """Rounds of all three; raises where totals are not what was sent."""
    found = {peer: best(peer, shape, parent) for peer in PEERS}
    runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in ("meterd", *PEERS)}
    for _ in range(rounds):
        for peer, done in runs.items():
            disk = fdatasync_us(parent)
            if peer == "meterd":
                one = run_meterd(shape, parent)
            else:
                one = found[peer][0].measure(shape, parent)
            if not one["verified"]:
                raise RuntimeError(f"totals are not what was sent: {one}")
            done.append({"fdatasync_us": disk, **one})
    medians = {
        peer: statistics.median(one["events_per_second"] for one in done)
        for peer, done in runs.items()
    }
    ratios = {peer: round(medians["meterd"] / medians[peer], 1) for peer in PEERS}
    say(f"batch {shape.batch}: medians {medians}, meterd is faster by {ratios}")
    document: dict[str, Any] = {"batch": shape.batch, "medians": medians, "ratios": ratios}
    return {**document, "runs": runs, "tried": {peer: found[peer][1] for peer in PEERS}}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--warm-up", type=float, default=Shape.warm_up)
    parser.add_argument("--seconds", type=float, default=Shape.seconds)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    results: list[dict[str, Any]] = []
    for batch in options.batch or BATCHES:
        shape = Shape(batch=batch, warm_up=options.warm_up, seconds=options.seconds)
        results.append(compare(shape, options.rounds, options.directory))
    say(f"wrote {write_result('compare', {'results': results})}")


if __name__ == "__main__":
    main()
