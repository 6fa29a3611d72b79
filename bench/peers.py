"""Measures PostgreSQL and Redis at meterd's job: `python -m bench.peers`.

For each batch size every candidate (way of handing rows over, number of connections) is tried
briefly on a fresh server; the fastest is then measured at length, and only that is reported as the
peer's figure.  A peer that is not verified afterwards has no figure.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.load import Shape
from bench.postgres import run_postgres
from bench.redis_peer import run_redis
from bench.support import fdatasync_us, say, write_result

BATCHES = (500, 5000, 1)
SCAN_WARM_UP, SCAN_SECONDS = 2.0, 5.0
Run = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Candidate:
    """One way of running a peer."""

    run: Run
    method: str
    connections: int

    def measure(self, shape: Shape, parent: Path) -> dict[str, Any]:
        found = self.run(shape, self.connections, self.method, parent)
        if not found["verified"]:
            raise RuntimeError(f"totals are not what was sent: {found}")
        say(
            f"{found['peer']:<10} {found['method']:<7} batch {shape.batch:>5}"
            f" {found['connections']:>3} connections {found['events_per_second']:>9,} events/s"
        )
        return found


def candidates(peer: str, batch: int) -> list[Candidate]:
    """What is worth trying: few connections for large requests, many for single events."""
    if peer == "postgresql":
        if batch == 1:
            return [Candidate(run_postgres, "arrays", count) for count in (8, 32, 64)]
        arrays = [Candidate(run_postgres, "arrays", count) for count in (1, 2, 4, 8)]
        return arrays + [Candidate(run_postgres, "copy", count) for count in (2, 4, 8)]
    if batch == 1:
        return [Candidate(run_redis, "keys", count) for count in (32, 128, 256)]
    keys = [Candidate(run_redis, "keys", count) for count in (2, 4, 8, 16)]
    return [*keys, Candidate(run_redis, "hashes", 4), Candidate(run_redis, "hashes", 8)]


def best(peer: str, shape: Shape, parent: Path) -> tuple[Candidate, list[dict[str, Any]]]:
    """The fastest candidate for a shape, and what all of them came to in a short run."""
    short = replace(shape, warm_up=SCAN_WARM_UP, seconds=SCAN_SECONDS)
    tried = candidates(peer, shape.batch)
    found = [candidate.measure(short, parent) for candidate in tried]
    rates = [one["events_per_second"] for one in found]
    return tried[rates.index(max(rates))], found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", choices=("postgresql", "redis"), action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--warm-up", type=float, default=Shape.warm_up)
    parser.add_argument("--seconds", type=float, default=Shape.seconds)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    document: dict[str, Any] = {"fdatasync_us": fdatasync_us(options.directory), "results": []}
    for batch in options.batch or BATCHES:
        shape = Shape(batch=batch, warm_up=options.warm_up, seconds=options.seconds)
        for peer in options.peer or ("postgresql", "redis"):
            candidate, tried = best(peer, shape, options.directory)
            found = candidate.measure(shape, options.directory)
            document["results"].append({**found, "tried": tried})
    say(f"wrote {write_result('peers', document)}")


if __name__ == "__main__":
    main()
