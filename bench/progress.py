"""Keeps the runs of a program in a file, so that the same command goes on another day.

A run is what a program wants to know about it later, with the commit and the load of the machine
added: what 500 kills found is worth something only when it is known of what.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.support import commit


class Progress:
    """All runs so far; without a path they are kept for this process alone."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.runs: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.runs = json.loads(path.read_text())["runs"]

    def add(self, run: Mapping[str, Any]) -> None:
        """Keep one more run."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        added = {"time": now, "commit": commit(), "load_average": os.getloadavg()[0]}
        self.runs.append({**added, **run})
        self._save()

    def note(self, more: Mapping[str, Any]) -> None:
        """Add what was found of the last run later."""
        self.runs[-1].update(more)
        self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        temporary = Path(f"{self._path}.tmp")
        temporary.write_text(json.dumps({"runs": self.runs}, indent=1) + "\n")
        os.replace(temporary, self._path)

    def total(self, key: str) -> int:
        """Add up a number of all runs."""
        return sum(run[key] for run in self.runs)

    def totals(self, key: str) -> dict[str, int]:
        """Add up a table of numbers of all runs."""
        return dict(sorted(added_up(run[key] for run in self.runs).items()))

    def all(self, key: str) -> list[Any]:
        """Return what all runs have listed."""
        return [one for run in self.runs for one in run[key]]

    def commits(self) -> dict[str, int]:
        """Return how many runs there were of each commit."""
        return dict(Counter(run["commit"] for run in self.runs))


def added_up(tables: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Add up tables of numbers."""
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return total
