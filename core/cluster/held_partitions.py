"""Says of which partitions a node holds a replica: those that may still be applied here.

Too many do no harm but that less is dropped; one too few would have identities dropped that its log
still asks for.  So a partition is held when the plan gives it to the node, when the node is in its
configuration as applied, and for an hour after the last of its ops: whoever catches up applies ops
of a time when the node was no member.  What has left is told so (`raft/leavers.py`).

Does not know: what follows from it (`core/state/horizons.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.cluster.members import Members
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.raft_messages import Configuration, node_of

QUIET_SECONDS: Final = 3_600.0


class HeldPartitions:
    """Ask it now and then; times are monotonic seconds."""

    def __init__(self) -> None:
        self._index = np.zeros(PARTITION_COUNT, np.uint64)
        self._moved_at = np.full(PARTITION_COUNT, -QUIET_SECONDS)

    def look(
        self,
        own: int,
        members: Members,
        configurations: Mapping[int, Configuration],
        applied: NDArray[Any],
        now: float,
    ) -> NDArray[np.bool_]:
        """Return bool[256] for the member `own`; configurations, applied: of each group, as
        applied here."""
        index = applied[:PARTITION_COUNT].astype(np.uint64)
        self._moved_at[index != self._index] = now
        self._index = index
        held: NDArray[np.bool_] = now - self._moved_at < QUIET_SECONDS
        held[members.held(node_of(own))] = True
        for group, configuration in configurations.items():
            if group < PARTITION_COUNT and own in configuration.members:
                held[group] = True
        return held
