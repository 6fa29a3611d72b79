"""Reads time zones from the zone files of the host, or of package tzdata, into transitions.

The only reader of zone files.  What it returns is put into the log with the metric, so replicas and
later starts never ask again, whatever zone files they have.
"""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from meterd.core.questions.zones import SECOND, Transitions
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import I64_MIN

YEAR_FIRST, YEAR_END = 1970, 2101
# No zone has held two offsets within two days of each other and gone back.
STEP = timedelta(days=2)
ZONES_KEPT = 256
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(ZONES_KEPT)
def transitions(name: str) -> Transitions:
    """Return the transitions of a zone from 1970 to 2100.  Raises BadRequest when it is unknown."""
    try:
        zone = zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise BadRequest(f"timezone: {name} is not in the time zone database") from None
    moment = datetime(YEAR_FIRST, 1, 1, tzinfo=UTC)
    end = datetime(YEAR_END, 1, 1, tzinfo=UTC)
    offset = _offset(zone, moment)
    found = [(I64_MIN, offset)]
    while moment < end:
        later = moment + STEP
        if _offset(zone, later) != offset:
            at = _first_change(zone, moment, later)
            offset = _offset(zone, at)
            found.append(((at - EPOCH) // timedelta(seconds=1) * SECOND, offset))
            later = at
        moment = later
    return tuple(found)


def _offset(zone: zoneinfo.ZoneInfo, moment: datetime) -> int:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def _first_change(zone: zoneinfo.ZoneInfo, low: datetime, high: datetime) -> datetime:
    """Return the second at which the offset at `low` ends; it differs at `high`."""
    offset = _offset(zone, low)
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // timedelta(seconds=2) * timedelta(seconds=1)
        if _offset(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high
