"""python -m tests.sim: many seeds, or one with a trace.  See docs/REPLICATION.md, "Simulation"."""

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

from tests.sim.plan import FAULTS
from tests.sim.runner import Result, run_fast, run_seed, shrink

OPERATIONS_SHOWN = (
    "write",
    "lease read",
    "round read",
    "election",
    "transfer",
    "membership",
    "snapshot",
    "install",
)
TRACE_LINES = 200


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed, with the end of its trace")
    parser.add_argument("--shrink", action="store_true", help="leave out faults that do not matter")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--start", type=int, default=1, help="the first one")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long")
    parser.add_argument("--fast", action="store_true", help="nodes with the fast path")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="add the tally to this file (JSON)")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        result = (
            shrink(arguments.seed) if arguments.shrink else run_seed(arguments.seed, trace=True)
        )
        print("\n".join(result.trace[-TRACE_LINES:]))
        print(result.acts)
        print(result.failure or "no rule broken", f"({result.steps} steps)")
        return 1 if result.failure else 0
    return run_many(arguments)


def run_many(arguments: argparse.Namespace) -> int:
    tally = Tally()
    began = time.monotonic()
    for result in results(arguments):
        tally.take(result)
        if result.failure:
            print(
                f"seed {result.seed}: {result.failure}\n  python -m tests.sim --seed {result.seed}"
            )
            sys.stdout.flush()
        if arguments.seconds and time.monotonic() - began > arguments.seconds:
            break
    tally.seconds = time.monotonic() - began
    print(tally.text())
    if arguments.keep:
        tally.keep(arguments.keep)
    return 1 if tally.failures else 0


def results(arguments: argparse.Namespace) -> Iterator[Result]:
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    run = run_fast if arguments.fast else run_checked
    if arguments.processes == 1:
        yield from map(run, seeds)
        return
    with Pool(arguments.processes) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=4)


def run_checked(seed: int) -> Result:
    """Run a seed; each hundredth twice, to see that nothing but the seed decides."""
    result = run_seed(seed)
    if seed % 100 == 0:
        again = run_seed(seed)
        if (again.steps, again.counts) != (result.steps, result.counts):
            result.failure = result.failure or "the same seed did something else"
    return result


class Tally:
    """Sums over seeds."""

    def __init__(self) -> None:
        self.seeds = 0
        self.steps = 0
        self.seconds = 0.0
        self.failures: list[int] = []
        self.counts: Counter[str] = Counter()
        self.coverage: Counter[tuple[str, str]] = Counter()
        self.healed_ms: list[int] = []

    def take(self, result: Result) -> None:
        self.seeds += 1
        self.steps += result.steps
        self.counts += result.counts
        self.coverage += result.coverage
        if result.failure:
            self.failures.append(result.seed)
        else:
            self.healed_ms.append(result.healed_us // 1000)

    def text(self) -> str:
        healed = sorted(self.healed_ms) or [0]
        lines = [
            f"{self.seeds} seeds, {len(self.failures)} failed {sorted(self.failures)[:20]}; "
            f"{self.steps} steps in {self.seconds:.0f} s "
            f"({60 * self.seeds / max(self.seconds, 0.001):.0f} seeds/min)",
            f"well again after ms: median {healed[len(healed) // 2]}, worst {healed[-1]}",
            str(dict(sorted(self.counts.items()))),
            "fault".ljust(12) + "".join(name.rjust(11) for name in OPERATIONS_SHOWN),
        ]
        for kind in FAULTS:
            cells = [str(self.coverage[kind, operation]) for operation in OPERATIONS_SHOWN]
            lines.append(kind.ljust(12) + "".join(cell.rjust(11) for cell in cells))
        return "\n".join(lines)

    def keep(self, path: Path) -> None:
        """Add to a tally file."""
        old = json.loads(path.read_text()) if path.exists() else {"runs": []}
        head = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
        old["runs"].append(
            {
                "command": "python -m tests.sim " + " ".join(sys.argv[1:]),
                "commit": commit,
                "seeds": self.seeds,
                "steps": self.steps,
                "seconds": round(self.seconds),
                "failed": sorted(self.failures),
                "counts": dict(sorted(self.counts.items())),
                "coverage": {
                    kind: {name: self.coverage[kind, name] for name in OPERATIONS_SHOWN}
                    for kind in FAULTS
                },
            }
        )
        path.write_text(json.dumps(old, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
