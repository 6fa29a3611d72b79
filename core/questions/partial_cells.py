"""What both memory and the log files give for a question: cells that are still to be added up.

A cell belongs to a metric version, an account where that matters, a dimension tuple and a window.
Members (`unique`) come beside the cells that saw them; rows that add or remove a member come as
they are, because what they mean depends on which of them are added up together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.cells import CELL_WORDS


@dataclass(frozen=True, slots=True)
class Members:
    """Distinct members of cells; one that several cells saw is in each of them."""

    cell: NDArray[np.int64]  # m
    hashes: NDArray[np.uint64]  # (m, 2)


@dataclass(frozen=True, slots=True)
class Seats:
    """Rows that add or remove a member, from the beginning of the log up to the range's end."""

    rows: NDArray[np.int64]  # (s, 4): cell, timestamp, position, operation (kernels/gather.py)
    hashes: NDArray[np.uint64]  # (s, 2)


@dataclass(frozen=True, slots=True)
class PartialCells:
    """Cells as arrays of k rows; see the module."""

    cells: NDArray[np.int64]  # (k, 16): kernels/cells.py
    metric: NDArray[np.uint16]  # k: metric numbers
    account: NDArray[np.int32]  # k: positions in accounts
    window: NDArray[np.int64]  # k: start of the window, or 0
    # k: each declared dimension in sorted key order (kernels/entries.py, write_dimensions)
    dims: list[bytes]
    members: Members | None = None
    accounts: list[str] = field(default_factory=list)
    seats: Seats | None = None

    def to_frames(self) -> list[bytes]:
        """Return the cells as frames of a message."""
        arrays = [self.cells, self.metric, self.account, self.window]
        arrays += [] if self.members is None else [self.members.cell, self.members.hashes]
        arrays += [] if self.seats is None else [self.seats.rows, self.seats.hashes]
        beside = [self.members is not None, self.seats is not None]
        meta = msgpack.packb([self.dims, self.accounts, *beside])
        return [meta, *(np.ascontiguousarray(array).tobytes() for array in arrays)]

    @classmethod
    def from_frames(cls, frames: list[bytes]) -> PartialCells:
        """Read what `to_frames` gave."""
        dims, accounts, has_members, has_seats = msgpack.unpackb(frames[0])
        beside = frames[5:]
        members = seats = None
        if has_members:
            hashes = _array(beside[1], np.uint64).reshape(-1, 2)
            members, beside = Members(_array(beside[0], np.int64), hashes), beside[2:]
        if has_seats:
            rows, raw = _array(beside[0], np.int64), _array(beside[1], np.uint64)
            seats = Seats(rows.reshape(-1, 4), raw.reshape(-1, 2))
        return cls(
            _array(frames[1], np.int64).reshape(-1, CELL_WORDS),
            _array(frames[2], np.uint16),
            _array(frames[3], np.int32),
            _array(frames[4], np.int64),
            dims,
            members,
            accounts,
            seats,
        )


def _array(raw: bytes, dtype: Any) -> NDArray[Any]:
    return np.frombuffer(raw, dtype)
