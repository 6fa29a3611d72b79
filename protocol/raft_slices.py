"""One op of each of many groups at once, as columns; and the same as messages for one group each.

A record has slices of many groups, and so have its messages and acks.  Row k of every column is
about group groups[k].  `expanded` says what they mean: nothing but a shorter way to write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.raft_messages import Append, AppendReply, Op
from meterd.protocol.raft_records import RecordSlices

Ints = NDArray[np.int64]
Digests = NDArray[np.uint64]  # [k, 2]: low and high word

WORD = (1 << 64) - 1


class SliceOps(NamedTuple):
    """Row k is one op of one group."""

    groups: Ints
    index: Ints  # type: ignore[assignment]
    term: Ints
    digest: Digests
    kind: Ints
    size: Ints
    body: Sequence[Any]

    def take(self, rows: Ints) -> SliceOps:
        """Return some rows."""
        some = self.body
        body: Sequence[Any] = (
            some.take(rows)
            if isinstance(some, RecordSlices)
            else [some[row] for row in rows.tolist()]
        )
        return SliceOps(
            self.groups[rows],
            self.index[rows],
            self.term[rows],
            self.digest[rows],
            self.kind[rows],
            self.size[rows],
            body,
        )

    def op(self, row: int) -> Op:
        """Return one row as an op."""
        low, high = self.digest[row].tolist()
        return Op(
            int(self.index[row]),
            int(self.term[row]),
            low | high << 64,
            int(self.kind[row]),
            int(self.size[row]),
            self.body[row],
        )


class AppendSlices(NamedTuple):
    """An Append of one op for each of many groups."""

    term: Ints  # the leader's, in each group
    prev_term: Ints
    prev_digest: Digests
    commit: Ints
    ops: SliceOps

    def take(self, rows: Ints) -> AppendSlices:
        """Return some rows."""
        return AppendSlices(
            self.term[rows],
            self.prev_term[rows],
            self.prev_digest[rows],
            self.commit[rows],
            self.ops.take(rows),
        )

    def expanded(self) -> list[Append]:
        """Return them as messages of one group each."""
        return [self.message(row) for row in range(len(self.term))]

    def message(self, row: int) -> Append:
        """Return one row as a message."""
        op = self.ops.op(row)
        low, high = self.prev_digest[row].tolist()
        return Append(
            int(self.ops.groups[row]),
            int(self.term[row]),
            op.index - 1,
            int(self.prev_term[row]),
            low | high << 64,
            (op,),
            int(self.commit[row]),
        )


class AckSlices(NamedTuple):
    """An AppendReply, all well, for each of many groups."""

    groups: Ints
    term: Ints
    asked: Ints
    accepted: Ints
    match: Ints

    def expanded(self) -> list[AppendReply]:
        """Return them as messages of one group each."""
        return [self.message(row) for row in range(len(self.groups))]

    def message(self, row: int) -> AppendReply:
        """Return one row as a message."""
        group, term, asked, accepted, match = [int(column[row]) for column in self]
        return AppendReply(group, term, asked, accepted, match, 0, 0, 0, 0, True)


def words(digest: int) -> tuple[int, int]:
    """Return a digest's low and high word."""
    return digest & WORD, digest >> 64
