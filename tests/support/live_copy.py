"""Copies a directory while it is written, in the ways of the usual tools.

`rsync_like` lists everything first and then copies in the order of the names, as rsync does;
`cp_like` copies in the order of the directory.  What has vanished meanwhile is passed over, as both
do.  Between two files they wait as told, so that a short copy meets as much as a long one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from pathlib import Path

PIECE = 1 << 17


def rsync_like(source: Path, target: Path, rest: float = 0.0) -> list[str]:
    """Copy as `rsync -a` does; return what had vanished."""
    names = sorted(os.listdir(source))
    return copy_names(source, target, names, rest)


def cp_like(source: Path, target: Path, rest: float = 0.0) -> list[str]:
    """Copy as `cp -a` does, without keeping hard links; return what had vanished."""
    return copy_names(source, target, os.listdir(source), rest)


def copy_names(source: Path, target: Path, names: list[str], rest: float) -> list[str]:
    """Copy files in an order; return what had vanished."""
    target.mkdir(mode=0o750)
    vanished = []
    for name in names:
        try:
            _copy_one(source / name, target / name)
        except FileNotFoundError:
            vanished.append(name)
        time.sleep(rest)  # the length of a copy, not a wait for something
    return vanished


def _copy_one(source: Path, target: Path) -> None:
    if not stat.S_ISREG(os.lstat(source).st_mode):
        return  # the run directory: sockets, and what a start makes anew
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, PIECE)
    with contextlib.suppress(FileNotFoundError):
        shutil.copystat(source, target)
