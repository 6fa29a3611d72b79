"""Knows who leads which group, as replication said last.

A node alone leads everything and is told nothing; in a cluster nothing is known before the first
`leaders`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meterd.actors.frames.sockets import Frame
from meterd.actors.options import Options
from meterd.protocol.errors import NotLeader
from meterd.protocol.log_format import GROUP_COUNT

# The version of the map of a node alone, and of one that has not been told yet.
FIRST_VERSION = 1


class LeaderMap:
    """Changes only through `take`."""

    def __init__(self, options: Options) -> None:
        self.alone = not options.node.peers
        self.own = options.node.id or 1  # a node alone needs no number; 0 means that none leads
        self.known = self.alone
        self.version = FIRST_VERSION
        # By group; 0: not known.
        self.nodes: NDArray[np.uint8] = np.full(GROUP_COUNT, self.own * self.alone, np.uint8)

    def take(self, frames: Sequence[Frame]) -> None:
        """Take over a `leaders` message: version, and the node of each group."""
        if self.alone:
            return
        self.version = int.from_bytes(frames[1], "little")
        self.nodes = np.frombuffer(frames[2], np.uint8)
        self.known = True

    @property
    def all_mine(self) -> bool:
        """Does this node lead every group?"""
        return self.alone or bool((self.nodes == self.own).all())

    def is_mine(self, group: int) -> bool:
        """Does this node lead the group?"""
        return self.alone or int(self.nodes[group]) == self.own

    def node_of(self, group: int) -> int:
        """Return the node that leads the group; 0: it is not known."""
        return self.own if self.alone else int(self.nodes[group])

    def leader_of(self, group: int) -> int:
        """Return the node that leads the group; raise NotLeader while nobody is known to."""
        if self.alone:
            return self.own
        node = self.node_of(group)
        if node == 0:
            raise NotLeader("no leader is known at the moment: one is being elected")
        return node
