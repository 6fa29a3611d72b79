"""Spreads replicas, or leaders, evenly over nodes and moves as few as that needs.

Rows (partitions) get a number of columns (nodes) each.  Of all ways in which no column has two more
than another, one with the fewest new places is found, by augmenting along cheapest paths (minimum
cost flow): what is to leave a column with too many goes, perhaps over others, to one with too few.
Where rows may not have every column, what finds no better place stays.  The same input gives the
same answer.

Does not know: nodes, groups.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]  # [rows, columns]
Ints = NDArray[np.int64]

# What a new place costs; to leave a place that should rather be kept costs one.
NEW: Final = 1 << 10
NEVER: Final = 1 << 40


def spread(now: Mask, allowed: Mask, wanted: int, keep: Mask) -> Mask:
    """Return which columns each row gets: `wanted` of those allowed, or all that are.

    now: those it has; keep: those of them that should rather stay where there is a choice.
    """
    return _Spreading(now, allowed, wanted, keep).result()


class _Spreading:
    """Invariant: of all ways with these loads, `held` is one that costs least."""

    def __init__(self, now: Mask, allowed: Mask, wanted: int, keep: Mask) -> None:
        self._allowed = allowed
        self._cost: Ints = np.where(now, 0, NEW) - (now & keep)
        self._columns = now.shape[1]
        self._held = np.zeros(now.shape, np.bool_)
        self._begin(wanted)
        total = int(self._held.sum())
        self._low, self._free = divmod(total, max(self._columns, 1))
        # Columns that may have one more than `low`; so many more may are `free`.
        self._more = np.zeros(self._columns, np.bool_)

    def _begin(self, wanted: int) -> None:
        """Give every row what costs least, whatever a column gets."""
        loads = [0] * self._columns
        for row, costs in enumerate(self._cost.tolist()):
            able = np.flatnonzero(self._allowed[row]).tolist()
            chosen = sorted(able, key=lambda one: (costs[one], loads[one], one))[:wanted]
            self._held[row, chosen] = True
            for column in chosen:
                loads[column] += 1

    def result(self) -> Mask:
        while path := self._cheapest():
            self._move(path)
        return self._held

    # A path goes over columns, and over `pool`: there a column hands the right to have one more
    # than `low` to another.  It ends where something is missing, or with a right that is free.

    def _cheapest(self) -> list[int]:
        """Return the columns (and `pool`) on the cheapest path; empty: there is none."""
        count = self._columns
        pool, end = count, count + 1
        loads = self._held.sum(axis=0)
        self._weights()
        arcs = np.full((count + 2, count + 2), NEVER, np.int64)
        arcs[:count, :count] = self._weight
        arcs[:count, end][loads < self._low] = 0
        arcs[:count, pool][(loads >= self._low) & ~self._more] = 0
        arcs[pool, :count][self._more] = 0
        if self._free:
            arcs[pool, end] = 0
        far = np.full(count + 2, NEVER, np.int64)
        far[:count][loads - np.minimum(loads, self._low) - self._more > 0] = 0
        before = np.full(count + 2, -1, np.int64)
        while True:
            ways = far[:, None] + arcs
            best = ways.argmin(axis=0)
            nearer = ways[best, np.arange(count + 2)] < far
            if not nearer.any():
                break
            far[nearer] = ways[best, np.arange(count + 2)][nearer]
            before[nearer] = best[nearer]
        if far[end] >= NEVER // 2:
            return []
        path, at = [], int(before[end])
        while at >= 0:
            path.append(at)
            at = int(before[at])
        return path[::-1]

    def _weights(self) -> None:
        """Find what it costs at least to move something from each column to each other one."""
        give = np.where(self._held, -self._cost, NEVER)
        take = np.where(self._allowed & ~self._held, self._cost, NEVER)
        both = give[:, :, None] + take[:, None, :]
        self._row = both.argmin(axis=0)
        self._weight = np.minimum(both.min(axis=0), NEVER)

    def _move(self, path: list[int]) -> None:
        pool = self._columns
        for source, target in zip(path, [*path[1:], -1], strict=True):
            if source == pool:
                if target < 0:
                    self._free -= 1
                else:
                    self._more[target] = False
            elif target == pool:
                self._more[source] = True
            elif target >= 0:
                row = self._row[source, target]
                self._held[row, source], self._held[row, target] = False, True
