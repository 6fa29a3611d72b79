"""Waits for news while the memory of this process stays as it is, without the interpreter.

The router looks at its memory every few milliseconds (`listener_guard.py`).  When nothing happens
that is all it does, and to wake the interpreter each time would cost more than all else: so one
compiled loop waits and compares, and comes back when there is something to do.
"""

from __future__ import annotations

import select
from typing import Any

import numpy as np
from numba import njit, types

import meterd.core.kernels  # noqa: F401  (says where compiled code is kept)

# What /proc/self/statm has: seven numbers, and room for an event of epoll (12 bytes).
STATM_SIZE, EVENT_SIZE = 128, 16

_epoll_wait = types.ExternalFunction(
    "epoll_wait", types.intc(types.intc, types.voidptr, types.intc, types.intc)
)
_pread = types.ExternalFunction(
    "pread", types.intp(types.intc, types.voidptr, types.uintp, types.int64)
)


@njit("boolean(int64, int64, uint8[::1], uint8[::1], int64, int64)", nogil=True, cache=True)
def _same(epoll: Any, statm: Any, known: Any, scratch: Any, looks: Any, look_ms: Any) -> Any:
    """Wait, and look so often; False when the memory is another one than `known` says."""
    read = scratch[EVENT_SIZE:]
    for _ in range(looks):
        if _epoll_wait(epoll, scratch.ctypes, 1, look_ms) != 0:
            return True  # there is news, or a signal
        size = _pread(statm, read.ctypes, STATM_SIZE, 0)
        if size != len(known):
            return False
        for k in range(size):
            if read[k] != known[k]:
                return False
    return True


class QuietWait:
    """Waits at one epoll; `statm`: a descriptor of /proc/self/statm."""

    def __init__(self, epoll: select.epoll, statm: int) -> None:
        self._epoll, self._statm = epoll.fileno(), statm
        self._scratch = np.zeros(EVENT_SIZE + STATM_SIZE, np.uint8)

    def wait(self, known: bytes, seconds: float, look_seconds: float) -> bool:
        """Wait for news up to so long, at most `look_seconds` longer.

        Returns False at once when statm says something else than `known`.
        """
        look_ms = max(1, round(look_seconds * 1000))
        looks = max(1, round(seconds * 1000) // look_ms)
        words = np.frombuffer(bytearray(known), np.uint8)
        return bool(_same(self._epoll, self._statm, words, self._scratch, looks, look_ms))
