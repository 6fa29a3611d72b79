"""Faults on the links between nodes, for tests: drops and delays, as a file says.

Only the environment variable METERD_TEST_LINKS switches this on.  It names a file that is read
again whenever it has changed, with one rule a line, of which the first that fits holds:

    FROM>TO                            nothing passes
    FROM>TO CONNECTION                 nothing passes on this connection, control or bulk
    FROM>TO CONNECTION MILLISECONDS    it comes so much later

FROM and TO are node numbers, and `*` stands for any node or connection.  Rules hold for the sender,
so a cut may be one way.  What no rule names is sent at once.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

VARIABLE: Final = "METERD_TEST_LINKS"
CONNECTIONS: Final = ("control", "bulk")
# Messages that are delayed at a time; beyond it they are lost, as on a network.
DELAYED_MAX: Final = 10_000

Send = Callable[[], object]


class Rule(NamedTuple):
    """One line of the file."""

    source: str
    target: str
    connection: str
    delay: float | None  # seconds; None: it is dropped


def parse(text: str) -> list[Rule]:
    """Read the rules of a file."""
    rules = []
    for line in text.splitlines():
        ends, *rest = line.split() or [""]
        source, arrow, target = ends.partition(">")
        if arrow:
            connection = rest[0] if rest else "*"
            delay = float(rest[1]) / 1000 if len(rest) > 1 else None
            rules.append(Rule(source, target, connection, delay))
    return rules


class LinkFaults:
    """The faults of one node's links."""

    def __init__(self, path: Path, node: int) -> None:
        self._path = path
        self._node = str(node)
        self._changed: int = -1
        self._rules: list[Rule] = []
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
            found = self._path.stat()
            changed = hash((found.st_mtime_ns, found.st_ino, found.st_size))
            if changed != self._changed:
                self._rules, self._changed = parse(self._path.read_text()), changed
        except FileNotFoundError:
            self._rules, self._changed = [], -1

    def take(self, target: int, is_bulk: bool, now: float, send: Send) -> bool:
        """Drop or delay a message if a rule says so; return whether that was so."""
        link = (self._node, str(target), CONNECTIONS[is_bulk])
        for *ends, delay in self._rules:
            if any(end not in ("*", own) for end, own in zip(ends, link, strict=True)):
                continue
            if delay is not None and len(self._delayed) < DELAYED_MAX:
                self._count += 1
                heapq.heappush(self._delayed, (now + delay, self._count, send))
            return True
        return False

    def release(self, now: float) -> float:
        """Send what was delayed long enough; return the seconds until more is due."""
        while self._delayed and self._delayed[0][0] <= now:
            heapq.heappop(self._delayed)[2]()
        return self._delayed[0][0] - now if self._delayed else 1.0
