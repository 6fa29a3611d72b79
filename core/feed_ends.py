"""Up to which index of each group all lies before the end of what a feed reads.

A feed reads up to the oldest block of which something waits.  What is applied may lie behind that,
so the index that is applied says too much.  But what was applied when the durable log ended at some
place lies before that place; once a feed reads so far, it counts.

Does not know: files, messages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meterd.core.commit_queue import CommitQueue, Place
from meterd.protocol.log_format import GROUP_COUNT

Words = NDArray[np.uint64]


class FeedEnds:
    """Call `now` for each page."""

    def __init__(self) -> None:
        self._settled: Words = np.zeros(GROUP_COUNT, np.uint64)
        self._coming: tuple[Place, Words] | None = None  # where the log ended, what was applied

    def now(self, queue: CommitQueue[Any]) -> tuple[bytes, bytes]:
        """Return for each group (u64) what is applied, and what of that lies before the queue's
        position."""
        applied = queue.groups.index
        if self._coming is not None and tuple(queue.position[:2]) >= tuple(self._coming[0][:2]):
            self._settled, self._coming = self._coming[1], None
        if tuple(queue.position[:2]) == tuple(queue.end[:2]):
            self._settled, self._coming = applied.copy(), None
        elif self._coming is None:
            self._coming = (queue.end, applied.copy())
        return applied.tobytes(), self._settled.tobytes()
