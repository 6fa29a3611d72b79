"""What the usage actor knows of who leads which group, and what it tells replication of itself.

Replication says who leads (`leaders`) and hears how far each group is applied (`applied`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.log_format import GROUP_COUNT, META_GROUP
from meterd.protocol.raft_messages import node_of

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

# How often replication hears how far groups are applied.
APPLIED_SECONDS = 0.25


class Leaders:
    """See the module."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._own = node_of(usage.who.member)
        self._nodes: NDArray[np.uint8] = np.zeros(GROUP_COUNT, np.uint8)  # 0: not known
        # Index that must be applied before this node answers for a group that it leads.
        self._wanted: NDArray[np.uint64] = np.zeros(GROUP_COUNT, np.uint64)
        self._told: NDArray[np.uint64] = np.zeros(GROUP_COUNT, np.uint64)
        self._tell_due = 0.0

    @property
    def known(self) -> bool:
        """Has replication said who leads?"""
        return bool(self._nodes.any())

    @property
    def led(self) -> NDArray[np.intp]:
        """Return the partitions that this node leads."""
        return np.flatnonzero(self._nodes[:META_GROUP] == self._own)

    @property
    def ready(self) -> bool:
        """Is each group that this node leads applied up to its term's no-op?

        Not where it leads all: then everything in its log is its own to answer for.
        """
        mine = self._nodes == self._own
        if not self.known or mine.all():
            return False
        return bool((self._usage.groups.index >= self._wanted)[mine].all())

    def take(self, frames: list[bytes]) -> None:
        """Take a message: version, node number of each group's leader.

        A new leader's no-op was made before it is named, so what has come is what must be applied.
        """
        nodes = np.frombuffer(frames[2], np.uint8)
        new = (nodes == self._own) & (self._nodes != self._own)
        self._nodes = nodes
        if new.any():
            self._wanted[new] = self._usage.queue.last_index()[new]
            self._usage.note_leaders()

    def tell_applied(self, now: float) -> None:
        """Tell replication which groups have moved on, at most a few times a second."""
        if now < self._tell_due:
            return
        index = self._usage.groups.index
        moved = np.flatnonzero(index != self._told)
        if len(moved):
            self._told[moved] = index[moved]
            words = [moved.astype(np.uint16).tobytes(), index[moved].tobytes()]
            self._usage.send("replication", [b"applied", *words])
            self._tell_due = now + APPLIED_SECONDS
