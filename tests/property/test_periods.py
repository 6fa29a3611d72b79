"""Periods and windows against the oracle, which asks zoneinfo about every moment."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.questions.zone_files import transitions
from meterd.core.questions import periods
from meterd.core.questions.zones import (
    HOUR,
    OFFSET_NS_MAX,
    SECOND,
    moment_of_local,
    offset_at,
)
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import I64_MIN
from meterd.protocol.metric import Period
from tests.support import periods as oracle
from tests.support.periods import DAY

# Half hours, a skipped day, midnights that do not exist, offsets in seconds, two gaps a year.
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "America/Santiago",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Africa/Monrovia",
    "Africa/Casablanca",
    "Antarctica/Troll",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kwajalein",
)
FIRST, LAST = 30 * DAY, 130 * 365 * DAY

kinds = st.sampled_from(["hour", "day", "week", "month", "quarter", "year"])


@st.composite
def moments(draw):
    """(zone, moment), half of them within two days of a transition."""
    zone = draw(st.sampled_from(ZONES))
    at = draw(st.integers(FIRST, LAST))
    changes = [moment for moment, _ in transitions(zone)[1:] if moment > FIRST]
    if changes and draw(st.booleans()):
        at = draw(st.sampled_from(changes)) + draw(st.integers(-2 * DAY, 2 * DAY))
    return zone, at


@settings(max_examples=400, deadline=None)
@given(moments(), kinds, st.integers(1, 31))
def test_bounds_are_those_of_the_oracle(where, kind, anchor_day):
    zone, at = where
    anchor_day = anchor_day if kind == "month" else 1
    period = Period(kind, anchor_day, timezone=zone)
    expected = oracle.bounds(oracle.Period(kind, anchor_day, timezone=zone), at)
    assert periods.bounds(period, transitions(zone), at) == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(60, 10**8), st.integers(-(10**18), 10**18), st.integers(FIRST, LAST))
def test_fixed_periods_count_from_their_epoch(duration, epoch, at):
    expected = oracle.bounds(oracle.Period("fixed", duration=duration, epoch=epoch), at)
    period = Period("fixed", duration=duration, epoch=epoch)
    assert periods.bounds(period, transitions("UTC"), at) == expected


@settings(max_examples=150, deadline=None)
@given(moments(), kinds, st.integers(1, 31), st.integers(0, 40))
def test_starts_are_consecutive_periods_that_cover_the_span(where, kind, anchor_day, days):
    zone, first = where
    anchor_day = anchor_day if kind == "month" else 1
    period, last = Period(kind, anchor_day, timezone=zone), first + days * DAY
    edges = periods.starts(period, transitions(zone), first, last)
    assert edges[0] <= first < edges[1]
    assert edges[-2] <= last < edges[-1]
    for start, end in list(pairwise(edges.tolist()))[:50]:
        assert periods.bounds(period, transitions(zone), start) == (start, end)


@settings(max_examples=100, deadline=None)
@given(moments(), st.sampled_from(periods.WINDOW_KINDS), st.integers(1, 60 * HOUR))
def test_windows_are_those_of_the_oracle(where, kind, length):
    zone, start = where
    edges = periods.windows(kind, transitions(zone), start, start + length).tolist()
    expected = oracle.windows(kind, zone, start, start + length)
    assert list(pairwise(edges)) == expected


@settings(max_examples=150, deadline=None)
@given(moments())
def test_transitions_tell_the_local_time(where):
    zone, at = where
    at = at // SECOND * SECOND
    local = oracle.local_time(at, oracle.ZoneInfo(zone))
    offset = offset_at(transitions(zone), at)
    assert offset == int(local.utcoffset().total_seconds())
    first = moment_of_local(transitions(zone), at + offset * SECOND)
    assert first == oracle.moments_of_local(local.replace(tzinfo=None), oracle.ZoneInfo(zone))[0]


def test_every_zone_of_the_database_has_valid_transitions():
    """A sample of odd ones; all of them would take minutes."""
    for zone in ZONES:
        moments = [at for at, _ in transitions(zone)]
        assert moments[0] == I64_MIN
        assert all(later > earlier for earlier, later in pairwise(moments))
        assert all(abs(offset) * SECOND <= OFFSET_NS_MAX for _, offset in transitions(zone))


@pytest.mark.parametrize("zone", ["", "Nowhere/City", "../etc/passwd", "Europe"])
def test_an_unknown_zone_is_a_bad_request(zone):
    with pytest.raises(BadRequest, match="timezone"):
        transitions(zone)


def test_previous_is_the_period_before():
    period = Period("month", 31)
    start, _ = periods.bounds(period, transitions("UTC"), 1_772_000_000 * SECOND)
    assert periods.previous(period, transitions("UTC"), 1_772_000_000 * SECOND)[1] == start


def test_too_many_windows_are_refused_before_they_are_computed():
    with pytest.raises(BadRequest, match="window"):
        periods.windows("hour", transitions("UTC"), -(2**63), 2**63 - 1)
    with pytest.raises(BadRequest, match="1700"):
        periods.windows("month", transitions("UTC"), -(2**63), -(2**63) + DAY)


def test_an_empty_range_has_no_windows():
    assert len(periods.windows("day", transitions("UTC"), 5, 5)) == 0


@pytest.mark.parametrize("kind", ["hour", "day", "week", "month", "quarter", "year", "fixed"])
@pytest.mark.parametrize("at", [-(2**63), 2**63 - 1])
def test_moments_beyond_the_calendar_do_not_overflow(kind, at):
    duration = 10 * 366 * 86_400 if kind == "fixed" else 0
    start, end = periods.bounds(Period(kind, duration=duration), transitions("UTC"), at)
    assert -(2**63) < start < end < 2**63 - 1
    assert isinstance(np.int64(start), np.int64)
