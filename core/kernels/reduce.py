"""Adds cells up, and works out when members were present: what is left after rows are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.cells import clear_cell, merge_cell

Array = Any

ADD = 1
STILL_PRESENT = np.int64(2**63 - 1)


@njit(cache=True)
def reduce_cells(cells: Array, buckets: Array, out: Array) -> None:
    """Merge each cell into the bucket it belongs to; bucket -1 leaves it out."""
    for bucket in range(len(out)):
        clear_cell(out, bucket)
    for c in range(len(cells)):
        if buckets[c] >= 0:
            merge_cell(out, buckets[c], cells, c)


@njit(cache=True)
def presence(
    buckets: Array, members: Array, timestamps: Array, operations: Array, out: Array
) -> Any:
    """Write when members were present into out (int64[n, 3]: row, since, until); return how many.

    Rows are sorted by (bucket, member, timestamp, position).  A member is present from its first
    `add` up to its next `remove`; a `remove` of nobody and an `add` of somebody present say
    nothing, and nobody is present for no time.  `row` names bucket and member.
    """
    n = 0
    is_present = False
    since = np.int64(0)
    for i in range(len(buckets)):
        if is_present and (
            buckets[i] != buckets[i - 1]
            or members[i, 0] != members[i - 1, 0]
            or members[i, 1] != members[i - 1, 1]
        ):
            out[n, 0], out[n, 1], out[n, 2] = i - 1, since, STILL_PRESENT
            n += 1
            is_present = False
        if operations[i] == ADD:
            if not is_present:
                is_present, since = True, timestamps[i]
        elif is_present:
            if since < timestamps[i]:
                out[n, 0], out[n, 1], out[n, 2] = i, since, timestamps[i]
                n += 1
            is_present = False
    if is_present:
        out[n, 0], out[n, 1], out[n, 2] = len(buckets) - 1, since, STILL_PRESENT
        n += 1
    return n
