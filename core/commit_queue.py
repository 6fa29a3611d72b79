"""Brings records and their commits together: they reach usage by different ways, each in order.

Sans-I/O.  A commit covers a block, all of whose records are applied together.  It may come before
records of it, because it comes from another actor: then it waits for them, and the next waits
behind it.

Invariants:
  * blocks are taken in the order of their commits, each with all its records
  * a record or commit that does not follow the last one is a fault, so nothing waits for ever
Bounded by what the router admits: every record and every commit here belongs to requests in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from meterd.protocol.errors import InvariantViolation

Item = TypeVar("Item")

# Of a record: sequence, file number, offset in the file, first row in the file.
Location = Sequence[int]


class Block(NamedTuple, Generic[Item]):
    """Committed records, and where the next block belongs (five words)."""

    records: Sequence[tuple[Location, Item]]
    end: Sequence[int]


class CommitQueue(Generic[Item]):
    """Change it only through `add_record`, `add_commit` and `take`."""

    def __init__(self) -> None:
        self._records: dict[int, Item] = {}  # by sequence, in its order
        self._commits: deque[tuple[Sequence[Location], Sequence[int]]] = deque()
        self._last = 0  # sequence of the newest record that came
        self._committed = 0  # and of the newest that is committed

    @property
    def newest(self) -> int | None:
        """Return the sequence of the newest record that is here."""
        return self._last if self._records else None

    @property
    def empty(self) -> bool:
        """Is there neither a record nor a commit?"""
        return not (self._records or self._commits)

    def add_record(self, sequence: int, item: Item) -> None:
        """Take a record that has just come.  Raises InvariantViolation when one was left out."""
        if self._last and sequence != self._last + 1:
            raise InvariantViolation(f"record {sequence} came after record {self._last}")
        self._records[sequence] = item
        self._last = sequence

    def add_commit(self, located: Sequence[Location], end: Sequence[int]) -> None:
        """Take a commit that has just come: the records of one block, in order.

        Raises InvariantViolation when it does not follow the last one.
        """
        if self._committed and located[0][0] != self._committed + 1:
            raise InvariantViolation(
                f"record {located[0][0]} was committed after record {self._committed}"
            )
        self._commits.append((located, end))
        self._committed = located[-1][0]

    def take(self) -> Block[Item] | None:
        """Return the next block when its commit and all its records are here."""
        if not self._commits:
            return None
        located, end = self._commits[0]
        if located[-1][0] > self._last:
            return None
        self._commits.popleft()
        records = self._records
        for sequence, *_ in located:
            if sequence not in records:
                raise InvariantViolation(f"record {sequence} is committed but never came")
        return Block([(row, records.pop(row[0])) for row in located], end)
