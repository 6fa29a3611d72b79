"""Exact arithmetic at its limits: 128-bit sums, rounding, orders."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.kernels.cells import clear_cell, update_cell
from meterd.core.questions.partial_cells import Members, PartialCells
from meterd.core.questions.totals import Totals, add_up, count_members, order_by_amount, value_text
from meterd.protocol.errors import BadRequest

extremes = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**63 - 1, -(2**63), 0, -1])


def cells_of(groups: list[list[int]]) -> PartialCells:
    """One cell for each list of values; event n of all has timestamp n."""
    cells = np.empty((len(groups), 16), np.int64)
    moment = 0
    for place, values in enumerate(groups):
        clear_cell(cells, place)
        for value in values:
            update_cell(cells, place, moment, 0, value)
            moment += 1
    count = len(groups)
    return PartialCells(
        cells,
        (np.arange(count) % 2 + 1).astype(np.uint16),
        np.zeros(count, np.int32),
        np.zeros(count, np.int64),
        [b""] * count,
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(extremes, min_size=1, max_size=4), min_size=1, max_size=6),
    st.sampled_from([(1, 1), (1, 1_000), (10**9, 1)]),
    st.sampled_from(["sum", "min", "max", "latest", "first", "count"]),
)
def test_amounts_are_python_s(groups, scales, aggregation):
    """Cells of two versions with different decimals, added into one bucket."""
    partial = cells_of(groups)
    scale_of = dict(zip((1, 2), scales, strict=True))
    buckets = np.zeros(len(groups), np.int64)
    totals = add_up(partial, buckets, 1, scale_of, aggregation)
    values = [value * scales[place % 2] for place, of in enumerate(groups) for value in of]
    expected = {
        "sum": sum(values),
        "min": min(values),
        "max": max(values),
        "latest": values[-1],
        "first": values[0],
        "count": len(values),
    }
    assert totals.amounts == [expected[aggregation]]
    assert totals.counts.tolist() == [len(values)]
    assert totals.newest.tolist() == [len(values) - 1]


def test_cells_left_out_count_nothing():
    totals = add_up(cells_of([[1], [2]]), np.array([-1, -1]), 1, {1: 1, 2: 1}, "sum")
    assert totals.counts.tolist() == [0]


@pytest.mark.parametrize(
    ("amount", "count", "text"),
    [
        (1, 3, "0.33333333"),
        (2, 3, "0.66666667"),
        (-2, 3, "-0.66666667"),
        (10, 4, "2.5"),
        (0, 7, "0"),
        (1, 2 * 10**8, "0"),  # half of the last digit: to even
        (3, 2 * 10**8, "0.00000002"),
        (2**127, 1, str(2**127)),
    ],
)
def test_an_average_is_rounded_half_to_even(amount, count, text):
    assert value_text("avg", amount, count, 2, 0) == text


@pytest.mark.parametrize(
    ("aggregation", "text"),
    [("count", "0"), ("unique", "0"), ("sum", "0"), ("min", None), ("avg", None), ("first", None)],
)
def test_nothing_is_zero_or_no_value(aggregation, text):
    assert value_text(aggregation, 0, 0, 2, 2) == text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(extremes | st.integers(-(2**80), 2**80) | st.integers(-3, 3), st.integers(1, 4)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["sum", "avg"]),
)
def test_accounts_are_ordered_exactly(rows, aggregation):
    """The greatest first, equal ones in the order they came, whatever their size."""
    amounts, counts = [amount for amount, _ in rows], [count for _, count in rows]
    totals = Totals(np.array(counts, np.int64), amounts, np.zeros(len(rows), np.int64))
    order = order_by_amount(aggregation, totals, np.arange(len(rows)))
    value = [Fraction(a, c) if aggregation == "avg" else Fraction(a) for a, c in rows]
    assert order.tolist() == sorted(range(len(rows)), key=lambda place: -value[place])


def test_close_averages_are_told_apart():
    counts = [2**26 - 1, 2**26 - 2]
    amounts = [2**25 - 1, 2**25 - 1]
    totals = Totals(np.array(counts, np.int64), amounts, np.zeros(2, np.int64))
    assert order_by_amount("avg", totals, np.arange(2)).tolist() == [1, 0]


def test_more_members_than_an_answer_may_count_are_refused(monkeypatch):
    monkeypatch.setattr("meterd.core.questions.totals.MEMBERSHIPS_MAX", 2)
    partial = cells_of([[1]])
    members = Members(np.zeros(3, np.int64), np.arange(6, dtype=np.uint64).reshape(3, 2))
    many = PartialCells(
        partial.cells, partial.metric, partial.account, partial.window, [b""], members
    )
    zero = np.zeros(1, np.int64)
    with pytest.raises(BadRequest, match="more than 2 members"):
        count_members(many, zero, 1, [0, 1], zero)
