"""Reads what the kernel knows about the processes of a node, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
# Looking at processes may take one part in so many of the time.
LOOK_SHARE = 10


@dataclass(frozen=True)
class Usage:
    """What a process takes."""

    cpu_seconds: float
    resident_bytes: int
    proportional_bytes: int


def usage_of(pid: int) -> Usage | None:
    """Return what process `pid` takes, or None when it has gone or may not be looked at."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return None
    sizes = {}
    for line in rollup.splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * KIB
    # Fields 14 and 15 of proc(5), utime and stime; the rest begins with field 3.
    ticks = int(words[11]) + int(words[12])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), sizes.get("Rss", 0), sizes.get("Pss", 0))


class Processes:
    """What some processes take, as it was lately.

    To add up a process's memory the kernel walks its page tables, for up to a second each; whoever
    asks again soon, as a client does that had no answer, is told what was found before.
    """

    def __init__(
        self,
        look: Callable[[int], Usage | None] = usage_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._clock = clock
        self._due = 0.0
        self._pids: dict[str, int] = {}
        self._found: dict[str, Usage] = {}

    def usages(self, pids: Mapping[str, int]) -> dict[str, Usage]:
        """Return what each process takes, by name; those that have gone are left out."""
        began = self._clock()
        if began >= self._due or pids != self._pids:
            found = {name: self._look(pid) for name, pid in pids.items()}
            self._pids = dict(pids)
            self._found = {name: usage for name, usage in found.items() if usage is not None}
            ended = self._clock()
            self._due = ended + LOOK_SHARE * (ended - began)
        return self._found
