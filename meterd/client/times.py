"""Moments and values as people write them, turned into what goes over the wire.

Money depends on these: nothing is rounded here and nothing is guessed. A float cannot hold 0.1, so
it is refused as a value; a datetime without a zone means another moment on every machine, so it is
refused as a time. ISO text without an offset means UTC, as everywhere in meterd. What the node can
judge (does the text fit the metric?) is left to the node, which answers it event by event.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

# Far beyond 64 bits; keeps Decimal("1E+999999") from becoming a megabyte of text.
DECIMAL_EXPONENT_MAX = 40

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FRACTION = re.compile(r"(?:(?<=:\d\d:\d\d)|(?<=\D\d{6}))[.,](\d+)(?=$|Z|[+-])")


def to_nanoseconds(moment: int | datetime | str) -> int:
    """Turn a moment into UTC nanoseconds: ns as int, an aware datetime, or ISO 8601 text.

    Raises TypeError for another type (a float among them), ValueError for a datetime without a
    zone or text that is no time.
    """
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError(f"{moment!r} has no time zone: give it one, such as datetime.UTC")
        return (moment - _EPOCH) // _MICROSECOND * 1000
    if isinstance(moment, str):
        return _nanoseconds_of_text(moment)
    if isinstance(moment, int) and not isinstance(moment, bool):
        return moment
    try:
        return moment.__index__()  # numpy's integers
    except AttributeError:
        raise TypeError(
            f"{moment!r} is no time: pass nanoseconds as int, a datetime with a zone, or ISO text"
        ) from None


def _nanoseconds_of_text(text: str) -> int:
    """Read ISO 8601 text; datetime keeps six digits of a second, so the fraction is read apart."""
    fraction = _FRACTION.search(text)
    if fraction is not None and len(fraction.group(1)) > 9:
        raise ValueError(f"{text!r} is finer than a nanosecond")
    whole = text if fraction is None else text[: fraction.start()] + text[fraction.end() :]
    if "." in whole or "," in whole:  # Python reads a half minute of ISO 8601 as half a second
        raise ValueError(f"{text!r} has a fraction of something else than seconds")
    moment = datetime.fromisoformat(whole)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    digits = fraction.group(1).ljust(9, "0") if fraction else "0"
    return (moment - _EPOCH) // _MICROSECOND * 1000 + int(digits)


def exact_value(value: object) -> int | str:
    """Give a value as an int or as text that says exactly the same.

    Raises TypeError for a float, a bool or anything else that is no number, ValueError for a
    Decimal that no metric could hold.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        if value.is_zero():  # a sum of 0 may have any number of digits
            return 0
        if not value.is_finite() or abs(value.adjusted()) > DECIMAL_EXPONENT_MAX:
            raise ValueError(f"value {value!r} does not fit in 64 bits")
        return format(value, "f")
    if isinstance(value, bool | float) or not hasattr(value, "__index__"):
        raise TypeError(
            f"value {value!r} is a {type(value).__name__}, which is not exact: "
            'pass an int, a decimal.Decimal("0.1") or the text "0.1"'
        )
    return int(value.__index__())
