"""Keeps one checkpoint whole while `backup hold` lasts, under names of its own (`held.…`).

Checkpoints and files of identities are replaced every few seconds under load, so a copy that takes
longer may find no two that belong together.  Hard links cost nothing; a copy that needs them gives
them their names back when it is started (`actors/copies.py`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from meterd.core import inventory
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Internal

PREFIX = "held."
CHECKPOINT = "checkpoint.bin"
ATTEMPTS = 20


def hold(directory: str) -> None:
    """Link the newest checkpoint and what it names.  Raises Internal, OSError."""
    release(directory)
    root = Path(directory)
    for _ in range(ATTEMPTS):
        try:
            os.link(root / CHECKPOINT, root / (PREFIX + CHECKPOINT))
            raw = _front(root / (PREFIX + CHECKPOINT))
            for name in inventory.identity_files(checkpoint_format.read_state(raw)):
                os.link(root / name, root / (PREFIX + name))
            return
        except FileNotFoundError:  # replaced between two looks, or there is none yet
            release(directory)
            if not (root / CHECKPOINT).exists():
                return
    raise Internal("the checkpoint was replaced again and again")


def release(directory: str) -> None:
    """Remove the links."""
    for name in os.listdir(directory):
        if name.startswith(PREFIX):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))


def _front(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(checkpoint_format.HEAD_SIZE)
        return head + file.read(checkpoint_format.front_size(head) - len(head))
