"""Shares with usage, without a message, until when this node may answer alone for what it leads.

Two words for each group, in memory that the supervisor maps before it forks: until when the lease
holds, and the index that must be applied before anything is answered by it.  replication writes
them, usage reads them; 8 bytes that are aligned are read and written whole.

The index is how far the group is committed, the first op of the leader's term included; it is
written before anything leaves that tells other nodes so.  They may have applied that, and shown it,
before this node has: a question that came afterwards waits for it.
"""

from __future__ import annotations

import mmap
import time

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.log_format import GROUP_COUNT

UNTIL, INDEX = range(2)
# Nobody else can ever lead a group of one.
FOREVER = (1 << 63) - 1
NO_LEASE = -1

Words = NDArray[np.int64]  # [257, 2]: CLOCK_MONOTONIC ns (0: no lease), index

_shared: Words | None = None


def shared() -> Words:
    """Return the words of this node; the first call makes them, before the fork."""
    global _shared
    if _shared is None:
        memory = mmap.mmap(-1, GROUP_COUNT * 2 * 8)  # shared with whoever is forked
        _shared = np.frombuffer(memory, np.int64).reshape(GROUP_COUNT, 2)
    return _shared


def clear(words: Words) -> None:
    """End every lease: replication has started anew."""
    words[:, UNTIL] = 0


def must_see(words: Words, groups: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return which index of each group an answer must hold, `NO_LEASE` where no lease holds now.

    The lease is read before the clock: then it held at that moment, whatever happens to this
    process in between.  What is read of the state afterwards is at least as new.
    """
    until, index = words[groups, UNTIL].copy(), words[groups, INDEX].copy()
    return np.where(time.monotonic_ns() < until, index, NO_LEASE)


def held(words: Words, groups: NDArray[np.intp], applied: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for which groups the lease holds now and all that an answer must hold is applied."""
    index = must_see(words, groups)
    return (index != NO_LEASE) & (applied >= index)
