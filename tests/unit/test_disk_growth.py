"""How fast a disk fills, and what is said about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.housekeeping.disk_advice import Facts, advise
from meterd.core.housekeeping.disk_growth import (
    AGE_MAX_SECONDS,
    DAY_SECONDS,
    SAMPLES_MAX,
    Growth,
    Sample,
    full_in_seconds,
)
from meterd.core.housekeeping.disk_state import Space

NOW = 1_700_000_000
GIB = 1 << 30


@given(
    st.integers(-(10**6), 10**6),
    st.integers(0, 10**6),
    st.lists(st.integers(1, 600), min_size=61, max_size=100),
)
def test_steady_growth_is_found_exactly(used_rate, own_rate, gaps):
    growth, at = Growth(), NOW
    for gap in gaps:
        at += gap
        passed = at - NOW
        growth.add(Sample(at, 10**13 + used_rate * passed, own_rate * passed))
    assert growth.per_day(at) == (used_rate * DAY_SECONDS, own_rate * DAY_SECONDS)


def test_too_little_is_known_at_first():
    growth = Growth()
    assert growth.per_day(NOW) is None
    growth.add(Sample(NOW, 0, 0))
    growth.add(Sample(NOW + 59, 59, 0))
    assert growth.per_day(NOW + 59) is None
    growth.add(Sample(NOW + 60, 60, 0))
    assert growth.per_day(NOW + 60) == (DAY_SECONDS, 0)


def test_only_the_last_day_counts():
    growth = Growth()
    for hour in range(72):
        growth.add(Sample(NOW + 3_600 * hour, 1_000 * min(hour, 40), 0))
    assert growth.per_day(NOW + 3_600 * 71) == (0.0, 0.0)


@given(st.lists(st.integers(1, 90_000), min_size=1, max_size=3_000))
def test_the_history_is_bounded_and_keeps_the_newest(gaps):
    growth, at = Growth(), NOW
    for gap in gaps:
        at += gap
        growth.add(Sample(at, at, 0))
        assert len(growth.samples) <= SAMPLES_MAX + 1
    assert at - growth.samples[-1].at < growth.distance
    assert growth.samples == sorted(growth.samples)


def test_a_week_of_minutes_fits_and_still_knows_the_slope():
    growth = Growth()
    for minute in range(10 * DAY_SECONDS // 60):
        growth.add(Sample(NOW + 60 * minute, 7 * minute, minute))
    end = NOW + 10 * DAY_SECONDS
    assert growth.distance < AGE_MAX_SECONDS / 100
    assert growth.per_day(end) == pytest.approx((7 * 1_440, 1_440))
    again = Growth(growth.samples, growth.distance)
    assert (again.samples, again.distance) == (growth.samples, growth.distance)


def test_a_clock_that_was_set_back_begins_anew():
    growth = Growth([Sample(NOW, 1, 1)])
    growth.add(Sample(NOW - 1, 2, 2))
    assert growth.samples == [Sample(NOW - 1, 2, 2)]


def test_when_it_will_be_full():
    assert full_in_seconds(1_000, 500.0) == 2 * DAY_SECONDS
    assert full_in_seconds(1_000, 0.0) is None
    assert full_in_seconds(1_000, -5.0) is None


def facts(**changes: object) -> Facts:
    known: dict[str, object] = {
        "state": "stop",
        "cause": "space",
        "space": Space(GIB, 100 * GIB, 10**6, 10**6),
        "kinds": {"log": 80 * GIB, "segments": GIB},
        "reserve": 0,
        "full_in_days": None,
    }
    return Facts(**(known | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "cause", "command"),
    [
        ({"state": "ok"}, "there is room", "nothing"),
        ({"state": "ok", "full_in_days": 3.0}, "3.0 days", "enlarge"),
        ({}, "log files", "wal status --holders"),
        ({"kinds": {"segments": 80 * GIB}}, "stored events", "retention show"),
        ({"kinds": {"checkpoints": 80 * GIB}}, "totals", "status"),
        ({"kinds": {"log": GIB}}, "does not belong to this node", "du -xh"),
        ({"cause": "inodes"}, "inode", "--inodes"),
        ({"space": Space(GIB, 100 * GIB, 5, 10**6)}, "inode", "--inodes"),
        ({"cause": "no_room", "space": Space(50 * GIB, 100 * GIB, 0, 0)}, "quota", "quota -s"),
        ({"state": "hard", "reserve": GIB}, "log files", "free-reserve"),
        ({"kinds": {}}, "does not belong", "du"),
    ],
)
def test_the_likely_cause_comes_with_the_next_command(changes, cause, command):
    advice = advise(facts(**changes))
    assert cause in advice.cause
    assert command in advice.next
