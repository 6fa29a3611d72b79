"""Resolves the slices of a record that waits: which may be applied, which are passed over.

The commit queue asks twice for nearly every record of a cluster, so this is no numpy.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from meterd.protocol.log_format import NOT_HERE, REPAIR

Array = Any

# States of a slice.  TAKEN: by the call of `resolve` that returns.
WAITING, APPLIED, REPLACED, ABSENT, PASSED, TAKEN = range(6)


@njit(cache=True)
def find_cuts(slices: Array, last_index: Array, out: Array) -> int:
    """Find slices that replace earlier ones of their group; return how many.

    last_index u64[257]: of each group, moved on
    out        int64[257, 2]: group, first index that is gone
    """
    count = 0
    for i in range(len(slices)):
        if slices[i].flags & (NOT_HERE | REPAIR):
            continue
        group, index = int(slices[i].partition), slices[i].index
        if index <= last_index[group]:
            out[count, 0], out[count, 1] = group, index
            count += 1
        last_index[group] = index
    return count


@njit(cache=True)
def resolve(
    slices: Array, states: Array, applied: Array, committed: Array, base: Array, may: bool
) -> Any:
    """Change the states (u8) of slices that wait; return (how many are taken, how many wait).

    applied, committed, base u64[257]: by group; `base` has what a checkpoint had applied where the
    record is replayed, else 0.  may: is what the record was made under applied?
    """
    taken = waiting = 0
    for i in range(len(slices)):
        if states[i] != WAITING:
            continue
        group, index = int(slices[i].partition), slices[i].index
        if slices[i].flags & NOT_HERE:
            states[i] = ABSENT
        elif index <= base[group]:
            states[i] = PASSED
        elif index <= applied[group]:
            states[i] = REPLACED  # a repair of what was not lost
        elif may and index == applied[group] + 1 and index <= committed[group]:
            states[i] = TAKEN
            taken += 1
        else:
            waiting += 1
    return taken, waiting
