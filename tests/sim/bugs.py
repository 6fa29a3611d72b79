"""Bugs put in on purpose, and how many seeds it takes to notice each.

The product has no flags for this: functions are replaced from here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.sim.runner import Result

Patch = tuple[Any, str, Any]  # owner, attribute, value
Bug = Callable[[], list[Patch]]
FAILURE_SIZE = 100


class Bugs(dict[str, Bug]):
    """Bugs of one layer by name; `add` is the decorator that names them."""

    def __init__(self, run: Callable[[int], Result]) -> None:
        super().__init__()
        self._run = run

    def add(self, bug: Bug) -> Bug:
        self[bug.__name__] = bug
        return bug

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Put one bug in for a while."""
        patches = self[name]()
        kept = [(owner, attribute, owner.__dict__[attribute]) for owner, attribute, _ in patches]
        try:
            for owner, attribute, value in patches:
                setattr(owner, attribute, value)
            yield
        finally:
            for owner, attribute, value in kept:
                setattr(owner, attribute, value)

    def seeds_needed(self, name: str, limit: int, start: int = 1) -> tuple[int, Result]:
        """Return how many seeds until the bug is noticed (0: not at all), and the last result."""
        result = Result(0)
        with self.applied(name):
            for count in range(1, limit + 1):
                result = self._run(start + count - 1)
                if result.failure:
                    assert not _fails_itself(result.failure), f"{name}: {result.failure}"
                    return count, result
        return 0, result

    def report(
        self,
        arguments: Sequence[str],
        limit: int,
        directed: Mapping[str, Sequence[str]],
        share_of_directed: int = 1,
    ) -> int:
        """Say how many seeds each takes: `[LIMIT] [NAME]... [FILE.json]`.

        directed: by bug, the schedules that show it, too; it gets that share of the seeds.
        """
        named = list(arguments)
        file = Path(named.pop()) if named and named[-1].endswith(".json") else None
        most_of_all = int(named.pop(0)) if named else limit
        table: dict[str, Any] = {}
        for name in named or self:
            began = time.monotonic()
            schedule = list(directed.get(name, ()))
            most = most_of_all // share_of_directed if schedule else most_of_all
            needed, result = self.seeds_needed(name, most)
            said = result.failure.split("\n")[0][:FAILURE_SIZE]
            table[name] = {"seeds": needed, "of": most, "as": said, "schedule": schedule}
            took = f"{time.monotonic() - began:5.0f} s"
            print(f"{name:55s} {needed or f'not in {most}':>12} {took}  {said}", flush=True)
        if file is not None:
            file.write_text(json.dumps(table, indent=1) + "\n")
        return 0


def _fails_itself(failure: str) -> bool:
    """Does what replaces the product's function not fit the product any more?"""
    places = [line for line in failure.splitlines() if line.startswith('  File "')]
    return bool(places) and 'mutants.py"' in places[-1]
