"""Tells of a kernel that is compiled while actors run: `core/warm.py` has missed it.

Such an actor stands still for seconds, long enough for other nodes to take its partitions away.
Later starts find the kernel in the cache, so one line in a log is all that is ever seen of it.
With the environment variable METERD_TEST_COMPILED, for tests, the actor ends instead, also when
there is such a kernel in the cache.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from numba.core import event

from meterd.core.kernels.lean_library import LeanLibrary
from meterd.protocol.errors import InvariantViolation

VARIABLE: Final = "METERD_TEST_COMPILED"

logger = logging.getLogger(__name__)


class _Teller(event.Listener):  # type: ignore[misc]
    def on_start(self, event: event.Event) -> None:
        kernel = event.data["dispatcher"].py_func
        name = f"{kernel.__module__}.{kernel.__name__}"
        logger.warning("%s is compiled while the node runs: work stands still for seconds", name)
        if VARIABLE in os.environ:
            _end(name)

    def on_end(self, event: event.Event) -> None:
        """Nothing is to be said."""


def _end(name: str) -> None:
    raise InvariantViolation(f"{name} was not loaded before the node ran")


def tell() -> None:
    """From now on, in this process and those that it forks."""
    event.register("numba:compile", _Teller())
    if VARIABLE in os.environ:
        LeanLibrary.on_load = _end
