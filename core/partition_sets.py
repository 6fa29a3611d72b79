"""Sets of partitions: as bytes on the wire, whose accounts are in them, which nodes have them.

A set travels as 32 bytes: bit p % 8 of byte p // 8 is partition p.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

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


def cover(
    wanted: Iterable[int], held: Mapping[int, Collection[int]]
) -> tuple[dict[int, list[int]], list[int]]:
    """Share partitions among nodes, few of them, and none twice.

    held: what each node has.  Returns the partitions of each node that gets some, ascending, and
    those that nobody has.  The same input gives the same answer.
    """
    left = set(wanted)
    shares: dict[int, list[int]] = {}
    while left:
        node = max(sorted(held), key=lambda one: len(left & set(held[one])), default=0)
        share = left & set(held.get(node, ()))
        if not share:
            break
        shares[node] = sorted(share)
        left -= share
    return shares, sorted(left)
