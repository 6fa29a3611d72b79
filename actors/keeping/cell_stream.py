"""Carries a snapshot's cells from the actor's loop to the thread that writes them.

The loop fills buffers in turns (`feed`); the thread takes them one after another (`pieces`).  There
are BUFFERS of them, so neither runs ahead of the other by more.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from meterd.actors.files.direct_file import page_memory
from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.state.snapshot import Snapshot

BUFFERS = 6
BUFFER_ROWS = 8_192  # a mebibyte, a quarter of a millisecond
ROW_SIZE = 8 * CELL_WORDS
# The thread looks this often whether the loop has given up.
LOOK_SECONDS = 0.5


class Ended(Exception):
    """The snapshot was given up before all of it was written."""


class CellStream:
    """One at a time; begin with `begin`."""

    def __init__(self) -> None:
        self._room = [
            np.frombuffer(page_memory(BUFFER_ROWS * ROW_SIZE), np.int64).reshape(-1, CELL_WORDS)
            for _ in range(BUFFERS)
        ]
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._snapshot: Snapshot | None = None
        self._left = 0

    def begin(self, snapshot: Snapshot) -> None:
        """Carry the cells of this snapshot from now on."""
        self._free, self._filled = queue.SimpleQueue(), queue.SimpleQueue()
        for number in range(BUFFERS):
            self._free.put(number)
        self._snapshot, self._left = snapshot, snapshot.cells

    @property
    def unfinished(self) -> bool:
        """Are there cells that the loop has not handed over?"""
        return self._left > 0

    def feed(self, rows: int, wait: float = 0.0) -> None:
        """Hand over about so many rows, as far as there are free buffers; in the loop."""
        while self._left > 0 and rows > 0:
            try:
                number = self._free.get(wait > 0, wait) if wait else self._free.get_nowait()
            except queue.Empty:
                return
            assert self._snapshot is not None
            count = self._snapshot.copy_cells(self._room[number])
            self._filled.put((number, count))
            self._left -= count
            rows -= count

    def pieces(self, snapshot: Snapshot) -> Iterator[memoryview]:
        """Yield the bytes of all cells, each piece valid until the next; in the thread.

        Raises Ended.
        """
        left = snapshot.cells
        free, filled = self._free, self._filled
        while left > 0:
            if snapshot.spoiled:
                raise Ended
            try:
                number, count = filled.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            rows: NDArray[np.int64] = self._room[number][:count]
            yield rows.reshape(-1).view(np.uint8).data
            free.put(number)
            left -= count
