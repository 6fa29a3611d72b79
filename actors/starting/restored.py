"""What a restored directory says about itself (`restored.json`), and what follows: nothing expires.

Data that was restored is often older than the retention; deleting it at the first sweep would undo
the restore.  So until `retention.grace_after_restore` is over, the horizon does not move and no
file is deleted.  A shorter grace (reloadable) releases it.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from meterd.actors.files.disk import atomic_write
from meterd.actors.files.sealed_json import SIZE_MAX, seal, unseal
from meterd.protocol.errors import Corrupt

FILE_NAME = "restored.json"
MAGIC = "meterd restored"
NS = 1_000_000_000


@dataclass(frozen=True)
class Restored:
    """The restore that made a directory."""

    backup: str
    restored: int  # UTC ns
    sequence: int  # of the last record that came back
    incarnation: int  # of the node that the backup was made of


def write(directory: str, restored: Restored) -> None:
    """Say that a directory was restored.  Raises DiskFull, FsyncFailed, OSError."""
    body = {"magic": MAGIC, **asdict(restored)}
    atomic_write(os.path.join(directory, FILE_NAME), seal(body))


def read(directory: str) -> Restored | None:
    """Return the restore that made a directory; None when none did.  Raises Corrupt."""
    path = Path(directory, FILE_NAME)
    try:
        with path.open("rb") as file:
            body = unseal(file.read(SIZE_MAX))
        if body.pop("magic") != MAGIC:
            raise ValueError("it says nothing of a restore")
        return Restored(**body)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(str(path), 0, str(error)) from error


def moment(directory: str) -> int:
    """Return when (UTC ns) a directory was restored; 0 when it was not.  Raises Corrupt."""
    found = read(directory)
    return 0 if found is None else found.restored


def held_until(directory: str, grace: float) -> int:
    """Return the moment (UTC ns) until which nothing may expire; 0 when nothing was restored.

    `grace` is in seconds.  Raises Corrupt.
    """
    begun = moment(directory)
    return begun + int(grace * NS) if begun else 0
