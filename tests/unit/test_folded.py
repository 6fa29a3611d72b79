"""What is left of rows that have gone: members around the totals horizon, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meterd.core.questions.folded import GRAIN, Folded, merged, nothing
from meterd.core.questions.folded_cells import Cuts, partial_of
from meterd.core.questions.question import Question
from meterd.core.questions.totals_file import TotalsFile, TotalsWriter
from meterd.protocol.errors import RangeExpired

ADD, REMOVE = 1, 2
HORIZON = 10 * GRAIN


def rows_of_member(*rows: tuple[int, int]) -> Folded:
    """Rows (timestamp, operation) of one member of account a."""
    seats = np.array([(0, 1, 0, at, n, op) for n, (at, op) in enumerate(rows)], np.int64)
    hashes = np.tile(np.array([[7, 8]], np.uint64), (len(rows), 1))
    bare = replace(nothing(), accounts=["a"], dims=[b""], seats=seats, seat_members=hashes)
    return merged([bare])


def moments(folded: Folded) -> list[int]:
    return folded.seats[:, 3].tolist()


def test_of_what_a_member_did_before_the_totals_horizon_the_last_row_stays():
    rows = rows_of_member((1, ADD), (2, REMOVE), (3, ADD), (HORIZON, REMOVE), (HORIZON + 1, ADD))
    assert moments(rows.coarsened(HORIZON)) == [3, HORIZON, HORIZON + 1]
    assert moments(rows.coarsened(0)) == [1, 2, 3, HORIZON, HORIZON + 1]
    assert moments(rows.coarsened(HORIZON + 2)) == [HORIZON + 1]


def test_a_range_that_begins_before_the_horizon_is_refused_where_members_came_and_went():
    rows = rows_of_member((1, ADD), (2, REMOVE)).coarsened(HORIZON)
    question = Question("usage", "a", metric="m", start=0, end=2 * HORIZON)
    cuts = Cuts()
    partial_of(rows, question, [1], HORIZON, cuts)
    with pytest.raises(RangeExpired, match=f"ask for {HORIZON} to {2 * HORIZON}"):
        cuts.check(question)
    later = replace(question, start=HORIZON)
    cuts = Cuts()
    partial = partial_of(rows, later, [1], HORIZON, cuts)
    cuts.check(later)
    assert partial.seats is not None
    assert len(partial.seats.rows) == 1
    other = Cuts()
    partial_of(rows, question, [2], HORIZON, other)
    other.check(question)  # of another metric


def test_a_totals_file_gives_back_what_it_was_made_of():
    rows = rows_of_member((1, ADD), (HORIZON, REMOVE))
    writer = TotalsWriter(3, 5, HORIZON, {200: 3 << 20})
    writer.add(rows)
    file = TotalsFile(*writer.finish())
    assert (file.first, file.last, file.has_seats) == (3, 5, True)
    assert file.applied == {200: 3 << 20}
    assert (file.min_timestamp, file.max_timestamp, file.next_timestamp) == (1, HORIZON, HORIZON)
    (span,) = file.spans("a", subtree=True)
    assert moments(file.read(span)) == [1, HORIZON]
    assert list(file.spans("b", subtree=True)) == []
