"""Cells against Python integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.kernels import cells as kernels
from meterd.core.kernels.cells import CELL_WORDS, clear_cell, merge_cell, sum_of, update_cell

EDGES = [-(2**63), 2**63 - 1, -1, 0, 1, 2**62, -(2**62)]
values = st.sampled_from(EDGES) | st.integers(-(2**63), 2**63 - 1)
# (timestamp, position, value): few moments and places, so that ties are common.
events = st.tuples(st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1]), st.integers(0, 3), values)


def cell_of(rows) -> np.ndarray:
    cells = np.full((3, CELL_WORDS), 77, np.int64)
    clear_cell(cells, 1)
    for timestamp, position, value in rows:
        update_cell(cells, 1, timestamp, position, value)
    assert (cells[[0, 2]] == 77).all()
    return cells


def check(row: np.ndarray, rows) -> None:
    assert row[kernels.COUNT] == len(rows)
    assert sum_of(row) == sum(value for _, _, value in rows)
    if not rows:
        return
    assert row[kernels.MIN] == min(value for _, _, value in rows)
    assert row[kernels.MAX] == max(value for _, _, value in rows)
    # Positions are never given twice; here the first that came stands for its position.
    first = min(rows, key=lambda event: event[:2])
    latest = next(e for e in rows if e[:2] == max(rows, key=lambda event: event[:2])[:2])
    assert tuple(row[kernels.LATEST_TS : kernels.LATEST_VALUE + 1].tolist()) == latest
    assert tuple(row[kernels.FIRST_TS : kernels.FIRST_VALUE + 1].tolist()) == first


@settings(max_examples=300)
@given(st.lists(events, max_size=12))
def test_a_cell_counts_what_python_counts(rows):
    check(cell_of(rows)[1], rows)


@settings(max_examples=300)
@given(st.lists(st.lists(events, max_size=5), min_size=1, max_size=5))
def test_merged_cells_are_one_cell_of_all_events(parts):
    cells = cell_of([])
    for part in parts:
        merge_cell(cells, 1, cell_of(part), 1)
    check(cells[1], [event for part in parts for event in part])


def test_a_sum_passes_64_bits_in_both_directions():
    for value in (2**63 - 1, -(2**63)):
        rows = [(0, n, value) for n in range(1_000)]
        cells = cell_of(rows)
        assert sum_of(cells[1]) == 1_000 * value
        for _ in range(20):
            merge_cell(cells, 1, cells.copy(), 1)
        assert sum_of(cells[1]) == 1_000 * value * 2**20
        for position, back in enumerate([-value - 1, 1] * 1_000):
            update_cell(cells, 1, 0, 5_000 + position, back)
        assert sum_of(cells[1]) == 1_000 * value * (2**20 - 1)
