"""The cursor of a feed in a cluster: how far each partition was read, whichever node reads on.

A *position* is the op's index in its partition's log and the row within the op's slice, index << 20
| row: the same on every replica.  The cursor says of each partition which position comes next; 0 is
the beginning.  Nothing of it depends on a node's files, so it holds when replicas move, when a node
has lost its directory, and when it took that of a peer.

As text: `p.TURN.` and base64 of, for each partition with a position, varints: partition less the
one before (the first: plus one), index, row.  TURN: the node behind which a page begins that comes
from several nodes.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.cells import POSITION_ROW_BITS
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import NODE_MAX, PARTITION_COUNT

MARK: Final = "p."
INDEX_BITS: Final = 63 - POSITION_ROW_BITS
ROW_MASK: Final = (1 << POSITION_ROW_BITS) - 1

Positions = NDArray[np.int64]  # [256]


def _beginning() -> Positions:
    return np.zeros(PARTITION_COUNT, np.int64)


@dataclass(slots=True)
class FeedCursor:
    """Where a feed goes on."""

    positions: Positions = field(default_factory=_beginning)
    turn: int = 0  # 0: with any node

    def advance(self, partitions: Iterable[int], other: FeedCursor) -> None:
        """Take over how far another cursor is in some partitions."""
        chosen = list(partitions)
        self.positions[chosen] = other.positions[chosen]

    def __str__(self) -> str:
        packed, before = bytearray(), -1
        for partition in np.flatnonzero(self.positions).tolist():
            position = int(self.positions[partition])
            numbers = (partition - before, position >> POSITION_ROW_BITS, position & ROW_MASK)
            for number in numbers:
                packed += _varint(number)
            before = partition
        return f"{MARK}{self.turn}.{urlsafe_b64encode(packed).decode().rstrip('=')}"


def is_stable(text: str | None) -> bool:
    """Does a cursor name positions, not places in the files of one node?"""
    return text is not None and text.startswith(MARK)


def parse(text: str) -> FeedCursor:
    """Read a cursor.  Raises BadRequest."""
    try:
        mark, turn, packed = text.split(".")
        numbers = list(_numbers(urlsafe_b64decode(packed + "=" * (-len(packed) % 4))))
        made = FeedCursor(turn=int(turn))
        partition = -1
        for step, index, row in zip(*[iter(numbers)] * 3, strict=True):
            partition += step
            if step < 1 or partition >= PARTITION_COUNT or index >> INDEX_BITS or row > ROW_MASK:
                raise ValueError(text)
            made.positions[partition] = index << POSITION_ROW_BITS | row
        if f"{mark}." != MARK or not 0 <= made.turn <= NODE_MAX:
            raise ValueError(text)
    except ValueError:
        raise BadRequest("after: not a cursor of a feed") from None
    return made


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _numbers(packed: bytes) -> Iterator[int]:
    """Yield varints.  Raises ValueError when the last one does not end, or one is too large."""
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
        elif shift > 63:
            raise ValueError("too large")
    if shift:
        raise ValueError("cut off")
