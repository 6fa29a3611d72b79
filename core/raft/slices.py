"""Actions about one op of each of many groups at once; see protocol/raft_slices.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from meterd.core.raft.events import Accepted, Commit, WriteOps
from meterd.protocol.raft_slices import Ints, SliceOps


class WriteSlices(NamedTuple):
    """A WriteOps of one op for each of many groups: a record."""

    ops: SliceOps

    def expanded(self) -> list[WriteOps]:
        """Return them as records of one group each."""
        groups = self.ops.groups.tolist()
        return [WriteOps(group, (self.ops.op(row),)) for row, group in enumerate(groups)]


class CommitSlices(NamedTuple):
    """A Commit for each of many groups."""

    groups: Ints
    index: Ints  # type: ignore[assignment]

    def expanded(self) -> list[Commit]:
        """Return them as actions of one group each."""
        return [Commit(int(g), int(i)) for g, i in zip(self.groups, self.index, strict=True)]


class AcceptedSlices(NamedTuple):
    """An Accepted for each of many groups."""

    groups: Ints
    index: Ints  # type: ignore[assignment]
    term: Ints
    causes: Sequence[Any]

    def expanded(self) -> list[Accepted]:
        """Return them as actions of one group each."""
        rows = zip(self.groups.tolist(), self.index.tolist(), self.term.tolist(), strict=True)
        return [Accepted(g, self.causes[k], i, 1, t) for k, (g, i, t) in enumerate(rows)]
