"""A copy of a peer's directory, as files: which are taken, and how they take the old ones' place.

The switch is one durable file, `incoming/complete.json`: before it the old directory counts, from
it on the copy, and what is left to do is done at the next start before anything else
(docs/CLUSTER.md, "A copy of a peer").
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from meterd.actors import disk
from meterd.protocol.errors import Corrupt

BEHIND = "behind.json"  # a peer says that no log has any more what this node lacks
INCOMING = "incoming"
COMPLETE = "complete.json"
DONOR = "donor.json"  # whose files lie in `incoming/`
COPIED = "copied.json"  # whose log files this directory may hold

# What a copy is made of; everything else is the node's own, or made anew.
_TAKEN = re.compile(
    r"(held-[01]\.)?(checkpoint(\.prev)?\.bin|ids-\d+\.\w+)|seg-\d+-\d+(-\d+)?\.\w+"
    r"|wal-\d{20}\.(log|idx)|wal\.log|totals-\d+-\d+\.tot|erased\.bin|metric_registry\.bin"
)
# What goes besides when a copy takes the place.
_STALE = re.compile(r"wal\.spare|wal-\d{20}\.open|(archive|pins)\.bin|held.*|.*\.incomplete")

logger = logging.getLogger(__name__)


def is_taken(name: str) -> bool:
    """Is a file of this name a part of copies?"""
    return _TAKEN.fullmatch(name) is not None


def note_behind(data_dir: str, node: int) -> None:
    """Write down that this node needs a copy, and who says so.  Raises DiskFull, OSError."""
    disk.atomic_write(Path(data_dir, BEHIND), json.dumps({"node": node}).encode() + b"\n")


def behind_whom(data_dir: str) -> int:
    """Return the node that says that this one needs a copy; 0: nobody."""
    return _node_in(Path(data_dir, BEHIND))  # where it is damaged a leader says it again


def begin(data_dir: str, donor: int) -> Path:
    """Return `incoming/`, with what was copied of this donor and nothing of another one.

    Files of two nodes may have the same name and size.  Raises DiskFull, FsyncFailed, OSError.
    """
    incoming = Path(data_dir, INCOMING)
    if _node_in(incoming / DONOR) != donor:
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(mode=0o750)
        disk.atomic_write(incoming / DONOR, json.dumps({"node": donor}).encode() + b"\n")
    for name in os.listdir(incoming):
        if name != DONOR and not is_taken(name):  # of an attempt that was not finished
            (incoming / name).unlink()
    return incoming


def reject(data_dir: str) -> None:
    """What was copied does not do, and was changed by trying it on: nothing of it is used."""
    Path(data_dir, INCOMING, DONOR).unlink(missing_ok=True)


def copied_from(data_dir: str) -> tuple[int, ...]:
    """Return the nodes whose log files the directory may hold besides its own.  Raises Corrupt."""
    path = Path(data_dir, COPIED)
    try:
        return tuple(int(node) for node in json.loads(path.read_bytes())["nodes"])
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(str(path), 0, f"it cannot be read: {error}") from error


def write_copied(directory: str, nodes: Iterable[int]) -> None:
    """Say whose log files a directory may hold.  Raises DiskFull, OSError."""
    body = json.dumps({"nodes": sorted(set(nodes))}).encode() + b"\n"
    disk.atomic_write(Path(directory, COPIED), body)


def complete(data_dir: str) -> None:
    """Have the copy count from now on.  Raises DiskFull, FsyncFailed, OSError."""
    incoming = Path(data_dir, INCOMING)
    names = sorted(n for n in os.listdir(incoming) if is_taken(n) or n == COPIED)
    for name in names:
        descriptor = os.open(incoming / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            disk.sync_data(descriptor)
        finally:
            os.close(descriptor)
    disk.sync_directory(str(incoming))
    disk.atomic_write(incoming / COMPLETE, json.dumps({"names": names}).encode() + b"\n")


def finish(data_dir: str) -> bool:
    """Give a complete copy its place; return whether there was one.

    May be repeated after a crash at any step.  Raises Corrupt, FsyncFailed, OSError.
    """
    root, incoming = Path(data_dir), Path(data_dir, INCOMING)
    try:
        names = set(_names(incoming / COMPLETE))
    except FileNotFoundError:
        return False
    for name in os.listdir(root):
        if (is_taken(name) or _STALE.fullmatch(name)) and name not in names:
            (root / name).unlink()
    for name in sorted(names):
        if (incoming / name).exists():
            os.replace(incoming / name, root / name)
    (root / BEHIND).unlink(missing_ok=True)
    disk.sync_directory(str(incoming))
    disk.sync_directory(data_dir)
    # It must be gone before anything is written that it does not name.
    (incoming / COMPLETE).unlink()
    disk.sync_directory(str(incoming))
    shutil.rmtree(incoming)
    logger.warning("this directory is a copy of a peer now; its own log was too far behind")
    return True


def _node_in(path: Path) -> int:
    """Return the node that a file names; 0 when there is no such file or it is damaged."""
    try:
        return int(json.loads(path.read_bytes())["node"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def _names(path: Path) -> list[str]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return [str(name) for name in found["names"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(str(path), 0, f"it cannot be read: {error}") from error
