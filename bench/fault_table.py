"""What was run of each kind of fault and how it ended, in a file by which to go on with it.

A row is a kind of fault on one disk, simulated or real.  Its seeds are run in order, so one number
says which are left.  A seed that ends in a violation, or because the machine was too slow for a
deadline, stays open: it can be run again, and its last run counts.  Several processes may share a
file as long as none runs another's rows.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.support import commit, say

SIMULATED, REAL = "simulated", "real"
VIOLATION = "violation"
# A deadline that was missed says nothing on a machine that others use; it is no answer either.
TOO_SLOW = "not judged: too slow"
MISSED = "not within "
TEXT_MAX = 300
# So many violations of one kind say enough.
VIOLATIONS_MAX = 5
SAVE_SECONDS = 5.0

# Runs one seed and says how it ended; raises when the contract is broken.
Run = Callable[[int], str]


@dataclass
class Row:
    """One kind of fault on one disk."""

    kind: str
    disk: str
    first: int  # seed
    end: int  # the seed to go on with
    outcomes: Counter[str] = field(default_factory=Counter)
    open: dict[str, str] = field(default_factory=dict)  # by seed: how it went wrong
    seconds: float = 0.0
    commits: Counter[str] = field(default_factory=Counter)  # how many were run at each

    @classmethod
    def from_map(cls, fields: dict[str, Any]) -> Row:
        counted = {name: Counter(fields[name]) for name in ("outcomes", "commits")}
        return cls(**fields | counted)

    @property
    def violations(self) -> list[str]:
        """Open seeds that did not only miss a deadline."""
        return [text for text in self.open.values() if not text.startswith(MISSED)]


class Table:
    """See the module."""

    def __init__(
        self, path: Path | None = None, until: float = float("inf"), again: bool = False
    ) -> None:
        """`path`: where the rows are kept; `until`: when to stop, monotonic seconds.

        again: run open seeds once more.
        """
        self._path, self._until, self._again = path, until, again
        self._commit = commit()
        self._rows = {(row.kind, row.disk): row for row in _read(path)}
        self._mine: set[tuple[str, str]] = set()
        self._saved = 0.0

    def left(self, kind: str, disk: str, seeds: range) -> range:
        """Return the seeds that were not run yet."""
        row = self._row(kind, disk, seeds.start)
        return range(max(seeds.start, row.end), seeds.stop)

    def run(
        self,
        kind: str,
        disk: str,
        seeds: range,
        opened: Callable[[], AbstractContextManager[Run]],
    ) -> None:
        """Do the runs of a kind that are left; the stage is opened anew when one goes wrong."""
        began, row = time.monotonic(), self._row(kind, disk, seeds.start)
        todo = [int(seed) for seed in row.open] if self._again else []
        todo += self.left(kind, disk, seeds)
        while todo and not self._is_over(row):
            seed = todo[0]
            try:
                with opened() as run:
                    while todo and not self._is_over(row):
                        seed = todo[0]
                        self.note(row, seed, run(seed))
                        del todo[0]
            except Exception as error:
                del todo[0]
                self._note_failure(row, seed, error)
        if (kind, disk) in self._mine:
            row.seconds = round(row.seconds + time.monotonic() - began, 1)
            self._save()
            say(f"{kind}, {disk}: {row.outcomes}")
        gc.collect()

    def _is_over(self, row: Row) -> bool:
        return time.monotonic() >= self._until or len(row.violations) >= VIOLATIONS_MAX

    def _note_failure(self, row: Row, seed: int, error: Exception) -> None:
        text = str(error).splitlines()[0][:TEXT_MAX] if str(error) else repr(error)
        slow = text.startswith(MISSED)
        if not slow:
            text = f"{type(error).__name__}: {text}"
        self.note(row, seed, TOO_SLOW if slow else VIOLATION, text)
        say(f"{row.kind}, {row.disk}, seed {seed}: {error!r}")
        for line in getattr(error, "__notes__", ()):
            say(line)

    def note(self, row: Row, seed: int, outcome: str, wrong: str | None = None) -> None:
        """A seed was run; what it came to before does not count any more."""
        before = row.open.pop(str(seed), None)
        if before is not None:
            row.outcomes -= Counter([TOO_SLOW if before.startswith(MISSED) else VIOLATION])
        else:
            row.commits[self._commit] += 1
        row.outcomes[outcome] += 1
        row.end = max(row.end, seed + 1)
        if wrong is not None:
            row.open[str(seed)] = wrong
        self._mine.add((row.kind, row.disk))
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def is_done(self, kind: str, disk: str, seeds: range) -> bool:
        """Were all these seeds run, and none is to be run again?"""
        row = self._rows.get((kind, disk))
        return row is not None and row.end >= seeds.stop and not (self._again and row.open)

    @property
    def violations(self) -> list[str]:
        return [
            f"{row.kind}, {row.disk}: {line}"
            for row in self._rows.values()
            for line in row.violations
        ]

    def document(self) -> dict[str, Any]:
        """Return everything for a result file."""
        rows = sorted(self._rows.values(), key=lambda row: (row.disk != SIMULATED, row.kind))
        return {
            "runs": sum(row.outcomes.total() for row in rows),
            "rows": [vars(row) for row in rows if row.outcomes],
            "violations": self.violations,
        }

    def text(self) -> str:
        """Return how many runs there were of each kind."""
        kinds = dict.fromkeys(kind for kind, _ in self._rows)
        lines = [f"{'kind':40} {SIMULATED:>9} {REAL:>9}"]
        for kind in kinds:
            found = [self._rows.get((kind, disk)) for disk in (SIMULATED, REAL)]
            counts = [0 if row is None else row.outcomes.total() for row in found]
            lines.append(f"{kind:40} {counts[0]:9} {counts[1]:9}")
        return "\n".join(lines)

    def _row(self, kind: str, disk: str, first: int) -> Row:
        return self._rows.setdefault((kind, disk), Row(kind, disk, first, first))

    def _save(self) -> None:
        """Keep the rows that were added to; those of other processes stay as they are."""
        self._saved = time.monotonic()
        if self._path is None:
            return
        with Path(f"{self._path}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = {(row.kind, row.disk): row for row in _read(self._path)}
            rows |= {key: self._rows[key] for key in self._mine}
            temporary = Path(f"{self._path}.tmp")
            temporary.write_text(json.dumps([vars(row) for row in rows.values()], indent=1))
            os.replace(temporary, self._path)
            self._rows |= rows


def _read(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [Row.from_map(fields) for fields in json.loads(path.read_text())]
