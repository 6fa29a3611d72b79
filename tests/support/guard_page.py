"""Lays bytes against a page that nobody may touch, so that reading past their end is noticed.

Kernels check no bounds: what they may read they must have checked themselves.
"""

from __future__ import annotations

import ctypes
import mmap

SIZE_MAX = 1 << 20


class GuardedBytes:
    """Room for bytes whose end is the end of what may be read."""

    def __init__(self) -> None:
        self._area = mmap.mmap(-1, SIZE_MAX + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._area))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if libc.mprotect(address + SIZE_MAX, mmap.PAGESIZE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def lay(self, data: bytes) -> memoryview:
        """Return the bytes, read-only, lying right before the guard."""
        start = SIZE_MAX - len(data)
        self._area[start:SIZE_MAX] = data
        return memoryview(self._area)[start:SIZE_MAX].toreadonly()
