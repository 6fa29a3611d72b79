"""What every piece of housekeeping is: a service of the retention sweeper.

A service is told messages and asked requests of the kinds it names, and is called when something
of its own is due.  It works in short turns in the actor's loop; what takes long is a job.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

NEVER = math.inf


class Service:
    """One piece of housekeeping.  `due` is the monotonic second of its next turn."""

    messages: ClassVar[tuple[bytes, ...]] = ()  # kinds of messages between actors
    requests: ClassVar[tuple[str, ...]] = ()  # kinds of client requests

    def __init__(self, sweeper: RetentionSweeper) -> None:
        self.sweeper = sweeper
        self.directory: str = sweeper.options.node.data_dir
        self.due = 0.0

    def handle(self, frames: list[Any]) -> None:
        """Take one message of `messages`."""

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the result of one request of `requests`.  Raises MeterdError."""
        raise NotImplementedError

    def turn(self, now: float) -> None:
        """Do what is due, and set `due` anew."""
        self.due = NEVER

    def close(self) -> None:
        """Finish: the actor ends."""
