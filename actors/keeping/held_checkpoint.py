"""Keeps whole checkpoints for copies of the directory, under names of their own.

Checkpoints and files of identities are replaced every few seconds under load, so a copy that takes
longer may find no two that belong together.  Two are always kept, `held-0.…` and `held-1.…`, each
for two periods in turn, so one of them stays as it is for a period after a copy has begun;
`backup hold` keeps one for as long as it lasts (`held.…`).  Hard links cost no time, and space only
for what has been replaced meanwhile; a copy that needs one gives its files their names back when it
is started (`actors/starting/copies.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

from meterd.actors.files import disk
from meterd.core.housekeeping import inventory
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Internal

PREFIX = "held."
IN_TURN = ("held-0.", "held-1.")
# The checkpoint that a backup reads.
READ = "held-read."
CHECKPOINT = "checkpoint.bin"
ATTEMPTS = 20


def renew(directory: str, now: float, period: float) -> None:
    """Have the older of the two that are kept in turn be the newest checkpoint, when it is time.

    Times in seconds since the epoch.  Raises Internal, OSError.
    """
    root = Path(directory)
    newest = _identity(root / CHECKPOINT)
    if newest is None:
        return
    kept = {prefix: _identity(root / (prefix + CHECKPOINT)) for prefix in IN_TURN}
    ages = {prefix: found[1] if found else 0.0 for prefix, found in kept.items()}
    if newest in kept.values() or now - max(ages.values()) < period:
        return
    hold(directory, min(IN_TURN, key=lambda prefix: ages[prefix]))


def _identity(path: Path) -> tuple[int, float] | None:
    """Return inode and age of a file; None when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime


def hold(directory: str, prefix: str = PREFIX) -> None:
    """Link the newest checkpoint and what it names.  Raises Internal, OSError."""
    release(directory, prefix)
    root = Path(directory)
    for _ in range(ATTEMPTS):
        try:
            os.link(root / CHECKPOINT, root / (prefix + CHECKPOINT))
            raw = _front(root / (prefix + CHECKPOINT))
            for name in inventory.identity_files(checkpoint_format.read_state(raw)):
                os.link(root / name, root / (prefix + name))
            return
        except FileNotFoundError:  # replaced between two looks, or there is none yet
            release(directory, prefix)
            if not (root / CHECKPOINT).exists():
                return
    raise Internal("the checkpoint was replaced again and again")


def release(directory: str, *prefixes: str) -> None:
    """Remove links."""
    for name in os.listdir(directory):
        if name.startswith(prefixes):
            disk.remove_in_steps(Path(directory, name))


def _front(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(checkpoint_format.HEAD_SIZE)
        return head + file.read(checkpoint_format.front_size(head) - len(head))
