"""Reserves memory for tables that grow in place.

A reservation takes address space only; pages become real when they are first written.  So a
table may be declared at its limit, never moves, and never has to be copied to grow.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

# Linux: do not count the reservation against the overcommit limit (module mmap lacks the name).
MAP_NORESERVE = 0x4000


def reserve(shape: tuple[int, ...], dtype: Any, large_pages: bool = False) -> Any:
    """Return a zeroed array of the given shape whose pages are not yet in memory.

    `large_pages` is for tables read at random: fewer entries of the processor's page cache
    cover them, but each first touch takes 2 MiB.
    """
    count = math.prod(shape)
    size = max(count * np.dtype(dtype).itemsize, 1)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    if large_pages:
        area.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(area, dtype, count).reshape(shape)
