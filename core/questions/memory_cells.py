"""Collects from memory what answers a question about one whole period.

It gives the same as a scan of the log (`PartialCells`), so one piece of code turns either into an
answer.  None means that memory cannot say: the period is not kept, or members come and go
(seats), which only their whole history tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import collect as kernels
from meterd.core.kernels import tables as table_kernels
from meterd.core.kernels.cells import CELL_WORDS, UNIQUE
from meterd.core.questions.partial_cells import Members, PartialCells
from meterd.core.questions.question import Question
from meterd.core.state.machine import StateMachine

# Room for the usual number of dimension tuples; a kernel that needs more is called again.
_ROOM = 256


def collect(state: StateMachine, question: Question) -> PartialCells | None:
    """Return the cells for a question of kind usage or accounts over one period, or None."""
    wanted = np.zeros(len(state.registry.entries) + 1, np.uint8)
    unique = False
    for entry in state.registry.versions(question.metric):
        if not state.keeps(entry.number, question.start):
            return None
        wanted[entry.number] = 1
        unique = unique or entry.definition.aggregation == "unique"
    if question.account:
        chosen, seats, numbers = _of_account(state, question, wanted)
    else:
        chosen, seats = _grown(
            kernels.cells_of_metric,
            state.handle,
            wanted,
            unique,
            question.start,
        )
        numbers, places = np.unique(chosen[:, 1], return_inverse=True)
        chosen[:, 1] = places
    if unique and seats:
        return None
    return _copied(state, chosen, numbers, unique)


def _of_account(
    state: StateMachine, question: Question, wanted: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], bool, NDArray[np.int64]]:
    text = np.frombuffer(question.account.encode(), np.uint8)
    out = np.empty(_ROOM, np.int64)
    count = kernels.account_numbers(state.handle, text, question.subtree, out)
    if count > len(out):
        out = np.empty(count, np.int64)
        kernels.account_numbers(state.handle, text, question.subtree, out)
    numbers = out[:count]
    chosen, seats = _grown(kernels.cells_of_accounts, state.handle, numbers, wanted, question.start)
    return chosen, seats, numbers


def _grown(kernel: Any, *arguments: Any) -> tuple[NDArray[np.int64], bool]:
    """Call a kernel that writes pairs, with as much room as it turns out to need."""
    out = np.empty((_ROOM, 2), np.int64)
    count, seats = kernel(*arguments, out)
    if count > len(out):
        out = np.empty((count, 2), np.int64)
        count, seats = kernel(*arguments, out)
    return out[:count], bool(seats)


def _copied(
    state: StateMachine, chosen: NDArray[np.int64], numbers: NDArray[np.int64], unique: bool
) -> PartialCells:
    k = len(chosen)
    cells, metric = np.empty((k, CELL_WORDS), np.int64), np.empty(k, np.uint16)
    series = np.empty(k, np.int64)
    kernels.copy_cells(state.handle, chosen, (cells, metric, series))
    members = None
    if unique:
        size = int(cells[:, UNIQUE].sum())
        owners, hashes = np.empty(size, np.int64), np.empty((size, 2), np.uint64)
        kernels.copy_members(state.handle, chosen, owners, hashes)
        members = Members(owners, hashes)
    tables = state.tables
    starts = tables.series[series, table_kernels.DIMS_START]
    ends = starts + tables.series[series, table_kernels.DIMS_SIZE]
    dims = [
        tables.dims[start:end].tobytes()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    return PartialCells(
        cells,
        metric,
        chosen[:, 1].astype(np.int32),
        np.zeros(k, np.int64),
        dims,
        members,
        [state.account_text(number) for number in numbers.tolist()],
    )
