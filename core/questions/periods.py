"""Says where the periods of a metric and the windows of a series begin, in any time zone.

A day starts at local midnight: at the first of two where the clock shows it twice, at the first
moment after the gap where it never does.  Weeks (from Monday, as in ISO 8601), months, quarters and
years start where one of their days does; a month with an anchor day starts on that day, or on its
last one where it is shorter.  An hour starts whenever the local clock shows a full hour: a repeated
hour is two hours, and one whose beginning is skipped starts when the gap ends, so where clocks
move by half an hour there is an hour of 30 or 90 minutes.  `fixed` counts from its epoch.

Invariants: periods are consecutive and never empty (a day that a zone skipped is no period), and
every moment between CALENDAR_START and CALENDAR_END lies in exactly one.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from meterd.core.questions.zones import (
    DAY,
    HOUR,
    OFFSET_NS_MAX,
    SECOND,
    Moments,
    Transitions,
    moments_of_local,
    stretches,
)
from meterd.protocol.errors import BadRequest
from meterd.protocol.metric import Period

# Years 1700 to 2239: every boundary near them still fits 64 bits of nanoseconds.
CALENDAR_START: Final = -98_615 * DAY
CALENDAR_END: Final = 98_615 * DAY
# Windows in one series: 416 days of hours, 27 years of days.
WINDOWS_MAX: Final = 10_000
WINDOW_KINDS: Final = ("hour", "day", "week", "month")
WINDOW_LENGTHS: Final = {"hour": HOUR, "day": DAY, "week": 7 * DAY, "month": 28 * DAY}
# Where to look for the period a moment lies in: no stretch of local time is repeated for longer.
MARGIN: Final = OFFSET_NS_MAX + DAY
MONTHS_OF: Final = {"month": 1, "quarter": 3, "year": 12}
# 1970-01-01 was a Thursday.
MONDAY: Final = -3
# Most questions are about one period of each metric, so the last one found is remembered.
FOUND_MAX: Final = 1_024
_found: dict[tuple[Period, Transitions], tuple[int, int]] = {}


def starts(period: Period, transitions: Transitions, first: int, last: int) -> Moments:
    """Return the boundaries of all periods from that of moment `first` to that of `last`.

    The end of the last one is included: k periods have k + 1 boundaries.
    """
    first = min(max(first, CALENDAR_START), CALENDAR_END)
    last = min(max(last, first), CALENDAR_END)
    if period.kind == "fixed":
        length = period.duration * SECOND
        start = period.epoch + (first - period.epoch) // length * length
        return _steps(start, last + length, length)
    if period.kind == "hour":
        found = _hours(transitions, first - MARGIN, last + MARGIN)
    else:
        days = _first_days(period, (first - MARGIN) // DAY, (last + MARGIN) // DAY)
        found = moments_of_local(transitions, days * DAY)
    found = np.unique(found)  # a day that was skipped begins where the next one does
    begin = np.searchsorted(found, first, side="right") - 1
    end = np.searchsorted(found, last, side="right")
    return found[begin : end + 1]


def bounds(period: Period, transitions: Transitions, moment: int) -> tuple[int, int]:
    """Return [start, end) of the period that a moment lies in."""
    key = period, transitions
    found = _found.get(key)
    if found is not None and found[0] <= moment < found[1]:
        return found
    start, end = starts(period, transitions, moment, moment).tolist()
    if start <= moment < end:  # not beyond the calendar
        if len(_found) >= FOUND_MAX:
            _found.clear()
        _found[key] = start, end
    return start, end


def previous(period: Period, transitions: Transitions, moment: int) -> tuple[int, int]:
    """Return [start, end) of the period before the one that a moment lies in."""
    return bounds(period, transitions, bounds(period, transitions, moment)[0] - 1)


def windows(kind: str, transitions: Transitions, start: int, end: int) -> Moments:
    """Return the boundaries of the windows that [start, end) touches, clipped to it.

    Raises BadRequest when there are too many of them.
    """
    if start >= end:
        return np.empty(0, np.int64)
    if (end - start) // WINDOW_LENGTHS[kind] >= WINDOWS_MAX:
        raise BadRequest(f"window: more than {WINDOWS_MAX} windows; choose longer ones")
    if start < CALENDAR_START or end > CALENDAR_END:
        raise BadRequest("window: a series lies between the years 1700 and 2239")
    edges = starts(Period(kind), transitions, start, end - 1)
    edges[0], edges[-1] = start, end
    return edges


def _first_days(period: Period, first: int, last: int) -> Moments:
    """Return the first days of periods, as days since 1970, enough to enclose first..last."""
    if period.kind == "day":
        return np.arange(first, last + 2, dtype=np.int64)
    if period.kind == "week":
        weeks = np.arange((first - MONDAY) // 7, (last - MONDAY) // 7 + 2, dtype=np.int64)
        return weeks * 7 + MONDAY
    step = MONTHS_OF[period.kind]
    low, high = _month_of(first) // step, _month_of(last) // step
    months = np.arange(low - 1, high + 2, dtype=np.int64) * step
    begin = _first_of_month(months)
    if period.anchor_day == 1:
        return begin
    length = _first_of_month(months + 1) - begin
    return begin + np.minimum(length, period.anchor_day) - 1


def _month_of(day: int) -> int:
    return int(np.datetime64(day, "D").astype("datetime64[M]").astype(np.int64))


def _first_of_month(months: Moments) -> Moments:
    return months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)


def _hours(transitions: Transitions, first: int, last: int) -> Moments:
    """Return every moment in first..last at which an hour begins, and the first after it."""
    zone = stretches(transitions)
    low = int(np.searchsorted(zone.start, first, side="right")) - 1
    high = int(np.searchsorted(zone.start, last, side="right"))
    found = []
    for row in range(low, high):
        offset = int(zone.offset[row])
        begin = max(int(zone.start[row]), first)
        end = int(zone.start[row + 1]) if row + 1 < len(zone.start) else last + 1
        full = -(-(begin + offset) // HOUR) * HOUR - offset
        found.append(_steps(full, min(end - 1, last), HOUR))
        if row > low and _skips_full_hour(begin + int(zone.offset[row - 1]), begin + offset):
            found.append(np.array([begin], np.int64))
    return np.concatenate(found)


def _steps(first: int, last: int, step: int) -> Moments:
    """Return first, first + step, … up to last.  (np.arange counts its steps in floats.)"""
    return np.arange(max(0, (last - first) // step + 1), dtype=np.int64) * step + first


def _skips_full_hour(local_before: int, local_after: int) -> bool:
    return -(-local_before // HOUR) * HOUR < local_after
