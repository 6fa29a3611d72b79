"""Which log files are past the retention."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meterd.core.retention import expired_files


def test_a_file_with_one_younger_event_stays_and_keeps_those_after_it():
    assert expired_files([1, 2, 3], {1: 5, 2: 10, 3: 5}, 10) == [1]


def test_a_file_without_an_index_stays():
    assert expired_files([1, 2], {2: 0}, 10) == []


@given(
    st.lists(st.integers(1, 50), unique=True).map(sorted),
    st.dictionaries(st.integers(1, 50), st.integers(0, 20)),
    st.integers(0, 20),
)
def test_what_goes_is_old_and_what_stays_is_in_one_piece(numbers, newest, limit):
    gone = expired_files(numbers, newest, limit)
    assert gone == numbers[: len(gone)]
    assert all(newest[number] < limit for number in gone)
    stays = numbers[len(gone) :]
    assert not stays or newest.get(stays[0], limit) >= limit
