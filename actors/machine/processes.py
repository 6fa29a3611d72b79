"""Reads what the kernel knows about the processes of a node, from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

KIB = 1024


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
