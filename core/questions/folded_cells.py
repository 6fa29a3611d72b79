"""Answers from folded rows what they can still say exactly, and refuses the rest.

A cell knows when its first and its latest event were.  A range is exact when no cell that it is
about has events on both sides of one of its edges: then every cell is taken whole or not at all.
Rows of members from before the totals horizon are not the whole history of anybody, so a range
that begins before it is exact only where there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.kernels.gather import SEAT_CELL, SEAT_OPERATION, SEAT_POSITION, SEAT_TIMESTAMP
from meterd.core.questions.folded import (
    ACCOUNT,
    BUCKET,
    DIMS,
    GRAIN,
    METRIC,
    OPENING,
    OPERATION,
    POSITION,
    TIMESTAMP,
    Folded,
)
from meterd.core.questions.partial_cells import Members, PartialCells, Seats
from meterd.core.questions.question import Question
from meterd.protocol.errors import RangeExpired
from meterd.protocol.limits import I64_MAX


@dataclass(slots=True)
class Cuts:
    """Where edges of a range cut through cells of totals files; grows while these are read."""

    start: bool = False
    end: bool = False
    inner: bool = False  # the boundary of a window
    opening: bool = False  # before the totals horizon, where only the whole is known
    horizon: int = OPENING  # the latest totals horizon of the files

    def check(self, question: Question) -> None:
        """Raise RangeExpired when there were any; it names the nearest range without.

        A quarter of an hour from the horizon on never lies within a cell, nor does the horizon.
        """
        if not (self.start or self.end or self.inner or self.opening):
            return
        start, end = question.start, question.end
        if self.opening:
            start = max(start, self.horizon)
        elif self.start:
            start = max(_between_cells(start), self.horizon)
        if self.end:
            end = max(_between_cells(end), self.horizon)
        if start >= end:
            length = max(GRAIN, question.end - question.start) // GRAIN * GRAIN
            end = min(start + length, I64_MAX)
        inner = ", in windows that begin at quarters of an hour" if self.inner else ""
        raise RangeExpired(
            "events of this range have expired, and what they were added up to cannot be cut"
            f" there; ask for {start} to {end}{inner}"
        )


def partial_of(
    folded: Folded, question: Question, numbers: Sequence[int], horizon: int, cuts: Cuts
) -> PartialCells:
    """Return the cells that a question of kind usage or accounts is about; note what it cuts.

    numbers: of the metric's versions; horizon: what lies before it is an opening state.
    """
    edges = np.array(question.edges or (question.start, question.end), np.int64)
    of_metric = np.isin(folded.keys[:, METRIC], numbers)
    first, last = folded.cells[:, cell_rows.FIRST_TS], folded.cells[:, cell_rows.LATEST_TS]
    touched = of_metric & (last >= edges[0]) & (first < edges[-1])
    seats = np.isin(folded.seats[:, METRIC], numbers)
    window = np.searchsorted(edges, first, side="right") - 1
    window_of_last = np.searchsorted(edges, last, side="right") - 1
    cut = touched & (window_of_last != window)
    at_start, at_end = cut & (first < edges[0]), cut & (last >= edges[-1])
    is_opening = folded.keys[:, BUCKET] == OPENING
    cuts.start |= bool(at_start.any())
    cuts.end |= bool(at_end.any())
    cuts.inner |= bool((cut & ~at_start & ~at_end).any())
    cuts.opening |= bool((cut & is_opening).any())
    if question.start < horizon:
        cuts.opening |= bool((folded.seats[seats, TIMESTAMP] < horizon).any())
    cuts.horizon = max(cuts.horizon, horizon)
    whole = touched & ~cut
    chosen = folded.chosen(whole, seats)
    starts = edges[window[whole]] if question.edges else np.zeros(int(whole.sum()), np.int64)
    with_dims = bool(question.filters or question.group_by)
    return _partial(chosen.by(starts, with_dims), question.kind == "accounts")


def _between_cells(moment: int) -> int:
    """Return the nearest beginning of a quarter of an hour."""
    return (moment + GRAIN // 2) // GRAIN * GRAIN


def _partial(folded: Folded, by_account: bool) -> PartialCells:
    """Return cells, and behind them one cell of nothing for each row of a member."""
    rows, count = folded.seats, len(folded.keys)
    seats = np.empty((len(rows), 4), np.int64)
    seats[:, SEAT_CELL] = count + np.arange(len(rows))
    seats[:, SEAT_TIMESTAMP], seats[:, SEAT_POSITION] = rows[:, TIMESTAMP], rows[:, POSITION]
    seats[:, SEAT_OPERATION] = rows[:, OPERATION]
    both = np.concatenate([folded.keys[:, : DIMS + 1], rows[:, : DIMS + 1]])
    none = np.zeros(len(rows), np.int64)
    return PartialCells(
        np.concatenate([folded.cells, np.zeros((len(rows), CELL_WORDS), np.int64)]),
        both[:, METRIC].astype(np.uint16),
        (both[:, ACCOUNT] * int(by_account)).astype(np.int32),
        np.concatenate([folded.keys[:, BUCKET], none]),
        [folded.dims[place] for place in both[:, DIMS].tolist()],
        Members(folded.member_cell, folded.members),
        folded.accounts if by_account else [],
        Seats(seats, folded.seat_members),
    )


def joined(parts: Sequence[PartialCells]) -> PartialCells:
    """Return the cells, members and rows of several parts."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.accounts)
    places = {name: place for place, name in enumerate(names)}
    accounts, owners, seats = [], [], []
    first = 0
    for part in parts:
        place = np.array([places[name] for name in part.accounts], np.int32)
        accounts.append(place[part.account] if part.accounts else part.account)
        if part.members is not None:
            owners.append(replace(part.members, cell=part.members.cell + first))
        if part.seats is not None:
            rows = part.seats.rows.copy()
            rows[:, SEAT_CELL] += first
            seats.append(replace(part.seats, rows=rows))
        first += len(part.cells)
    return PartialCells(
        np.concatenate([part.cells for part in parts]),
        np.concatenate([part.metric for part in parts]),
        np.concatenate(accounts),
        np.concatenate([part.window for part in parts]),
        [dims for part in parts for dims in part.dims],
        _members(owners),
        list(names),
        _seats(seats),
    )


def _members(parts: list[Members]) -> Members | None:
    if not parts:
        return None
    return Members(_rows([m.cell for m in parts]), np.concatenate([m.hashes for m in parts]))


def _seats(parts: list[Seats]) -> Seats | None:
    if not parts:
        return None
    return Seats(_rows([s.rows for s in parts]), np.concatenate([s.hashes for s in parts]))


def _rows(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts)
