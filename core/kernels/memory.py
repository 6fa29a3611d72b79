"""Reserves memory for tables that grow in place.

A reservation takes address space only; pages become real when they are first written.  So a
table may be declared at its limit, never moves, and never has to be copied to grow.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

# Linux: do not count the reservation against the overcommit limit (absent from module mmap before 3.13).
MAP_NORESERVE = 0x4000


def reserve(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a zeroed array of the given shape whose pages are not yet in memory."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    area = mmap.mmap(-1, max(size, 1), flags=flags)
    if size >= (1 << 26):
        area.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(area, dtype, math.prod(shape)).reshape(shape)
