"""Points in time as people type them, against Python's own datetime."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.commands.moments import (
    find_zone,
    format_duration,
    format_moment,
    parse_moment,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = 1_790_000_000_123_456_789
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
TIMES = st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1), timezones=OFFSETS)


@given(TIMES.map(lambda time: time.replace(microsecond=0)), st.integers(0, 999_999_999))
def test_iso_text_means_the_same_as_in_datetime_and_keeps_nine_digits(time, fraction):
    expected = (time - EPOCH) // timedelta(seconds=1) * 10**9 + fraction
    offset = time.strftime("%z")
    text = f"{time:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + f".{fraction:09d}{offset}"
    assert parse_moment(text, NOW) == expected


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_written_moment_reads_back(moment):
    assert parse_moment(format_moment(moment), NOW) == moment
    assert parse_moment(str(moment), NOW) == moment


@pytest.mark.parametrize(
    ("text", "distance"),
    [("now", 0), ("-1h", -3600), ("now-1h", -3600), ("+90s", 90), ("-2d", -172_800)],
)
def test_distances_count_from_now(text, distance):
    assert parse_moment(text, NOW) == NOW + distance * 10**9


def test_a_time_without_offset_is_taken_in_the_zone():
    winter = parse_moment("2026-01-31", NOW, find_zone("Europe/Berlin"))
    assert winter == parse_moment("2026-01-30T23:00:00Z", NOW)
    assert format_moment(winter, find_zone("Europe/Berlin")) == "2026-01-31T00:00:00+01:00"


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-13-01", "2026-02-30", "1h", "2026-01-01T25:00", "9" * 20, "-99999999w"],
)
def test_what_is_no_time_is_refused_with_the_text_named(text):
    with pytest.raises(ValueError, match=r"no point in time|outside"):
        parse_moment(text, NOW)


@given(st.text(max_size=30))
def test_any_text_is_a_moment_or_a_value_error(text):
    try:
        assert -(2**63) <= parse_moment(text, NOW) < 2**63
    except ValueError as error:
        assert repr(text.strip()) in str(error)


def test_an_unknown_zone_is_named():
    with pytest.raises(ValueError, match="Mars/Base"):
        find_zone("Mars/Base")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (61, "1m 1s"), (3600, "1h"), (90_061, "1d 1h")]
)
def test_durations_show_their_two_largest_units(seconds, text):
    assert format_duration(seconds) == text
