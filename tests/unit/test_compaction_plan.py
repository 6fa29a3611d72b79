"""Which segments are merged, and how often each event is written again."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.segments.compaction_plan import (
    ORDINALS_MAX,
    PARTS_MAX,
    Candidate,
    Effort,
    Rules,
    next_merge,
    pending,
    whole_plan,
)
from meterd.protocol.segment_format import SegmentName

MIB = 1 << 20
USUAL = Rules(4, 256 * MIB)


def candidate(first: int, size: int, last: int | None = None, **more) -> Candidate:
    return Candidate(SegmentName(first, last or first), size, **({"ordinals": 1} | more))


def merged(segments: list[Candidate], parts) -> list[Candidate]:
    whole = Candidate(
        SegmentName(parts[0].name.first, parts[-1].name.last),
        sum(one.size for one in parts),
        sum(one.ordinals for one in parts),
    )
    place = segments.index(parts[0])
    assert segments[place : place + len(parts)] == list(parts)
    return [*segments[:place], whole, *segments[place + len(parts) :]]


def names(parts) -> list[tuple[int, int]]:
    return [one.name[:2] for one in parts]


def test_nothing_is_merged_before_there_are_enough():
    three = [candidate(n, 20 * MIB) for n in (1, 2, 3)]
    assert names(next_merge(three, USUAL)) == []
    four = [*three, candidate(4, 20 * MIB)]
    assert names(next_merge(four, USUAL)) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert pending(four, USUAL) == 4
    assert len(next_merge(three, USUAL, Effort.ASKED)) == 3


def test_a_gap_or_a_hold_is_never_crossed():
    segments = [candidate(n, MIB) for n in (1, 2, 3, 5, 6, 7)]
    assert names(next_merge(segments, USUAL)) == []
    held = [candidate(n, MIB, is_free=n != 4) for n in range(1, 8)]
    assert names(next_merge(held, USUAL)) == []
    assert names(next_merge(held, USUAL, Effort.AGGRESSIVE)) == [(1, 1), (2, 2), (3, 3)]


def test_a_large_one_is_not_written_again_for_a_small_one():
    segments = [candidate(1, 100 * MIB), candidate(2, MIB), candidate(3, MIB)]
    assert names(next_merge(segments, Rules(2, 256 * MIB))) == [(2, 2), (3, 3)]
    assert names(next_merge(segments[:2], USUAL, Effort.ASKED)) == []
    assert len(next_merge(segments[:2], USUAL, Effort.AGGRESSIVE)) == 2


def test_those_that_fill_the_target_are_merged_however_few():
    segments = [candidate(1, 120 * MIB, 6), candidate(7, 120 * MIB, 12)]
    assert len(next_merge(segments, USUAL)) == 2
    segments[1] = candidate(7, 140 * MIB, 12)
    assert names(next_merge(segments, USUAL, Effort.AGGRESSIVE)) == []


def test_rows_are_counted_in_32_bits():
    segments = [candidate(n, MIB, ordinals=ORDINALS_MAX // 3) for n in range(1, 9)]
    assert len(next_merge(segments, USUAL, Effort.AGGRESSIVE)) == 3


@pytest.mark.parametrize("size", [12, 20, 25, 30, 40])
def test_fifty_million_events_end_in_a_handful_of_segments(size):
    """29 bytes an event; each is written again about twice."""
    count = 50_000_000 * 29 // (size * MIB)
    segments: list[Candidate] = []
    written = 0
    for number in range(1, count + 1):
        segments.append(candidate(number, size * MIB))
        while parts := next_merge(segments, USUAL):
            written += sum(one.size for one in parts)
            segments = merged(segments, parts)
    assert len(segments) <= 14
    assert written / (count * size * MIB) < 2.7


sizes = st.lists(st.integers(1, 300) | st.just(20), min_size=1, max_size=60)
rules = st.builds(Rules, st.integers(2, 8), st.integers(10, 300))


@given(sizes, rules, st.sets(st.integers(1, 60)), st.sampled_from(Effort))
def test_merging_ends_and_keeps_the_chain(found, rule, gaps, effort):
    segments = [candidate(2 * n, size, 2 * n + (n not in gaps)) for n, size in enumerate(found, 1)]
    covered = {n for one in segments for n in range(one.name.first, one.name.last + 1)}
    while parts := next_merge(segments, rule, effort):
        assert 2 <= len(parts) <= PARTS_MAX
        assert sum(one.size for one in parts) <= rule.target_size
        assert pending(segments, rule, effort) > 0
        assert whole_plan(segments, rule, effort)[0] == parts
        segments = merged(segments, parts)
        for one, two in pairwise(segments):
            assert one.name.last < two.name.first
    assert {n for one in segments for n in range(one.name.first, one.name.last + 1)} == covered
    assert whole_plan(segments, rule, effort) == []
    assert pending(segments, rule, effort) == 0
    if effort is Effort.AGGRESSIVE:
        for one, two in pairwise(segments):
            follows = one.name.last + 1 == two.name.first
            assert not follows or one.size + two.size > rule.target_size


@given(sizes, rules, st.sampled_from([Effort.USUAL, Effort.ASKED]), st.data())
def test_each_event_is_written_again_a_logarithmic_number_of_times(found, rule, effort, data):
    """Whenever the segments come; empty ones weigh a byte."""
    segments: list[Candidate] = []
    writes: dict[int, int] = {}
    for number, size in enumerate(found, 1):
        segments.append(candidate(number, size))
        writes[number] = 0
        while data.draw(st.booleans()) and (parts := next_merge(segments, rule, effort)):
            for n in range(parts[0].name.first, parts[-1].name.last + 1):
                writes[n] += 1
            segments = merged(segments, parts)
    for number, size in enumerate(found, 1):
        assert writes[number] <= max(0, math.log2(rule.target_size / size)) + 1e-9
