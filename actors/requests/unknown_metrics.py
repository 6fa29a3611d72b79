"""Keeps requests with events that a newer registry might take, for ingest in a cluster.

`unknown_metric` is final, and so is `bad_value` where a metric has too few decimals, so neither
must be said by a node that is behind: another one may have answered `metric_put` a moment ago.
Such requests wait for a registry that is asked for after they have come; one question at a time
serves all that wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from meterd.actors.frames.sockets import Frame
from meterd.protocol.envelope import RequestHeader
from meterd.protocol.errors import MeterdError, Overloaded

if TYPE_CHECKING:
    from meterd.actors.ingest import Ingest

# Requests that wait; a client that sends nothing else must not fill the node.
HELD_MAX = 1_000
SIZE_MAX = 64 * 1024 * 1024

Held = tuple[bytes, RequestHeader, Frame]


class UnknownMetrics:
    """Ingest tells it what to keep, and what usage has said."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._asked: list[Held] = []  # wait for the question that is under way
        self._next: list[Held] = []  # came after it
        self._size = 0
        self._under_way = False

    def hold(self, rid: bytes, header: RequestHeader, body: Frame) -> None:
        """Keep a request.  Raises Overloaded."""
        if len(self._asked) + len(self._next) >= HELD_MAX or self._size + len(body) > SIZE_MAX:
            raise Overloaded("too many requests name metrics that are not known")
        self._next.append((rid, header, body))
        self._size += len(body)
        self._ask()

    def _ask(self) -> None:
        if self._next and not self._under_way:
            self._asked, self._next = self._next, []
            self._under_way = True
            self._ingest.send("usage", [b"fresh_registry"])

    def fresh(self, frames: Sequence[Frame]) -> None:
        """The registry is as new as the question: what it does not know there is not."""
        self._ingest.take_registry(frames)
        for rid, header, body in self._taken():
            self._ingest.take_request(rid, header, body, certain=True)
        self._ask()

    def failed(self, error: MeterdError) -> None:
        """Nobody knows at the moment."""
        for rid, header, _ in self._taken():
            self._ingest.refuse(rid, header, error)
        self._ask()

    def _taken(self) -> list[Held]:
        held, self._asked, self._under_way = self._asked, [], False
        self._size -= sum(len(body) for _, _, body in held)
        return held
