"""python -m tests.sim.core: seeds of the second layer.  See docs/REPLICATION.md, "Simulation"."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from tests.sim.core_world import FAULTS_OF_CORE, run_core
from tests.sim.runner import Result, shrink

OPERATIONS_SHOWN = (
    "write",
    "lease read",
    "round read",
    "metric",
    "expire",
    "election",
    "transfer",
    "membership",
    "checkpoint",
)
TRACE_LINES = 200
# How often a seed is run twice, to see that nothing but the seed decides.
TWICE = 50
# Of these the medians over seeds are said.
MEDIANS = ("crash", "leader change", "events", "checkpoint", "read from disk")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.core", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed, with the end of its trace")
    parser.add_argument("--shrink", action="store_true", help="leave out faults that do not matter")
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--start", type=int, default=1, help="the first one")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="add the tally to this file (JSON)")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return run_one(arguments.seed, arguments.shrink)
    return run_many(arguments)


def run_one(seed: int, shrinks: bool) -> int:
    result = shrink(seed, run=run_core) if shrinks else run_core(seed, trace=True)
    print("\n".join(line[:300] for line in result.trace[-TRACE_LINES:]))
    print(result.acts)
    print(dict(result.counts))
    print(result.failure or "no rule broken", f"({result.steps} steps)")
    return 1 if result.failure else 0


def run_many(arguments: argparse.Namespace) -> int:
    tally = Tally()
    began = time.monotonic()
    for result in results(arguments):
        tally.take(result)
        tally.seconds = time.monotonic() - began
        if result.failure:
            seed = result.seed
            print(f"seed {seed}: {result.failure}\n  python -m tests.sim.core --seed {seed}")
            sys.stdout.flush()
        if arguments.seconds and tally.seconds > arguments.seconds:
            break
    print(tally.text())
    if arguments.keep:
        tally.keep(arguments.keep)
    return 1 if tally.failures else 0


def results(arguments: argparse.Namespace) -> Iterator[Result]:
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    if arguments.processes == 1:
        yield from map(run_checked, seeds)
        return
    with Pool(arguments.processes) as pool:
        yield from pool.imap_unordered(run_checked, seeds)


def run_checked(seed: int) -> Result:
    result = run_core(seed)
    if seed % TWICE == 0:
        again = run_core(seed)
        if (again.steps, again.counts) != (result.steps, result.counts):
            result.failure = result.failure or "the same seed did something else"
    return result


class Tally:
    """Sums over seeds."""

    def __init__(self) -> None:
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
            for name in MEDIANS
        }

    def text(self) -> str:
        healed = sorted(self.healed_ms) or [0]
        lines = [
            f"{len(self.each)} seeds, {len(self.failures)} failed {sorted(self.failures)[:20]}; "
            f"{self.steps} steps in {self.seconds:.0f} s "
            f"({60 * len(self.each) / max(self.seconds, 0.001):.0f} seeds/min)",
            f"well again after ms: median {healed[len(healed) // 2]}, worst {healed[-1]}",
            f"medians of a seed: {self.medians()}",
            str(dict(sorted(self.counts.items()))),
            "fault".ljust(12) + "".join(name.rjust(11) for name in OPERATIONS_SHOWN),
        ]
        for kind in FAULTS_OF_CORE:
            cells = [str(self.coverage[kind, operation]) for operation in OPERATIONS_SHOWN]
            lines.append(kind.ljust(12) + "".join(cell.rjust(11) for cell in cells))
        return "\n".join(lines)

    def keep(self, path: Path) -> None:
        """Add to a tally file."""
        old: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": []}
        head = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
        old["runs"].append(
            {
                "command": "python -m tests.sim.core " + " ".join(sys.argv[1:]),
                "commit": commit,
                "seeds": len(self.each),
                "steps": self.steps,
                "seconds": round(self.seconds),
                "failed": {str(seed): text[:400] for seed, text in sorted(self.failures.items())},
                "medians": self.medians(),
                "counts": dict(sorted(self.counts.items())),
                "coverage": {
                    kind: {name: self.coverage[kind, name] for name in OPERATIONS_SHOWN}
                    for kind in FAULTS_OF_CORE
                },
            }
        )
        path.write_text(json.dumps(old, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
