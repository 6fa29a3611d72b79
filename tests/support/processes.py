"""Tells whether processes have gone; a zombie has, whenever who should reap it gets to that."""

from __future__ import annotations

from pathlib import Path

# In /proc/PID/stat, counted behind the name: proc(5).
STATE, GROUP, THREADS = 0, 2, 17


def is_gone(pid: int) -> bool:
    """Is there no such process, or only what nobody has reaped yet?"""
    return _has_ended(_stat(pid))


def group_is_gone(group: int) -> bool:
    """Does no process of a process group run any more?"""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    members = (stat for stat in map(_stat, pids) if stat and stat[GROUP] == str(group))
    return all(map(_has_ended, members))


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _has_ended(stat: list[str]) -> bool:
    """A first thread that has ended while others go on still has files and sockets."""
    return not stat or (stat[STATE] in "ZX" and int(stat[THREADS]) <= 1)
