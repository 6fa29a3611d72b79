"""Beats and their answers as columns: a node speaks of hundreds of groups at once.

A `Rows` is a sequence of messages of one group each, and means nothing else; who wants all of
them at once takes its table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.raft_messages import Beat, BeatReply

Row = TypeVar("Row", Beat, BeatReply)
# [k, fields of the message], in the order of the fields; flags are 0 or 1.
Table = NDArray[np.int64]


class Rows(Sequence[Row], Generic[Row]):
    """Messages of one type; equal to any sequence of the same ones."""

    __slots__ = ("_kind", "table")

    def __init__(self, kind: type[Row], table: Table) -> None:
        self._kind: type[Row] = kind
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Row]:
        rows: list[Row] = [_made(self._kind, row) for row in self.table.tolist()]
        return iter(rows)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        if isinstance(at, slice):
            return Rows(self._kind, self.table[at])
        row: Row = _made(self._kind, self.table[at].tolist())
        return row

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Rows):
            return np.array_equal(self.table, other.table)
        return isinstance(other, tuple | list) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))


def _made(kind: type[Any], row: list[int]) -> Any:
    if kind is BeatReply:
        row[-1] = bool(row[-1])  # room
    return kind(*row)


def table_of(kind: type[Any], messages: Iterable[Any]) -> Table:
    """Return the table of messages of one type, however they are held."""
    if isinstance(messages, Rows):
        return messages.table
    width = len(kind._fields)
    return np.array(list(messages), np.int64).reshape(-1, width)
