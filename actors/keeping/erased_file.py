"""Reads and writes `erased.bin`, which repeats the list of erasures outside the state.

A node whose state is older than the file (a restored backup) knows from it what it must erase
again.  The file only ever grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from meterd.actors.files.disk import atomic_write
from meterd.core.state.erasures import Erasure
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import Damaged

FILE_NAME = "erased.bin"


def read_erasures(directory: str) -> list[Erasure]:
    """Return the erasures that the file knows; none when there is no file.  Raises Corrupt."""
    path = Path(directory, FILE_NAME)
    try:
        state: dict[str, Any] = checkpoint_format.read_state(path.read_bytes())
    except FileNotFoundError:
        return []
    except Damaged as damage:
        raise Corrupt(str(path), damage.offset, damage.reason) from damage
    return [Erasure.from_list(fields) for fields in state["erasures"]]


def add_erasures(directory: str, erasures: Iterable[Erasure]) -> None:
    """Write these, and what the file knows beyond them.  Raises Corrupt, DiskFull, OSError."""
    known = {one.id: one for one in erasures}
    for one in read_erasures(directory):
        known.setdefault(one.id, one)
    state = {"kind": "erasures", "erasures": [one.to_list() for one in known.values()]}
    atomic_write(Path(directory, FILE_NAME), checkpoint_format.encode(state, {}))


def carry_over(old: str, new: str) -> int:
    """Let a directory know the erasures of another one; return how many it did not know.

    Raises Corrupt, DiskFull, OSError.
    """
    known = {one.id for one in read_erasures(new)}
    more = [one for one in read_erasures(old) if one.id not in known]
    if more:
        add_erasures(new, [*read_erasures(new), *more])
    return len(more)
