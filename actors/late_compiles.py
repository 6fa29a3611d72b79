"""Tells of a kernel that is compiled while actors run: `core/warm.py` has missed it.

Such an actor stands still for seconds, long enough for other nodes to take its partitions away.
Later starts find the kernel in the cache, so one line in a log is all that is ever seen of it.
With the environment variable METERD_TEST_COMPILED, for tests, the actor ends instead.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from numba.core import event

from meterd.protocol.errors import InvariantViolation

VARIABLE: Final = "METERD_TEST_COMPILED"

logger = logging.getLogger(__name__)


class _Teller(event.Listener):  # type: ignore[misc]
    def on_start(self, event: event.Event) -> None:
        kernel = event.data["dispatcher"].py_func
        story = f"{kernel.__module__}.{kernel.__name__} is compiled while the node runs"
        if VARIABLE in os.environ:
            raise InvariantViolation(story)
        logger.warning("%s: work stands still for seconds", story)

    def on_end(self, event: event.Event) -> None:
        """Nothing is to be said."""


def tell() -> None:
    """From now on, in this process and those that it forks."""
    event.register("numba:compile", _Teller())
