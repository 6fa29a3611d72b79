"""Faults on the links between nodes, for tests: drops and delays, as a file says.

Only the environment variable METERD_TEST_LINKS switches this on.  It names a file that is read
again whenever it has changed, with one rule a line, of which the first that fits holds:

    FROM TO CONNECTION drop
    FROM TO CONNECTION delay MILLISECONDS

FROM and TO are node numbers, CONNECTION is control or bulk; `*` is any.  Rules hold for the sender,
so a cut may be one way.  What no rule names is sent at once.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

VARIABLE: Final = "METERD_TEST_LINKS"
CONNECTIONS: Final = ("control", "bulk")
# Messages that are delayed at a time; beyond it they are lost, as on a network.
DELAYED_MAX: Final = 10_000

Send = Callable[[], object]


class LinkFaults:
    """The faults of one node's links."""

    def __init__(self, path: Path, node: int) -> None:
        self._path = path
        self._node = str(node)
        self._changed = -1
        self._rules: list[list[str]] = []
        self._delayed: list[tuple[float, int, Send]] = []
        self._count = 0

    @classmethod
    def wanted(cls, node: int) -> LinkFaults | None:
        """Return the faults that the environment asks for: none, outside of tests."""
        path = os.environ.get(VARIABLE)
        return cls(Path(path), node) if path else None

    def look(self) -> None:
        """Read the rules again if they have changed."""
        try:
            changed = self._path.stat().st_mtime_ns
            if changed != self._changed:
                rules = [line.split() for line in self._path.read_text().splitlines()]
                self._rules, self._changed = [rule for rule in rules if rule], changed
        except FileNotFoundError:
            self._rules, self._changed = [], -1

    def take(self, target: int, is_bulk: bool, now: float, send: Send) -> bool:
        """Drop or delay a message if a rule says so; return whether that was so."""
        link = (self._node, str(target), CONNECTIONS[is_bulk])
        for *ends, what in [[*rule[:3], rule[3:]] for rule in self._rules]:
            if any(end not in ("*", own) for end, own in zip(ends, link, strict=True)):
                continue
            if what[0] == "delay" and len(self._delayed) < DELAYED_MAX:
                self._count += 1
                due = now + float(what[1]) / 1000
                heapq.heappush(self._delayed, (due, self._count, send))
            return True
        return False

    def release(self, now: float) -> float:
        """Send what was delayed long enough; return the seconds until more is due."""
        while self._delayed and self._delayed[0][0] <= now:
            heapq.heappop(self._delayed)[2]()
        return self._delayed[0][0] - now if self._delayed else 1.0
