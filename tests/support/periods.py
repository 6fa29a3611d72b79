"""Plain-Python calendar: where periods and windows begin in a time zone.

Part of the oracle: nothing here is shared with the product, and everything is done by the
definition rather than quickly.  A day starts at local midnight; where that local time does not
exist it starts at the first moment after the gap, where it exists twice at the first of the two.
Weeks, months, quarters and years start where one of their days does.  An hour starts whenever the
local clock shows a full hour, so a repeated hour is two hours, and one whose beginning is skipped
starts when the gap ends.  Moments are integer UTC nanoseconds throughout; no float ever.
"""

from bisect import bisect_right
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Period:
    """What "current" means for a metric; fields as on the wire."""

    kind: str = "month"
    anchor_day: int = 1
    duration: int = 0  # seconds; only for kind "fixed"
    epoch: int = 0  # ns; only for kind "fixed"
    timezone: str = "UTC"


def to_ns(moment: datetime) -> int:
    delta = moment - EPOCH
    return (delta.days * 86_400 + delta.seconds) * SECOND + delta.microseconds * 1000


def local_time(moment: int, zone: ZoneInfo) -> datetime:
    return (EPOCH + timedelta(seconds=moment // SECOND)).astimezone(zone)


def moments_of_local(naive: datetime, zone: ZoneInfo) -> list[int]:
    """All moments at which the clock shows `naive`; the end of the gap if it never does."""
    found = set()
    for fold in (0, 1):
        moment = to_ns(naive.replace(tzinfo=zone, fold=fold).astimezone(UTC))
        if local_time(moment, zone).replace(tzinfo=None) == naive:
            found.add(moment)
    return sorted(found) or [gap_end(naive, zone)]


def gap_end(naive: datetime, zone: ZoneInfo) -> int:
    """The first whole second after the gap that `naive` lies in."""
    moments = [to_ns(naive.replace(tzinfo=zone, fold=fold).astimezone(UTC)) for fold in (0, 1)]
    before, after = min(moments) // SECOND, max(moments) // SECOND
    while after - before > 1:
        middle = (before + after) // 2
        if local_time(middle * SECOND, zone).replace(tzinfo=None) < naive:
            before = middle
        else:
            after = middle
    return after * SECOND


def day_start(day: date, zone: ZoneInfo) -> int:
    return moments_of_local(datetime(day.year, day.month, day.day), zone)[0]


def anchored_day(month_number: int, anchor_day: int) -> date:
    """Day `anchor_day` of a month counted from year 0, or its last day where it is shorter."""
    year, month = month_number // 12, month_number % 12 + 1
    return date(year, month, min(anchor_day, monthrange(year, month)[1]))


def first_days(kind: str, anchor_day: int, around: date) -> list[date]:
    """First days of the period before, at and after a date, in order and then some."""
    month = around.year * 12 + around.month - 1
    if kind == "day":
        return [around + timedelta(days=n) for n in range(-2, 4)]
    if kind == "week":
        monday = around - timedelta(days=around.weekday())
        return [monday + timedelta(days=7 * n) for n in range(-2, 4)]
    if kind == "month":
        return [anchored_day(month + n, anchor_day) for n in range(-2, 4)]
    if kind == "quarter":
        return [anchored_day(month - month % 3 + 3 * n, 1) for n in range(-2, 4)]
    if kind == "year":
        return [date(around.year + n, 1, 1) for n in range(-2, 4)]
    raise ValueError(f"no period of kind {kind!r}")


def hour_starts(moment: int, zone: ZoneInfo) -> list[int]:
    hour = local_time(moment, zone).replace(tzinfo=None, minute=0, second=0)
    starts = set()
    for n in range(-4, 6):
        starts.update(moments_of_local(hour + timedelta(hours=n), zone))
    return sorted(starts)


def bounds(period: Period, moment: int) -> tuple[int, int]:
    """[start, end) of the period that a moment lies in."""
    if period.kind == "fixed":
        length = period.duration * SECOND
        start = period.epoch + (moment - period.epoch) // length * length
        return start, start + length
    zone = ZoneInfo(period.timezone)
    if period.kind == "hour":
        starts = hour_starts(moment, zone)
    else:
        around = local_time(moment, zone).date()
        days = first_days(period.kind, period.anchor_day, around)
        starts = [day_start(day, zone) for day in days]
    place = bisect_right(starts, moment)
    return starts[place - 1], starts[place]


def resolve(period: Period, named: str, now: int) -> tuple[int, int]:
    """[start, end) of "current", "previous", or the period in which a date begins."""
    if named == "current":
        return bounds(period, now)
    if named == "previous":
        return bounds(period, bounds(period, now)[0] - 1)
    return bounds(period, day_start(date.fromisoformat(named), ZoneInfo(period.timezone)))


def windows(kind: str, timezone: str, start: int, end: int) -> list[tuple[int, int]]:
    """The windows that [start, end) touches, clipped to it."""
    period = Period(kind=kind, timezone=timezone)
    found = []
    while start < end:
        stop = min(bounds(period, start)[1], end)
        found.append((start, stop))
        start = stop
    return found
