"""Tells the retention sweeper which log files followers of this node may still need.

Looked at every few seconds: how far each follower is of the groups that this node leads, and which
files have become full since.  Several that did at once count as ending where the last one does, so
a follower may seem to need more than it does, never less.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from meterd.actors.actor import Actor
from meterd.core.housekeeping.follower_files import NOBODY_BEHIND, FollowerFiles, Indices
from meterd.core.raft.node import Node
from meterd.protocol.log_format import GROUP_COUNT

LOOK_SECONDS: Final = 10.0


class FollowerNeeds:
    """See the module."""

    def __init__(self, actor: Actor, node: Node, file_number: int) -> None:
        """`file_number`: of the active log file."""
        self._actor = actor
        self._node = node
        self._file_number = file_number
        self._files = FollowerFiles(self._standing()[0])
        self._due = 0.0

    def turn(self, now: float, file_number: int) -> None:
        """Look and tell, when that is due; `file_number`: of the active log file."""
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        last, match = self._standing()
        for full in range(self._file_number, file_number):
            self._files.rotated(full, last)
        self._file_number = file_number
        first = self._files.first_needed(match)
        # Said every time: the sweeper may have started anew.
        self._actor.send("retention_sweeper", [b"followers", first.to_bytes(8, "little")])

    def _standing(self) -> tuple[Indices, Indices]:
        """Return where each group's log ends, and up to where its last follower has it."""
        last = np.zeros(GROUP_COUNT, np.uint64)
        match = np.full(GROUP_COUNT, NOBODY_BEHIND, np.uint64)
        for group, view in self._node.views().items():
            last[group] = view.last
            if view.matches:
                match[group] = min(view.matches.values())
        return last, match
