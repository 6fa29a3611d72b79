"""What is left of deleted log files: who was a member when they went.

Whether a member is present at some moment depends on the last row before it that added or removed
the member.  So of the rows in deleted files the last one of each (account, metric version,
dimension tuple, member) is kept, and nothing else: for any range that begins at or after the
horizon they say the same as all of them, however they are filtered and grouped, because the last
row of a group is the last of the rows of its tuples.

Adding the rows of a file twice changes nothing, so a crash between saving and deleting is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.kernels.gather import (
    SEAT_CELL,
    SEAT_OPERATION,
    SEAT_POSITION,
    SEAT_TIMESTAMP,
)
from meterd.core.partial_cells import PartialCells, Seats
from meterd.core.questions import Question
from meterd.core.registry import MetricEntry
from meterd.protocol.limits import I64_MAX

# Columns of a row.
ACCOUNT, METRIC, DIMS, TIMESTAMP, POSITION, OPERATION = range(6)
ROW_WORDS: Final = 6
FILE_NAME: Final = "members.bin"

T = TypeVar("T", str, bytes)


@dataclass(frozen=True, slots=True)
class Opening:
    """The last rows of members in log files up to number `through`."""

    through: int
    accounts: list[str]
    dims: list[bytes]
    rows: NDArray[np.int64]  # (n, 6); account and dims are positions in the lists
    members: NDArray[np.uint64]  # (n, 2)

    @classmethod
    def empty(cls) -> Opening:
        return cls(0, [], [], np.empty((0, ROW_WORDS), np.int64), np.empty((0, 2), np.uint64))

    def to_file(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return state and arrays, for a container (protocol/checkpoint_format.py)."""
        state = {
            "kind": "members",
            "through": self.through,
            "accounts": self.accounts,
            "dims": self.dims,
        }
        return state, {"rows": self.rows, "members": self.members}

    @classmethod
    def from_file(cls, state: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Opening:
        """Read what `to_file` gave."""
        return cls(
            state["through"], state["accounts"], state["dims"], arrays["rows"], arrays["members"]
        )

    def with_rows(self, partial: PartialCells, through: int) -> Opening:
        """Return the opening after the rows of one more file, read with `question_of`."""
        assert partial.seats is not None
        seats, cell = partial.seats.rows, partial.seats.rows[:, SEAT_CELL]
        accounts, account_of = _interned(self.accounts, partial.accounts)
        dims, dims_of = _interned(self.dims, partial.dims)
        added = np.empty((len(seats), ROW_WORDS), np.int64)
        added[:, ACCOUNT] = account_of[partial.account[cell]]
        added[:, METRIC] = partial.metric[cell]
        added[:, DIMS] = dims_of[cell]
        added[:, TIMESTAMP] = seats[:, SEAT_TIMESTAMP]
        added[:, POSITION] = seats[:, SEAT_POSITION]
        added[:, OPERATION] = seats[:, SEAT_OPERATION]
        rows = np.concatenate([self.rows, added])
        members = np.concatenate([self.members, partial.seats.hashes])
        rows, members = _last_of_each(rows, members)
        return Opening(max(self.through, through), accounts, dims, rows, members)

    def partial(self, question: Question, entries: list[MetricEntry]) -> PartialCells:
        """Return the rows that a question of kind usage or accounts is about."""
        wanted = np.array([_is_asked(name, question) for name in self.accounts], np.bool_)
        numbers = [entry.number for entry in entries]
        chosen = np.isin(self.rows[:, METRIC], numbers)
        chosen &= wanted[self.rows[:, ACCOUNT]] if len(wanted) else False
        rows = self.rows[chosen]
        seats = np.empty((len(rows), 4), np.int64)
        seats[:, SEAT_CELL] = np.arange(len(rows))
        seats[:, SEAT_TIMESTAMP] = rows[:, TIMESTAMP]
        seats[:, SEAT_POSITION] = rows[:, POSITION]
        seats[:, SEAT_OPERATION] = rows[:, OPERATION]
        by_account = question.kind == "accounts"
        return PartialCells(
            np.zeros((len(rows), CELL_WORDS), np.int64),
            rows[:, METRIC].astype(np.uint16),
            rows[:, ACCOUNT].astype(np.int32) * np.int32(by_account),
            np.zeros(len(rows), np.int64),
            [self.dims[place] for place in rows[:, DIMS].tolist()],
            None,
            self.accounts if by_account else [],
            Seats(seats, self.members[chosen]),
        )


def question_of(entries: list[MetricEntry]) -> Question:
    """Return the question whose partial cells hold every row that adds or removes a member.

    All of them lie before its range, which is empty.
    """
    dimensions = dict.fromkeys(key for entry in entries for key in entry.definition.dimensions)
    return Question(
        "accounts",
        metric=entries[0].code,
        start=I64_MAX,
        end=I64_MAX,
        group_by=tuple(dimensions),
    )


def joined(one: PartialCells, two: PartialCells) -> PartialCells:
    """Return the cells and rows of both; members are those of the first."""
    assert one.seats is not None
    assert two.seats is not None
    accounts, account_of = _interned(one.accounts, two.accounts)
    moved = two.seats.rows.copy()
    moved[:, SEAT_CELL] += len(one.cells)
    account = account_of[two.account].astype(np.int32) if two.accounts else two.account
    return replace(
        one,
        cells=np.concatenate([one.cells, two.cells]),
        metric=np.concatenate([one.metric, two.metric]),
        account=np.concatenate([one.account, account]),
        window=np.concatenate([one.window, two.window]),
        dims=one.dims + two.dims,
        accounts=accounts,
        seats=Seats(
            np.concatenate([one.seats.rows, moved]),
            np.concatenate([one.seats.hashes, two.seats.hashes]),
        ),
    )


def _interned(known: list[T], added: list[T]) -> tuple[list[T], NDArray[np.int64]]:
    """Return the distinct values of both lists, and where those of the second stand in it."""
    places = {value: place for place, value in enumerate(known)}
    where = [places.setdefault(value, len(places)) for value in added]
    return list(places), np.array(where, np.int64)


def _last_of_each(
    rows: NDArray[np.int64], members: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Keep the last row of each (account, metric number, dimension tuple, member)."""
    by_time = (rows[:, POSITION], rows[:, TIMESTAMP])
    by_key = (members[:, 1], members[:, 0], rows[:, DIMS], rows[:, METRIC], rows[:, ACCOUNT])
    order = np.lexsort(by_time + by_key)
    rows, members = rows[order], members[order]
    is_last = np.ones(len(rows), np.bool_)
    key = rows[:, : DIMS + 1]
    is_last[:-1] = (key[1:] != key[:-1]).any(axis=1) | (members[1:] != members[:-1]).any(axis=1)
    return rows[is_last], members[is_last]


def _is_asked(account: str, question: Question) -> bool:
    if not question.account or account == question.account:
        return True
    return question.subtree and account.startswith(question.account + "/")
