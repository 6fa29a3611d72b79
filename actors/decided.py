"""Tells ingest how many of its gatherings are decided, once a turn.

Of one that was under way alone it is told together with the next: nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Decided:
    """`add` each gathering whose requests are answered or refused."""

    def __init__(self, send: Callable[[str, list[Any]], object]) -> None:
        self._send = send
        self._count = 0
        self._now = False  # does somebody wait for that?

    def add(self, alone: bool = False) -> None:
        """Count one; alone: nothing else was under way when it was handed on."""
        self._count += 1
        self._now |= not alone

    def tell(self, is_node_alone: bool) -> None:
        """Tell it; ingest of a node alone does not wait for that."""
        if not self._now:
            return
        count, self._count, self._now = self._count, 0, False
        if not is_node_alone:
            self._send("ingest", [b"decided", count.to_bytes(4, "little")])
