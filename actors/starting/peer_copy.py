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
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from meterd.actors.files import disk
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import GROUP_COUNT

BEHIND = "behind.json"  # a peer says that no log has any more what this node lacks
INCOMING = "incoming"
COMPLETE = "complete.json"
DONOR = "donor.json"  # whose files lie in `incoming/`
ADOPTED = "adopted"  # in `incoming/`: what was made of it
PAUSE_SECONDS = 300.0  # until a copy is fetched again when none could be used
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


def note_behind(data_dir: str, node: int, group: int) -> None:
    """Write down that this node needs a copy, of which group, and who says so.

    Raises DiskFull, OSError.
    """
    _note(data_dir, {"node": node, "group": group, "after": not_before(data_dir)})


def note_fetched(data_dir: str, donor: int) -> None:
    """Write down that the files of a donor have come: the next start uses them.

    Raises DiskFull, OSError.
    """
    group = behind_in(data_dir)
    _note(data_dir, {"node": donor, "group": group, "fetched": True})


def is_fetched(data_dir: str) -> bool:
    """Have the files of a donor come?"""
    return bool(_noted(data_dir).get("fetched"))


def behind_whom(data_dir: str) -> int:
    """Return the node that says that this one needs a copy; 0: nobody."""
    found = _noted(data_dir).get("node")  # where it is damaged a leader says it again
    return found if type(found) is int else 0


def _note(data_dir: str, said: dict[str, Any]) -> None:
    disk.atomic_write(Path(data_dir, BEHIND), json.dumps(said).encode() + b"\n")


def _noted(data_dir: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(data_dir, BEHIND).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if type(found) is dict else {}


def behind_in(data_dir: str) -> int | None:
    """Return the group that this node needs a copy for; None: any."""
    found = _noted(data_dir).get("group")
    return found if type(found) is int and 0 <= found < GROUP_COUNT else None


def give_up(data_dir: str) -> None:
    """Nobody can give a copy now; if one is still needed later, a leader says so again.

    Raises DiskFull, OSError.
    """
    drop(data_dir)
    _note(data_dir, {"after": time.time() + PAUSE_SECONDS})


def drop(data_dir: str) -> None:
    """Remove what was copied."""
    shutil.rmtree(Path(data_dir, INCOMING), ignore_errors=True)


def not_before(data_dir: str) -> float:
    """Return before when (seconds since the epoch) no copy should be fetched; 0: at once."""
    found = _noted(data_dir).get("after")
    return float(found) if isinstance(found, int | float) else 0.0


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
        if name == ADOPTED:  # of an attempt that was not finished, as is what nobody takes
            shutil.rmtree(incoming / name)
        elif name != DONOR and not is_taken(name):
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
    _complete(incoming, "", names)


def begin_adopted(data_dir: str) -> str:
    """Return an empty directory in `incoming/` for what is made of the copy.  Raises OSError."""
    path = Path(data_dir, INCOMING, ADOPTED)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o750)
    return str(path)


def complete_adopted(data_dir: str, names: Iterable[str]) -> None:
    """Have what was made of the copy count from now on, and of the old files those named.

    Raises DiskFull, FsyncFailed, OSError.
    """
    _complete(Path(data_dir, INCOMING), ADOPTED, sorted(names))


def _complete(incoming: Path, folder: str, names: list[str]) -> None:
    source = incoming / folder
    for name in os.listdir(source):
        if name not in names:
            continue
        descriptor = os.open(source / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            disk.sync_data(descriptor)
        finally:
            os.close(descriptor)
    disk.sync_directory(str(source))
    disk.sync_directory(str(incoming))
    said = {"names": names, "folder": folder}
    disk.atomic_write(incoming / COMPLETE, json.dumps(said).encode() + b"\n")


def finish(data_dir: str) -> bool:
    """Give a complete copy its place; return whether there was one.

    May be repeated after a crash at any step.  Raises Corrupt, FsyncFailed, OSError.
    """
    root, incoming = Path(data_dir), Path(data_dir, INCOMING)
    try:
        listed, folder = _said(incoming / COMPLETE)
    except FileNotFoundError:
        return False
    names, source = set(listed), incoming / folder
    for name in os.listdir(root):
        if (is_taken(name) or _STALE.fullmatch(name)) and name not in names:
            (root / name).unlink()
    for name in sorted(names):
        if (source / name).exists():
            os.replace(source / name, root / name)
    (root / BEHIND).unlink(missing_ok=True)
    disk.sync_directory(str(source))
    disk.sync_directory(data_dir)
    # It must be gone before anything is written that it does not name.
    (incoming / COMPLETE).unlink()
    disk.sync_directory(str(incoming))
    shutil.rmtree(incoming)
    if folder:
        logger.warning("partitions of a peer are in this directory now; its log lacked their past")
    else:
        logger.warning("this directory is a copy of a peer now; its own log was too far behind")
    return True


def _node_in(path: Path) -> int:
    """Return the node that a file names; 0 when there is no such file or it is damaged."""
    try:
        return int(json.loads(path.read_bytes())["node"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def _said(path: Path) -> tuple[list[str], str]:
    """Return the names of a complete copy's files, and the folder that they lie in."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return [str(name) for name in found["names"]], found.get("folder", "")
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(str(path), 0, f"it cannot be read: {error}") from error
