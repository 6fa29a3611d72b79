"""What usage is told of records and of durable blocks, by the WAL-writer or replication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from meterd.actors.frames.sockets import Frame
from meterd.actors.wal_writer import COMMITTED
from meterd.core.log.commit_queue import Location, LogPosition

# What replication gives usage of each record: sequence, head, payload, origin.
RECORD_FRAMES = 4


def durable_blocks(
    frames: Sequence[Frame],
) -> Iterator[tuple[Sequence[Location], LogPosition, bool]]:
    """Yield records, the place of the next block, and whether all of it is committed, too.

    Frames: these three of each block, one after the other.
    """
    for place in range(0, len(frames), 3):
        located, end, flag = frames[place : place + 3]
        records = np.frombuffer(located, np.uint64).reshape(-1, 4).tolist()
        yield records, np.frombuffer(end, np.uint64).tolist(), flag == COMMITTED
