"""What lies before the end of a feed, of what is applied."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from meterd.core.feed_ends import FeedEnds
from meterd.protocol.log_format import GROUP_COUNT


class Queue:
    """As much of a commit queue as is looked at."""

    def __init__(self) -> None:
        self.groups = SimpleNamespace(index=np.zeros(GROUP_COUNT, np.uint64))
        self.position: Any = (1, 0, 5, 5, 5)
        self.end: Any = [1, 0, 5, 5, 5]


def first(said: tuple[bytes, bytes]) -> tuple[int, int]:
    """What is applied of the first group, and what of that is settled."""
    applied, settled = (np.frombuffer(one, np.uint64) for one in said)
    return int(applied[0]), int(settled[0])


def test_what_is_applied_counts_once_the_position_has_passed_it() -> None:
    queue, ends = Queue(), FeedEnds()
    queue.groups.index[0] = 3
    assert first(ends.now(queue)) == (3, 3)  # type: ignore[arg-type]
    queue.groups.index[0] = 5  # behind a block of which something waits
    queue.end = (1, 200, 0, 0, 0)
    assert first(ends.now(queue)) == (5, 3)  # type: ignore[arg-type]
    queue.groups.index[0], queue.end = 7, (2, 50, 0, 0, 0)
    queue.position = (1, 100, 0, 0, 0)
    assert first(ends.now(queue)) == (7, 3)  # type: ignore[arg-type]
    queue.position = (1, 200, 0, 0, 0)
    assert first(ends.now(queue)) == (7, 5)  # type: ignore[arg-type]
    queue.groups.index[0] = 9
    queue.position = (2, 50, 0, 0, 0)
    assert first(ends.now(queue)) == (9, 9)  # type: ignore[arg-type]
