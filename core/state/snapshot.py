"""The state machine at one moment, given to a checkpoint while apply goes on.

What only grows is read where it lies, as far as it reached at that moment.  Rows of cells change in
place: whoever applies hands them over in turns (`copy_cells`), and a row that changes before its
turn is kept first (kernels/snapshot.py).  Chains and free rows are read in whatever state they are;
a load makes them anew.

An erased account changes what only grows, so it *spoils* a snapshot that is under way: what was
read of it must not be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import snapshot as kernels
from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.kernels.tables import Tables
from meterd.core.state.identity_runs import Entries

# The section that `copy_cells` brings.
CELLS: Final = "cells"
# Rows that only grow are copied in pieces of this many bytes before they are looked at twice.
PIECE_SIZE: Final = 1024 * 1024

Arrays = dict[str, NDArray[Any]]


class Snapshot:
    """Made by `StateMachine.save`; valid until `StateMachine.end_save`."""

    def __init__(
        self,
        state: Mapping[str, Any],
        growing: Arrays,
        fixed: Arrays,
        identities: Entries,
        tables: Tables,
        cells: int,
    ) -> None:
        """`growing` may change beyond what was there, and in chains; `fixed` never."""
        self.state = dict(state)
        self.growing, self.fixed = growing, fixed
        self.identities = identities  # in no run yet; valid until they are flushed
        self.cells = cells
        self.spoiled = False
        self._tables = tables
        facts = tables.snapshot.facts
        facts[kernels.COVERED], facts[kernels.COPIED], facts[kernels.KEPT] = cells, 0, 0

    @property
    def kept(self) -> int:
        """How many rows have changed before their turn."""
        return int(self._tables.snapshot.facts[kernels.KEPT])

    def copy_cells(self, out: NDArray[np.int64]) -> int:
        """Write the next rows into `out`, int64[n, 16]; return how many, 0 behind the last.

        Only between two records, in the thread that applies them.
        """
        return int(kernels.copy_out(self._tables.snapshot, self._tables.cells, out))

    def end(self) -> None:
        """Keep no rows any more."""
        snapshot = self._tables.snapshot
        snapshot.place[snapshot.facts[kernels.COPIED] : self.cells] = 0
        snapshot.facts[:] = 0

    def arrays(self) -> Arrays:
        """Return a copy of everything, at once."""
        cells = np.empty((self.cells, CELL_WORDS), np.int64)
        self.copy_cells(cells)
        return {name: rows.copy() for name, rows in (self.growing | self.fixed).items()} | {
            CELLS: cells
        }


def copied(rows: NDArray[Any], room: NDArray[np.uint8]) -> Iterator[memoryview]:
    """Yield the bytes of rows in pieces, each copied into `room` and valid until the next."""
    source = rows.reshape(-1).view(np.uint8)
    for at in range(0, len(source), len(room)):
        piece = room[: min(len(room), len(source) - at)]
        piece[:] = source[at : at + len(piece)]
        yield piece.data
