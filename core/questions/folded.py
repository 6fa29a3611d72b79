"""What is left of rows that have gone: cells of a quarter of an hour, members, rows of members.

A cell counts the events of an account, metric number and dimension tuple in one bucket: a quarter
of an hour, or everything before the totals horizon (an *opening* cell).  Rows that add or remove a
member stay as they are; of those before the totals horizon only the last one of each member does,
which says as much about every later moment as all of them.

Folding parts and merging them gives the same in any order; each row goes in exactly once, which is
up to whoever reads the log (`actors/files/totals_files.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.kernels.gather import SEAT_CELL, SEAT_OPERATION, SEAT_POSITION, SEAT_TIMESTAMP
from meterd.core.kernels.reduce import reduce_cells
from meterd.core.questions.partial_cells import PartialCells
from meterd.core.questions.question import Question
from meterd.core.state.registry import MetricEntry
from meterd.protocol.limits import I64_MIN

# Every time zone in use is off UTC by a multiple of it.
GRAIN: Final = 900_000_000_000
# Bucket of an opening cell.
OPENING: Final = I64_MIN
# Columns of a cell's key (int64[n, 4]); account and dimensions are positions in the lists.
ACCOUNT, METRIC, DIMS, BUCKET = range(4)
# Columns of a row that adds or removes a member (int64[s, 6]); the first three as above.
TIMESTAMP, POSITION, OPERATION = range(3, 6)
SEAT_WORDS: Final = 6

T = TypeVar("T", str, bytes)
Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Folded:
    """See the module.  Cells are sorted by key; accounts by their text."""

    accounts: list[str]
    dims: list[bytes]
    keys: Rows  # (n, 4)
    cells: Rows  # (n, 16): kernels/cells.py; the columns that tie cells together are not used
    member_cell: Rows  # m, rising: the cell that saw the member
    members: Hashes  # (m, 2)
    seats: Rows  # (s, 6), sorted by all but the operation
    seat_members: Hashes  # (s, 2)

    @property
    def count(self) -> int:
        """How many events were counted."""
        return int(self.cells[:, cell_rows.COUNT].sum())

    def coarsened(self, horizon: int) -> Folded:
        """Return it with everything before the totals horizon folded into the opening state."""
        keys = self.keys.copy()
        keys[keys[:, BUCKET] < horizon, BUCKET] = OPENING
        kept = _last_before(self.seats, self.seat_members, horizon)
        coarse = replace(
            self, keys=keys, seats=self.seats[kept], seat_members=self.seat_members[kept]
        )
        return merged([coarse])

    def without(self, is_gone: Callable[[str], bool]) -> Folded:
        """Return it without some accounts, and without dimensions that only these had."""
        stays = np.array([not is_gone(name) for name in self.accounts], np.bool_)
        return self.chosen(stays[self.keys[:, ACCOUNT]], stays[self.seats[:, ACCOUNT]])

    def behind(self, floor: Callable[[str], int]) -> Folded:
        """Return it without what stands before the floor of its account: a position in the log.

        A cell goes as a whole, by the position of one of its events, because an erasure never cuts
        through one.  Only rows that every checkpoint has seen are folded.  So an erasure that was
        not known then stands behind all of the rows, also when a start has forgotten it for a
        while; one that was known has left only rows behind itself.  For the same reason it may be
        applied again at any time: what came after it stays.
        """
        floors = np.array([floor(name) for name in self.accounts], np.int64)
        if not floors.any():
            return self
        cells = self.cells[:, cell_rows.FIRST_POS] >= floors[self.keys[:, ACCOUNT]]
        return self.chosen(cells, self.seats[:, POSITION] >= floors[self.seats[:, ACCOUNT]])

    def chosen(self, cells: NDArray[np.bool_], seats: NDArray[np.bool_]) -> Folded:
        """Return only these cells and rows, with what they mention."""
        place = np.cumsum(cells) - 1
        of_cell = cells[self.member_cell]
        return _compact(
            replace(
                self,
                keys=self.keys[cells],
                cells=self.cells[cells],
                member_cell=place[self.member_cell[of_cell]],
                members=self.members[of_cell],
                seats=self.seats[seats],
                seat_members=self.seat_members[seats],
            )
        )

    def by(self, bucket: Rows, with_dims: bool) -> Folded:
        """Return it with other buckets, and without dimensions where these say nothing."""
        keys, seats = self.keys.copy(), self.seats
        keys[:, BUCKET] = bucket
        dims = self.dims
        if not with_dims:
            seats = seats.copy()
            keys[:, DIMS] = seats[:, DIMS] = 0
            dims = [b""]
        return merged([replace(self, dims=dims, keys=keys, seats=seats)])


def nothing() -> Folded:
    """Return what is left of no rows."""
    return Folded(
        [],
        [],
        np.empty((0, 4), np.int64),
        np.empty((0, CELL_WORDS), np.int64),
        np.empty(0, np.int64),
        np.empty((0, 2), np.uint64),
        np.empty((0, SEAT_WORDS), np.int64),
        np.empty((0, 2), np.uint64),
    )


def fold_question(entries: Sequence[MetricEntry], first: int, last: int) -> Question:
    """Return the question whose partial cells `folded` takes: all accounts, all dimensions.

    first, last: the earliest and the latest timestamp there is.
    """
    dimensions = dict.fromkeys(key for entry in entries for key in entry.definition.dimensions)
    edges = np.arange(first // GRAIN, last // GRAIN + 2, dtype=np.int64) * GRAIN
    return Question(
        "accounts",
        start=int(edges[0]),
        end=int(edges[-1]),
        group_by=tuple(dimensions),
        edges=tuple(edges.tolist()),
    )


def folded(partial: PartialCells) -> Folded:
    """Return what the partial cells of `fold_question` hold."""
    assert partial.members is not None
    assert partial.seats is not None
    dims, of_dims = _interned(partial.dims)
    keys = np.empty((len(partial.cells), 4), np.int64)
    keys[:, ACCOUNT], keys[:, METRIC] = partial.account, partial.metric
    keys[:, DIMS], keys[:, BUCKET] = of_dims, partial.window
    rows, cell = partial.seats.rows, partial.seats.rows[:, SEAT_CELL]
    seats = np.empty((len(rows), SEAT_WORDS), np.int64)
    seats[:, : DIMS + 1] = keys[cell, : DIMS + 1]
    seats[:, TIMESTAMP], seats[:, POSITION] = rows[:, SEAT_TIMESTAMP], rows[:, SEAT_POSITION]
    seats[:, OPERATION] = rows[:, SEAT_OPERATION]
    counted = partial.cells[:, cell_rows.COUNT] > 0
    whole = Folded(
        partial.accounts,
        dims,
        keys,
        partial.cells,
        partial.members.cell,
        partial.members.hashes,
        seats,
        partial.seats.hashes,
    )
    return merged([whole.chosen(counted, np.ones(len(seats), np.bool_))])


def merged(parts: Sequence[Folded]) -> Folded:
    """Return the parts as one: cells of one key are added up."""
    accounts, of_account = _interned([name for part in parts for name in part.accounts], True)
    dims, of_dims = _interned([dims for part in parts for dims in part.dims])
    keys: list[Rows] = []
    seats: list[Rows] = []
    owners: list[Rows] = []
    first_account = first_dims = first_cell = 0
    for part in parts:
        for rows, out in ((part.keys, keys), (part.seats, seats)):
            moved = rows.copy()
            moved[:, ACCOUNT] = of_account[first_account + rows[:, ACCOUNT]]
            moved[:, DIMS] = of_dims[first_dims + rows[:, DIMS]]
            out.append(moved)
        owners.append(part.member_cell + first_cell)
        first_account += len(part.accounts)
        first_dims += len(part.dims)
        first_cell += len(part.keys)
    return _in_order(
        Folded(
            accounts,
            dims,
            np.concatenate(keys),
            np.concatenate([part.cells for part in parts]),
            np.concatenate(owners),
            np.concatenate([part.members for part in parts]),
            np.concatenate(seats),
            np.concatenate([part.seat_members for part in parts]),
        )
    )


def _in_order(parts: Folded) -> Folded:
    """Sort cells, members and rows; add up cells of one key, keep members of a cell once."""
    order = np.lexsort(parts.keys.T[::-1])
    keys = parts.keys[order]
    is_new = _changes(keys)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(is_new) - 1
    cells = np.empty((int(is_new.sum()), CELL_WORDS), np.int64)
    reduce_cells(frozen(parts.cells), group, cells)
    owner = group[parts.member_cell]
    by_owner = np.lexsort((parts.members[:, 1], parts.members[:, 0], owner))
    owner, members = owner[by_owner], parts.members[by_owner]
    once = _changes(owner[:, None]) | _changes(members)
    seats, hashes = parts.seats, parts.seat_members
    by_time = (seats[:, POSITION], seats[:, TIMESTAMP])
    by_key = (hashes[:, 1], hashes[:, 0], seats[:, DIMS], seats[:, METRIC], seats[:, ACCOUNT])
    by_member = np.lexsort(by_time + by_key)
    return Folded(
        parts.accounts,
        parts.dims,
        keys[is_new],
        cells,
        owner[once],
        members[once],
        seats[by_member],
        hashes[by_member],
    )


def _last_before(seats: Rows, members: Hashes, horizon: int) -> NDArray[np.bool_]:
    """Return which rows stay: from the horizon on all, before it the last one of each member."""
    stays = np.ones(len(seats), np.bool_)
    same = ~_changes(seats[:, : DIMS + 1])[1:] & ~_changes(members)[1:]
    stays[:-1] = ~(same & (seats[1:, TIMESTAMP] < horizon))
    return stays


def _changes(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each row differs from the one before."""
    differs = np.ones(len(rows), np.bool_)
    differs[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return differs


def _compact(parts: Folded) -> Folded:
    """Forget accounts and dimensions that nothing mentions."""
    keys, seats = parts.keys.copy(), parts.seats.copy()
    lists: list[list[Any]] = []
    for column, texts in ((ACCOUNT, parts.accounts), (DIMS, parts.dims)):
        used, place = np.unique(
            np.concatenate([keys[:, column], seats[:, column]]), return_inverse=True
        )
        keys[:, column], seats[:, column] = place[: len(keys)], place[len(keys) :]
        lists.append([texts[at] for at in used.tolist()])
    return replace(parts, accounts=lists[0], dims=lists[1], keys=keys, seats=seats)


def _interned(texts: Sequence[T], in_order: bool = False) -> tuple[list[T], Rows]:
    """Return the distinct texts, and where each of those given stands among them."""
    distinct = list(dict.fromkeys(texts))
    if in_order:
        distinct.sort()
    places = {text: place for place, text in enumerate(distinct)}
    return distinct, np.array([places[text] for text in texts], np.int64)
