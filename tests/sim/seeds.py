"""Runs many seeds of a layer of the simulator, or one with a trace; keeps the tally."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

from tests.sim.runner import Result, shrink

TRACE_LINES = 200
LINE_WIDTH = 300
FAILURE_SIZE = 400


class Layer(NamedTuple):
    """What is run, and what is told of it."""

    program: str  # the module
    run: Callable[..., Result]  # of a seed; takes `trace` and `dropped`
    seeds: int  # by default
    twice: int  # every so many seeds are run twice: nothing but the seed may decide
    faults: Sequence[str]
    operations: Sequence[str]
    medians: Sequence[str]  # counts of which the medians over seeds are said


def parser(layer: Layer) -> argparse.ArgumentParser:
    """Return the flags that all layers have."""
    made = argparse.ArgumentParser(prog=f"python -m {layer.program}")
    made.add_argument("--seed", type=int, help="one seed, with the end of its trace")
    made.add_argument("--shrink", action="store_true", help="leave out faults that do not matter")
    made.add_argument("--seeds", type=int, default=layer.seeds, help="how many")
    made.add_argument("--start", type=int, default=1, help="the first one")
    made.add_argument("--seconds", type=float, default=0, help="stop after so long")
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--keep", type=Path, help="add the tally to this file (JSON)")
    return made


def main(layer: Layer, arguments: argparse.Namespace) -> int:
    """Do what the flags say; return 1 when a rule was broken."""
    if arguments.seed is not None:
        return run_one(layer, arguments.seed, arguments.shrink)
    return run_many(layer, arguments)


def run_one(layer: Layer, seed: int, shrinks: bool) -> int:
    result = shrink(seed, run=layer.run) if shrinks else layer.run(seed, trace=True)
    print("\n".join(line[:LINE_WIDTH] for line in result.trace[-TRACE_LINES:]))
    print(result.acts)
    print(dict(result.counts))
    print(result.failure or "no rule broken", f"({result.steps} steps)")
    return 1 if result.failure else 0


def run_many(layer: Layer, arguments: argparse.Namespace) -> int:
    tally = Tally(layer)
    began = time.monotonic()
    for result in _results(layer, arguments):
        tally.take(result)
        tally.seconds = time.monotonic() - began
        if result.failure:
            print(f"seed {result.seed}: {result.failure}")
            print(f"  python -m {layer.program} --seed {result.seed}", flush=True)
        if arguments.seconds and tally.seconds > arguments.seconds:
            break
    print(tally.text())
    if arguments.keep:
        tally.keep(arguments.keep)
    return 1 if tally.failures else 0


def _results(layer: Layer, arguments: argparse.Namespace) -> Iterator[Result]:
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    run = partial(run_checked, layer.run, layer.twice)
    if arguments.processes == 1:
        yield from map(run, seeds)
        return
    with Pool(arguments.processes) as pool:
        yield from pool.imap_unordered(run, seeds)


def run_checked(run: Callable[..., Result], twice: int, seed: int) -> Result:
    """Run a seed, some of them twice."""
    result = run(seed)
    if seed % twice == 0:
        again = run(seed)
        if (again.steps, again.counts) != (result.steps, result.counts):
            result.failure = result.failure or "the same seed did something else"
    return result


class Tally:
    """Sums over seeds."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self.steps = 0
        self.seconds = 0.0
        self.failures: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self.coverage: Counter[tuple[str, str]] = Counter()
        self.each: list[Counter[str]] = []
        self.healed_ms: list[int] = []

    def take(self, result: Result) -> None:
        self.steps += result.steps
        self.counts += result.counts
        self.coverage += result.coverage
        self.each.append(result.counts)
        if result.failure:
            self.failures[result.seed] = result.failure
        else:
            self.healed_ms.append(result.healed_us // 1000)

    def medians(self) -> dict[str, int]:
        return {
            name: sorted(counts[name] for counts in self.each)[len(self.each) // 2]
            for name in self._layer.medians
        }

    def text(self) -> str:
        healed, layer = sorted(self.healed_ms) or [0], self._layer
        lines = [
            f"{len(self.each)} seeds, {len(self.failures)} failed {sorted(self.failures)[:20]}; "
            f"{self.steps} steps in {self.seconds:.0f} s "
            f"({60 * len(self.each) / max(self.seconds, 0.001):.0f} seeds/min)",
            f"well again after ms: median {healed[len(healed) // 2]}, worst {healed[-1]}",
            f"medians of a seed: {self.medians()}",
            str(dict(sorted(self.counts.items()))),
            "fault".ljust(12) + "".join(name.rjust(11) for name in layer.operations),
        ]
        for kind in layer.faults:
            cells = [str(self.coverage[kind, operation]) for operation in layer.operations]
            lines.append(kind.ljust(12) + "".join(cell.rjust(11) for cell in cells))
        return "\n".join(lines)

    def keep(self, path: Path) -> None:
        """Add to a tally file."""
        layer = self._layer
        old: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": []}
        head = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
        failed = sorted(self.failures.items())
        old["runs"].append(
            {
                "command": f"python -m {layer.program} " + " ".join(sys.argv[1:]),
                "commit": commit,
                "seeds": len(self.each),
                "steps": self.steps,
                "seconds": round(self.seconds),
                "failed": {str(seed): text[:FAILURE_SIZE] for seed, text in failed},
                "medians": self.medians(),
                "counts": dict(sorted(self.counts.items())),
                "coverage": {
                    kind: {name: self.coverage[kind, name] for name in layer.operations}
                    for kind in layer.faults
                },
            }
        )
        path.write_text(json.dumps(old, indent=1) + "\n")
