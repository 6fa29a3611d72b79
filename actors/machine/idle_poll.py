"""Keeps processors awake while requests are under way: an idle processor polls instead of halting.

A request passes through six processes, one after the other, so most processors have nothing to do
at any moment, and halt.  In a virtual machine waking one takes long (20 to 60 µs were measured),
several times a request.  So for a short while after each request and answer a thread for each
processor spins.  It runs under `SCHED_IDLE`: it gets only time that nobody wants, and whoever is
woken takes its place at once.  While nothing is under way it waits for its event.

A thread is one call of a compiled kernel that never returns and never holds the interpreter's lock;
it ends with the process.  There are none where they would do harm or nothing:
  * `node.idle_poll` is 0, or the system does not let us use `SCHED_IDLE`
  * a control group has a quota of processor time: what polls would use it up
  * more than `PROCESSORS_MAX` processors: which of them a message wakes, nobody knows
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types

import meterd.core.kernels  # noqa: F401  (says where compiled code is kept)

PROCESSORS_MAX = 8
CGROUPS = Path("/sys/fs/cgroup")

# Of a thread's row: poll until this monotonic time in ns; does it wait for its event?
UNTIL, WAITING = 0, 1
# The rest of it is room for what system calls return, and keeps rows of two threads apart in the
# processors' caches.
SCRATCH, ROW_WORDS = 8, 16
EVENT_SIZE = 8

_MONOTONIC = time.CLOCK_MONOTONIC
_clock_gettime = types.ExternalFunction("clock_gettime", types.intc(types.intc, types.voidptr))
_read = types.ExternalFunction("read", types.intp(types.intc, types.voidptr, types.uintp))

logger = logging.getLogger(__name__)


@njit("void(int64[::1], int64[::1], int64)", nogil=True, cache=True)
def _spin(row: Any, scratch: Any, event: Any) -> None:
    """Poll until the time in the row, then wait for the event; so for ever, if it can be read."""
    while True:
        _clock_gettime(_MONOTONIC, scratch.ctypes)
        if scratch[0] * 1_000_000_000 + scratch[1] < row[UNTIL]:
            continue
        row[WAITING] = 1
        if _read(event, scratch.ctypes, EVENT_SIZE) != EVENT_SIZE:
            return
        row[WAITING] = 0


class IdlePoll:
    """The polling threads of this process."""

    def __init__(self, seconds: float) -> None:
        """Poll for so long after each `extend`; 0 is never."""
        self._ns = round(seconds * 1e9)
        processors = sorted(os.sched_getaffinity(0)) if seconds else []
        if len(processors) > PROCESSORS_MAX or has_quota():
            processors = []
        self._threads = [(np.zeros(ROW_WORDS, np.int64), os.eventfd(0)) for _ in processors]
        self._rows = [(row.data, event) for row, event in self._threads]
        for processor, (row, event) in zip(processors, self._threads, strict=True):
            threading.Thread(target=_poll, args=(processor, row, event), daemon=True).start()

    def extend(self) -> None:
        """Something is under way: poll from now on."""
        until = time.monotonic_ns() + self._ns
        for row, event in self._rows:
            row[UNTIL] = until
            # A thread that is about to wait may be missed; then the next call wakes it.
            if row[WAITING]:
                row[WAITING] = 0
                os.eventfd_write(event, 1)


def _poll(processor: int, row: Any, event: int) -> None:
    """Be a polling thread of one processor."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the actor's
    try:
        os.sched_setaffinity(0, {processor})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:  # a sandbox may forbid it; at any other priority it would do harm
        logger.info("processors are not kept awake: %s", error)
        return
    _spin(row[:SCRATCH], row[SCRATCH:], event)


def has_quota(membership: Path = Path("/proc/self/cgroup"), groups: Path = CGROUPS) -> bool:
    """Is the processor time of this process limited by a control group (version 2)?"""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        number, _, path = line.split(":", 2)
        if number != "0":
            continue
        group = groups / path.lstrip("/")
        for limited in (group, *group.parents):
            if not limited.is_relative_to(groups):
                break
            try:
                if not (limited / "cpu.max").read_text().startswith("max"):
                    return True
            except OSError:
                continue
    return False
