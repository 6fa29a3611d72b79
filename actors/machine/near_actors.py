"""Puts the actors of a request's way on one processor, and lets them go again.

`core/nearness.py` decides when; the router owns this, because it sees every request and answer.
Only main threads and those of ZeroMQ are moved.  Whoever works beside them (threads that merge or
save) inherits the processor from who has started it, and is let go at the next look.

A router that was killed leaves them where they are, so the next one lets them go first.

It does nothing on a machine of one processor, where a sandbox forbids it, and with
`node.idle_poll`, whose threads have a processor each.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from meterd.actors.supervisor import ACTORS_FILE
from meterd.core.nearness import Nearness

ACTORS = ("router", "ingest", "replication", "wal_writer", "usage")
# How often to look who was started there.
LOOK_SECONDS = 1.0
# Threads of ZeroMQ are named so.
IO_THREADS = "ZMQbg/"


class NearActors:
    """Tell `nearness` of each request, but of a second one this, and call `turn` now and then."""

    def __init__(self, run_dir: str, wanted: bool, parent: int) -> None:
        """`parent`: the supervisor; nobody but its children is touched."""
        self._parent = parent
        self._actors = Path(run_dir, ACTORS_FILE)
        self.nearness = Nearness()
        self._all = os.sched_getaffinity(0)
        self._processes: list[int] = []  # of which threads are moved
        self._processor: int | None = None  # where they are, while they are near
        self._look_at = 0.0  # when to look who was started there
        self._possible = wanted and len(self._all) > 1
        self._left_alone = False  # has everybody been let go whom an earlier router has moved?

    def crowded(self) -> None:
        """A request has come while another one is under way."""
        self.nearness.crowded()
        if self._processor is not None:
            self._let_go()

    def turn(self, now: float) -> None:
        """Do what follows from the last requests."""
        if not self._possible:
            return
        if not self._left_alone:
            self._left_alone = True
            self._let_go_left()
        self.nearness.turn(now)
        if self.nearness.near:
            if self._processor is None or now >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                self._gather()
        elif self._processor is not None:
            self._let_go()

    def close(self) -> None:
        """Leave nobody where it is."""
        if self._processor is not None:
            self._let_go()

    def _gather(self) -> None:
        """Move what has to be near; let go what was started there meanwhile."""
        try:
            if self._processor is None:
                self._processes = self._living()
                self._processor = _processor_of(os.getpid())
                for thread in self._threads(True):
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread, {self._processor})
            self._spread(self._threads(False))
        except OSError:
            self._let_go()
            self._possible = False

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self._spread([*self._threads(True), *self._threads(False)])
        self._processor = None

    def _let_go_left(self) -> None:
        self._processes = self._living()
        for thread in [*self._threads(True), *self._threads(False)]:
            with contextlib.suppress(OSError):
                if len(os.sched_getaffinity(thread)) == 1:
                    os.sched_setaffinity(thread, self._all)

    def _spread(self, threads: list[int]) -> None:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getaffinity(thread) == {self._processor}:
                    os.sched_setaffinity(thread, self._all)

    def _living(self) -> list[int]:
        """Return the processes of the actors; the list may be an older one."""
        try:
            known = json.loads(self._actors.read_bytes())["actors"]
        except (OSError, ValueError):
            return [os.getpid()]
        listed = [known[name]["pid"] for name in ACTORS if name in known and known[name]["pid"]]
        return [process for process in listed if _parent_of(process) == self._parent]

    def _threads(self, near: bool) -> list[int]:
        """Return the threads that are to be near, or all others of the same processes."""
        return [
            thread
            for process in self._processes
            for thread, name in _threads_of(process)
            if (thread == process or name.startswith(IO_THREADS)) == near
        ]


def _threads_of(process: int) -> Iterator[tuple[int, str]]:
    """Yield number and name of each thread; none of a process that is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{process}/task"):
            yield int(thread), Path(f"/proc/{process}/task/{thread}/comm").read_text()


def _processor_of(process: int) -> int:
    """Return where a process was seen last."""
    return int(_stat(process)[36])


def _parent_of(process: int) -> int:
    """Return who has started a process; 0 when it is gone."""
    try:
        return int(_stat(process)[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _stat(process: int) -> list[str]:
    """Return what /proc says of a process, from its state on."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
