"""Keeps who has which incarnation of a first node: one directory each, for ever.

`claim.json` is the id of an empty directory that asks for an identity; it goes when `node.json` is
there.  `grants.json` lies with the founder: the ids of the directories that it has given the
identities of the other first nodes.  Both are durable before anything that depends on them is sent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

from meterd.actors import endings
from meterd.actors.files import disk
from meterd.actors.files.sealed_json import SIZE_MAX, seal, unseal
from meterd.protocol.errors import BootFailed, StorageError

CLAIM_FILE = "claim.json"
GRANTS_FILE = "grants.json"
ID_SIZE = 16

logger = logging.getLogger(__name__)


def directory_id(data_dir: str) -> str:
    """Return the id of an empty directory, hexadecimal; make it when there is none.

    Raises BootFailed.
    """
    path = Path(data_dir, CLAIM_FILE)
    read = _read(path)
    if "directory" in read:
        return read["directory"]
    made = secrets.token_hex(ID_SIZE)
    try:
        _write(path, {"directory": made})
    except (OSError, StorageError) as error:
        raise BootFailed(endings.IO_ERROR, f"cannot write {path}: {error}") from error
    return made


def settle(data_dir: str) -> None:
    """The directory has its identity: its id is told no more."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(Path(data_dir, CLAIM_FILE))


class Grants:
    """What the founder has given."""

    def __init__(self, data_dir: str) -> None:
        """Raises BootFailed when the file cannot be read.

        When it is damaged nobody is given anything any more: `node recover` helps who lacks it.
        The cluster needs the file only until its first nodes are there.
        """
        self._path = Path(data_dir, GRANTS_FILE)
        self._given: dict[str, str] | None = None
        try:
            self._given = _read(self._path)
        except BootFailed as failure:
            if failure.exit_code != endings.CORRUPT:
                raise
            logger.error("%s; a first node that has no identity yet gets none", failure.reason)

    def grant(self, node: int, directory: str) -> bool:
        """Note that a node's identity is given to a directory; False: it was to another one.

        Raises StorageError, OSError.
        """
        if self._given is None:
            return False
        before = self._given.get(str(node))
        if before is None:
            given = {**self._given, str(node): directory}
            _write(self._path, given)
            self._given = given
        return before in (None, directory)


def _write(path: Path, fields: dict[str, str]) -> None:
    disk.atomic_write(path, seal(fields))


def _read(path: Path) -> dict[str, str]:
    """Read what `_write` wrote; nothing where there is no file.  Raises BootFailed."""
    try:
        with path.open("rb") as file:
            fields = unseal(file.read(SIZE_MAX))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BootFailed(endings.IO_ERROR, f"cannot read {path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BootFailed(endings.CORRUPT, f"{path} at offset 0: it is damaged: {error}") from error
    return {str(key): str(value) for key, value in fields.items()}
