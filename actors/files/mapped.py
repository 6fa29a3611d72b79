"""Maps files into memory, for readers."""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.errors import RangeExpired


class JustDeleted(RangeExpired):
    """A file went while it was looked for; what it held is found by looking again."""


def map_file(path: str, random: bool = False) -> NDArray[np.uint8]:
    """Return the bytes of a file, mapped.  Raises FileNotFoundError.

    random: only what is asked for is read from the disk, nothing ahead of it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return map_descriptor(descriptor, random)
    finally:
        os.close(descriptor)


def map_descriptor(descriptor: int, random: bool = False) -> NDArray[np.uint8]:
    """Return the bytes of an open file, mapped, as `map_file` does."""
    if os.fstat(descriptor).st_size == 0:
        return np.frombuffer(b"", np.uint8)
    mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    if random:
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, np.uint8)
