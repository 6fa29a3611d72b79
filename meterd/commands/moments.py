"""Reads and writes points in time the way people type them.

Accepted: ISO-8601 dates and times (`2026-01-31`, `2026-01-31T12:00:00.5+02:00`), whole nanoseconds
since 1970 in UTC, `now`, and distances from now (`-1h`, `now-2d`, `+90s`). A date or time without
an offset is taken in the zone the command was given, UTC otherwise. Everything is exact to the
nanosecond: fractions are read as digits, never through a float.
"""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

SECOND = 1_000_000_000
MOMENT_MIN, MOMENT_MAX = -(2**63), 2**63 - 1

_UNITS = {"ms": SECOND // 1000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_UNITS |= {"d": 86_400 * SECOND, "w": 7 * 86_400 * SECOND}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RELATIVE = re.compile(r"(?:now)?(?P<sign>[+-])(?P<count>\d{1,12})(?P<unit>ms|[smhdw])", re.ASCII)
_ISO = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:[T ](?P<clock>\d\d:\d\d(?::\d\d)?)(?:(?<=:\d\d:\d\d)[.,](?P<fraction>\d{1,9}))?"
    r"(?P<offset>Z|[+-]\d\d:?\d\d)?)?",
    re.ASCII,
)
_FORMS = "use 2026-01-31, 2026-01-31T12:00:00Z, nanoseconds since 1970, now, or -1h"


def find_zone(name: str) -> tzinfo:
    """The IANA time zone of that name. Raises ValueError when there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as cause:
        raise ValueError(f"no time zone is called {name!r}") from cause


def parse_moment(text: str, now: int, zone: tzinfo = UTC) -> int:
    """The UTC nanoseconds that a text means. Raises ValueError that names the accepted forms."""
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII):
        return _check_range(int(text), text)
    if text == "now":
        return now
    if match := _RELATIVE.fullmatch(text):
        distance = int(match["count"]) * _UNITS[match["unit"]]
        return _check_range(now + (distance if match["sign"] == "+" else -distance), text)
    if match := _ISO.fullmatch(text):
        return _check_range(_parse_iso(match, text, zone), text)
    raise ValueError(f"{text!r} is no point in time: {_FORMS}")


def _parse_iso(match: re.Match[str], text: str, zone: tzinfo) -> int:
    try:
        moment = datetime.fromisoformat(f"{match['date']}T{match['clock'] or '00:00'}")
        if match["offset"] is None:
            moment = moment.replace(tzinfo=zone)
        else:
            offset = match["offset"].replace("Z", "+0000").replace(":", "")
            moment = moment.replace(tzinfo=datetime.strptime(offset, "%z").tzinfo)
        seconds = (moment - _EPOCH) // timedelta(seconds=1)
    except (ValueError, OverflowError) as cause:
        raise ValueError(f"{text!r} is no point in time: {cause}") from cause
    return seconds * SECOND + int((match["fraction"] or "").ljust(9, "0"))


def _check_range(moment: int, text: str) -> int:
    if not MOMENT_MIN <= moment <= MOMENT_MAX:
        raise ValueError(f"{text!r} lies outside the years 1678 to 2262")
    return moment


def format_moment(moment: int, zone: tzinfo = UTC) -> str:
    """Write a moment as ISO-8601: to the second, and with nine digits when it has a fraction."""
    seconds, fraction = divmod(moment, SECOND)
    written = (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)
    date, offset = written.isoformat()[:19], written.isoformat()[19:]
    return date + (f".{fraction:09d}" if fraction else "") + ("Z" if zone is UTC else offset)


def format_duration(seconds: float) -> str:
    """Write a duration in its two largest units: `3d 4h`, `2m 5s`, `0s`."""
    left, parts = max(0, int(seconds)), []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"
