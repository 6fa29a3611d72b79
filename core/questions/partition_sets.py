"""Sets of partitions: as bytes on the wire, and whose accounts are in them.

A set travels as 32 bytes: bit p % 8 of byte p // 8 is partition p.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.hashing import partition_of
from meterd.protocol.limits import PARTITION_COUNT


def pack(partitions: Iterable[int]) -> bytes:
    """Return a set of partitions as bytes."""
    bits = np.zeros(PARTITION_COUNT, np.uint8)
    bits[list(partitions)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(packed: bytes) -> tuple[int, ...]:
    """Return the partitions of a set, ascending."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    return tuple(np.flatnonzero(bits).tolist())


def partition(account: str) -> int:
    """Return the partition of an account."""
    text = np.frombuffer(account.encode(), np.uint8)
    return int(partition_of(text, 0, len(text)))


def lie_in(accounts: Sequence[str], partitions: Collection[int]) -> NDArray[np.bool_]:
    """Say of each account whether its partition is one of these."""
    if len(partitions) == PARTITION_COUNT:
        return np.ones(len(accounts), np.bool_)
    wanted = np.zeros(PARTITION_COUNT, np.bool_)
    wanted[list(partitions)] = True
    found = np.fromiter(map(partition, accounts), np.intp, len(accounts))
    return wanted[found]
