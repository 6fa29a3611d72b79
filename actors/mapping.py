"""Maps files into memory for reading."""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray


def map_file(path: str) -> NDArray[np.uint8]:
    """Return the bytes of a file, mapped.  Raises FileNotFoundError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    return np.frombuffer(mapped, np.uint8)
