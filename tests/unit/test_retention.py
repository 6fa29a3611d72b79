"""Which segments are past the retention, and which ones are replaced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meterd.core.housekeeping import retention
from meterd.core.housekeeping.retention import (
    Kept,
    droppable_segments,
    expired_segments,
    superseded_segments,
)
from meterd.protocol.segment_format import SegmentName


def kept(first: int, newest: int = 0, made_at: int = 0, last: int | None = None) -> Kept:
    return Kept(SegmentName(first, first if last is None else last), newest, made_at, 1)


def test_a_segment_with_one_younger_event_stays_and_keeps_those_after_it():
    segments = [kept(1, 5), kept(2, 10), kept(3, 5)]
    assert expired_segments(segments, 10, 0) == segments[:1]


def test_a_log_file_without_a_segment_keeps_those_after_it():
    segments = [kept(1, 5), kept(3, 5), kept(4, 5)]
    assert expired_segments(segments, 10, 0) == segments[:1]
    assert expired_segments(segments[1:], 10, 0) == []
    assert expired_segments(segments[1:], 10, 2) == segments[1:]
    # What totals stand for already goes in any case.
    assert expired_segments(segments, 10, 3) == segments


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(0, 20))
def test_what_is_expired_is_old_and_what_stays_is_in_one_piece(newest, horizon):
    segments = [kept(number, one) for number, one in enumerate(newest, 1)]
    gone = expired_segments(segments, horizon, 0)
    assert gone == segments[: len(gone)]
    assert all(one.newest < horizon for one in gone)
    stays = segments[len(gone) :]
    assert not stays or stays[0].newest >= horizon


def test_a_segment_goes_after_its_log_files_the_checkpoints_and_the_pins():
    segments = [kept(1, last=2), kept(3), kept(4)]
    assert droppable_segments(segments, 9, [], []) == segments
    assert droppable_segments(segments, 4, [], []) == segments[:2]
    assert droppable_segments(segments, 9, [2, 3, 4], []) == []
    assert droppable_segments(segments, 9, [], [3]) == segments[:1]


def test_a_sweep_is_bounded(monkeypatch):
    monkeypatch.setattr(retention, "FILES_PER_SWEEP_MAX", 2)
    segments = [kept(number) for number in (1, 2, 3)]
    assert droppable_segments(segments, 9, [], []) == segments[:2]


def test_a_segment_within_another_one_goes_when_that_has_been_there_for_long_enough():
    segments = [kept(1), kept(2), kept(1, made_at=5, last=2), kept(3)]
    assert superseded_segments(segments, 5) == []
    assert superseded_segments(segments, 6) == segments[:2]
