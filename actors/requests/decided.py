"""Tells ingest how many of its gatherings are decided, once a turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Decided:
    """`count` grows with each gathering whose requests are answered or refused."""

    def __init__(self, send: Callable[[str, list[Any]], object]) -> None:
        self._send = send
        self.count = 0

    def tell(self, alone: bool) -> None:
        """Tell it; ingest of a node alone does not wait for that."""
        count, self.count = self.count, 0
        if count and not alone:
            self._send("ingest", [b"decided", count.to_bytes(4, "little")])
