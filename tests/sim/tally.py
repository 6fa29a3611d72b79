"""Sums over seeds, and the book that several runs add them to.

The book (`bench/results/sim-tally.json`) has a page for each layer: which seed is the next, what
each run did, what all of them did together.  A run takes some seeds at a time, so that two runs
never have the same seed, and writes down what they did when they are done.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.sim.runner import Result

FAILURE_SIZE = 400
FAILED_SHOWN = 20
# Of each seed these, and what the page names, are kept as "how many seeds had so many".
ALWAYS = ("steps", "healed_ms")


class Page(NamedTuple):
    """What of a layer's results is told."""

    program: str  # the module that runs it
    faults: Sequence[str]
    operations: Sequence[str]
    medians: Sequence[str]  # counts of which the medians over seeds are said


class Tally:
    """Sums over seeds."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.seeds = 0
        self.cpu_seconds = 0.0
        self.failures: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self.coverage: Counter[tuple[str, str]] = Counter()
        self.spread: dict[str, Counter[int]] = {
            name: Counter() for name in (*ALWAYS, *page.medians)
        }

    def take(self, result: Result) -> None:
        self.seeds += 1
        self.cpu_seconds += result.cpu_seconds
        self.counts += result.counts
        self.coverage += result.coverage
        self.spread["steps"][two_digits(result.steps)] += 1
        for name in self.page.medians:
            self.spread[name][two_digits(result.counts[name])] += 1
        if result.failure:
            self.failures[result.seed] = result.failure[:FAILURE_SIZE]
        else:
            self.spread["healed_ms"][two_digits(result.healed_us // 1000)] += 1

    def add(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.cpu_seconds += other.cpu_seconds
        self.failures |= other.failures
        self.counts += other.counts
        self.coverage += other.coverage
        for name, spread in self.spread.items():
            spread.update(other.spread[name])

    def medians(self) -> dict[str, int]:
        return {name: at_rank(spread, 1, 2) for name, spread in self.spread.items()}

    def empty_cells(self) -> list[tuple[str, str]]:
        """Return the pairs of fault and operation that never met."""
        page = self.page
        return [(f, o) for f in page.faults for o in page.operations if not self.coverage[f, o]]

    def text(self) -> str:
        page, failed = self.page, sorted(self.failures)
        per_minute = 60 * self.seeds / max(self.cpu_seconds, 0.001)
        lines = [
            f"{self.seeds:,} seeds, {len(failed)} failed {failed[:FAILED_SHOWN]}; "
            f"{self.cpu_seconds:.0f} s of processor time ({per_minute:.0f} seeds a minute)",
            f"medians of a seed: {self.medians()}",
            f"well again after at most {max(self.spread['healed_ms'], default=0)} ms",
            str(dict(sorted(self.counts.items()))),
            f"faults and operations that never met: {self.empty_cells() or 'none'}",
            "fault".ljust(12) + "".join(name.rjust(11) for name in page.operations),
        ]
        for kind in page.faults:
            cells = [str(self.coverage[kind, operation]) for operation in page.operations]
            lines.append(kind.ljust(12) + "".join(cell.rjust(11) for cell in cells))
        return "\n".join(lines)

    def to_map(self) -> dict[str, Any]:
        page = self.page
        return {
            "seeds": self.seeds,
            "failed": {str(seed): text for seed, text in sorted(self.failures.items())},
            "cpu_seconds": round(self.cpu_seconds, 1),
            "medians": self.medians(),
            "counts": dict(sorted(self.counts.items())),
            "coverage": {
                kind: {name: self.coverage[kind, name] for name in page.operations}
                for kind in page.faults
            },
            "spread": {
                name: {str(value): spread[value] for value in sorted(spread)}
                for name, spread in self.spread.items()
            },
        }

    @classmethod
    def from_map(cls, page: Page, kept: dict[str, Any]) -> Tally:
        tally = cls(page)
        tally.seeds, tally.cpu_seconds = kept["seeds"], kept["cpu_seconds"]
        tally.failures = {int(seed): text for seed, text in kept["failed"].items()}
        tally.counts = Counter(kept["counts"])
        for kind, row in kept["coverage"].items():
            tally.coverage += Counter({(kind, name): count for name, count in row.items()})
        for name, spread in kept["spread"].items():
            tally.spread[name] = Counter({int(value): count for value, count in spread.items()})
        return tally


def two_digits(value: int) -> int:
    """Return a number with zeros behind its first two digits: some hundred are enough to keep."""
    unit = 10 ** max(0, len(str(value)) - 2)
    return value - value % unit


def at_rank(spread: Counter[int], part: int, of: int) -> int:
    """Return the value below which so large a part of all lies; 0 when there is none."""
    rank, seen = spread.total() * part // of, 0
    for value in sorted(spread):
        seen += spread[value]
        if seen > rank:
            return value
    return 0


class Book:
    """A file of tallies; every change of it is whole, and nobody else's is lost by it."""

    def __init__(self, path: Path, page: Page) -> None:
        self._path, self._page = path, page

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """Give the layer's page to change."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            book = json.loads(self._path.read_text()) if self._path.exists() else {}
            yield book.setdefault(self._page.program, {"next": 1, "runs": []})
            other = self._path.with_suffix(".new")
            other.write_text(as_text(book))
            other.replace(self._path)
        finally:
            os.close(folder)

    def begin(self, arguments: Sequence[str]) -> int:
        """Write down a new run; return its number."""
        head = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
        command = " ".join(["python -m", self._page.program, *arguments])
        with self._open() as page:
            run = {"command": command, "commit": commit, "first": page["next"], "seeds": 0}
            page["runs"].append(run | {"failed": [], "cpu_seconds": 0})
            return len(page["runs"]) - 1

    def take_seeds(self, count: int) -> range:
        """Return seeds that nobody else has, and that nobody else will get."""
        with self._open() as page:
            first = page["next"]
            page["next"] += count
        return range(first, first + count)

    def add(self, run: int, tally: Tally) -> None:
        """Write down what some of a run's seeds did."""
        with self._open() as page:
            mine = page["runs"][run]
            mine["seeds"] += tally.seeds
            mine["failed"] += sorted(tally.failures)
            mine["cpu_seconds"] = round(mine["cpu_seconds"] + tally.cpu_seconds, 1)
            if "all" in page:
                tally.add(Tally.from_map(self._page, page["all"]))
            page["all"] = tally.to_map()

    def tally(self) -> Tally:
        """Return what all runs did together."""
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        found = kept.get(self._page.program, {}).get("all")
        return Tally(self._page) if found is None else Tally.from_map(self._page, found)


def as_text(book: dict[str, Any]) -> str:
    """Return JSON that shows each table, run and spread on one line."""
    lines = ["{"]
    for number, (name, page) in enumerate(book.items()):
        lines.append(f"{',' if number else ''}{json.dumps(name)}: {{")
        runs = ",\n  ".join(json.dumps(run) for run in page["runs"])
        lines.append(f' "next": {page["next"]},\n "runs": [\n  {runs}\n ]')
        if "all" in page:
            rows = [f"  {json.dumps(key)}: {_row(page['all'][key])}" for key in page["all"]]
            lines.append(' ,"all": {\n' + ",\n".join(rows) + "\n }")
        lines.append("}")
    return "\n".join([*lines, "}", ""])


def _row(value: Any) -> str:
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        rows = [f"   {json.dumps(key)}: {json.dumps(one)}" for key, one in value.items()]
        return "{\n" + ",\n".join(rows) + "\n  }"
    return json.dumps(value)
