"""Gives a peer the files of this directory, piece by piece, while the node runs.

Questions are bootstrap questions with a key `copy`: `list`, `read` and `leave`.  Only members of
the cluster are answered.  A piece comes with a checksum and with a stamp of its file: a name may be
given to another file between two pieces.  `leave`: whoever uses a copy is away meanwhile, and of
several that ask one may be.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from crc32c import crc32c

from meterd.actors.files.listed_files import sizes_in
from meterd.actors.starting import peer_copy
from meterd.actors.starting.identity import Identity
from meterd.core.cluster.members import Members
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import ACTIVE_NAME

PIECE_SIZE: Final = 256 * 1024
OFFSET_MAX: Final = 1 << 62
# For so long nobody else is given leave, unless who was has started again.
LEAVE_NS: Final = 60 * 10**9


class CopyGiver:
    """Answers questions about one directory."""

    def __init__(self, data_dir: str, who: Identity) -> None:
        self._root = Path(data_dir)
        self._who = who
        self.applied: Callable[[], bytes] = bytes  # u64[257]: up to where groups are applied here
        self.boot_of: Callable[[int], int] = lambda _node: 0  # the last start of another node
        self._left = 0  # who was given leave, and when (UTC ns)
        self._left_at = 0

    def answer(self, question: Mapping[str, Any], members: Members | None) -> dict[str, Any] | None:
        """Return the fields of an answer; None: whoever asks gets none."""
        if not self._is_member(question, members):
            return None
        reply: dict[str, Any] = {"copy": question["copy"], "id": question.get("id")}
        try:
            if question["copy"] == "list":
                donors = [self._who.node_id, *peer_copy.copied_from(str(self._root))]
                return reply | {"donors": donors, "files": self._files(), "applied": self.applied()}
            if question["copy"] == "leave":
                return reply | {"leave": self._give_leave(int(question["node"]))}
            name, offset = question.get("name"), question.get("offset")
            if question["copy"] == "read" and type(name) is str and type(offset) is int:
                return reply | self._piece(name, offset)
        except (OSError, Corrupt) as error:
            return reply | {"failed": str(error)}
        return None

    def _give_leave(self, node: int) -> bool:
        now = time.time_ns()
        is_back = self.boot_of(self._left) > self._left_at
        if node != self._left and not is_back and abs(now - self._left_at) < LEAVE_NS:
            return False
        self._left, self._left_at = node, now
        return True

    def _is_member(self, question: Mapping[str, Any], members: Members | None) -> bool:
        if members is None or question.get("cluster") != self._who.cluster_id_hex:
            return False
        asker = (question.get("node"), question.get("incarnation"))
        return any((one.node, one.incarnation) == asker for one in members.present)

    def _files(self) -> list[list[Any]]:
        listed = sizes_in(str(self._root))
        return [[name, size] for name, size in listed if peer_copy.is_taken(name)]

    def _piece(self, name: str, offset: int) -> dict[str, Any]:
        if not peer_copy.is_taken(name) or not 0 <= offset < OFFSET_MAX:
            return {"gone": True}
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return {"gone": True}
        try:
            data = os.pread(descriptor, PIECE_SIZE, offset)
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        # The log's last file is written all the time, and its blocks check.
        moved = 0 if name == ACTIVE_NAME else found.st_mtime_ns
        stamp = f"{found.st_ino}-{moved}"
        return {"data": data, "crc": int(crc32c(data)), "size": found.st_size, "stamp": stamp}
