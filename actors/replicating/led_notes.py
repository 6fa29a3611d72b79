"""What nodes say to each other about whom they lead, where not every node has every partition.

A node hears of a group's leader as a member of the group; of all other groups it would know
nothing, or what was so when it left them, and could pass nothing on.  So each node tells all others
which groups it leads, when that has changed and once a second: `led` [groups u16…, terms u32…].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from meterd.actors.frames.sockets import Frame
from meterd.core.cluster.members import REPLICAS, Members
from meterd.core.cluster.replicas import Replicas
from meterd.core.raft.node import Request
from meterd.protocol.log_format import GROUP_COUNT

LED: Final = b"led"
REPEAT_SECONDS: Final = 1.0
# A failing node's groups get their leaders one after the other.
CHANGE_SECONDS: Final = 0.05


class LedNotes:
    """See the module."""

    def __init__(self) -> None:
        self._told: tuple[bytes, bytes] = (b"", b"")
        self._told_at = -REPEAT_SECONDS

    def due(self, replicas: Replicas, members: Members, now: float) -> list[bytes] | None:
        """Return what to tell all other nodes at monotonic second `now`, if anything."""
        passed = now - self._told_at
        if passed < CHANGE_SECONDS or len(members.present) <= REPLICAS:
            return None
        groups, terms = replicas.led()
        said = groups.astype("<u2").tobytes(), terms.astype("<u4").tobytes()
        if said == self._told and passed < REPEAT_SECONDS:
            return None
        self._told, self._told_at = said, now
        return [LED, *said]


def take(replicas: Replicas, member: int, frames: Sequence[Frame]) -> list[Request]:
    """Take what a member says; return what to ask the engine for.  Nonsense is passed over."""
    if len(frames) != 3 or len(frames[1]) % 2 or len(frames[1]) * 2 != len(frames[2]):
        return []
    groups = np.frombuffer(frames[1], "<u2").astype(np.int64)
    terms = np.frombuffer(frames[2], "<u4").astype(np.int64)
    if not len(groups) or groups.max() >= GROUP_COUNT:
        return []
    return replicas.hear_leader(member, groups, terms)
