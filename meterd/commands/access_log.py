r"""Reads the access logs of web servers, in the combined and the common format.

    198.51.100.7 - alice [31/Jan/2026:12:00:00 +0100] "GET /a?b HTTP/1.1" 200 512 "ref" "agent"

One line is one request and makes two events: one of `requests`, and one of `bytes` with the size
of the answer (`-` is 0). The account is the authenticated user, or the client's address where
there is none. Method and status are dimensions; the path is kept beside them, without its query,
because queries carry secrets. A quoted field may hold `\"`; escapes are kept as written.

Lines are bytes until they are understood: a log may hold anything. What does not follow the
format raises `BadLine`; nothing else is ever raised.
"""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from meterd.commands.line_identity import LineIdentity, id_of

REQUESTS, BYTES = "requests", "bytes"
DIMENSIONS = ["method", "status"]
METRICS: tuple[dict[str, Any], ...] = (
    {"code": REQUESTS, "aggregation": "count", "decimals": 0, "unit": "requests"},
    {"code": BYTES, "aggregation": "sum", "decimals": 0, "unit": "bytes"},
)
ACCOUNT_SIZE_MAX = 128
PATH_SIZE_MAX = 255
METHOD_SIZE_MAX = 32
SIZE_DIGITS_MAX = 18  # fits in 63 bits
MOMENTS_MAX = 4096  # moments remembered: a busy log repeats each many times

_QUOTED = rb'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(
    rb"(\S+) \S+ (.+?) \[([^\]]+)\] " + _QUOTED + rb" (\d{3}) (-|\d+)"
    rb"(?: " + _QUOTED + rb" " + _QUOTED + rb")?.*"
)
_MOMENT = re.compile(rb"(\d\d)/([A-Z][a-z][a-z])/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)")
_MONTHS = {
    name: number
    for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}
_METHOD = re.compile(rb"[A-Z][A-Z_-]*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BadLine(ValueError):
    """The line cannot become an event; `reason` is a stable word, the text is for people."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class AccessLog:
    """Turns the lines of one log into the fields of events."""

    def __init__(self, source: str = "") -> None:
        self._identity = LineIdentity(source)
        self._moments: dict[bytes, int] = {}

    def events(self, line: bytes) -> list[tuple[str, str, int, int, str, dict[str, str]]]:
        """The line's events as (account, metric, value, timestamp, id, properties)."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadLine("bad_line", "not in the combined or common log format")
        address, user, moment, request, status, size = match.group(1, 2, 3, 4, 5, 6)
        if len(size) > SIZE_DIGITS_MAX:
            raise BadLine("bad_value", "the size of the answer is no size")
        account = _account_of(address if user in (b"-", b'""') else user)
        timestamp = self._moments.get(moment) or self._remember(moment)
        properties = _request_properties(request)
        properties["status"] = status.decode()
        digest = self._identity.digest(line)
        count = 0 if size == b"-" else int(size)
        return [
            (account, REQUESTS, 1, timestamp, id_of(digest[:16]), properties),
            (account, BYTES, count, timestamp, id_of(digest[16:]), properties),
        ]

    def _remember(self, text: bytes) -> int:
        moment = parse_moment_of_log(text)
        if len(self._moments) >= MOMENTS_MAX:
            self._moments.clear()
        self._moments[text] = moment
        return moment


def _account_of(name: bytes) -> str:
    try:
        account = name.decode()
    except UnicodeDecodeError:
        raise BadLine("bad_account", "the user is not UTF-8") from None
    if len(name) > ACCOUNT_SIZE_MAX:
        raise BadLine("bad_account", f"the user is longer than {ACCOUNT_SIZE_MAX} bytes")
    return account


def _request_properties(request: bytes) -> dict[str, str]:
    """Method and path of a request line; what is no request (a port scan) has the method `-`."""
    method, _, target = request.partition(b" ")
    if len(method) > METHOD_SIZE_MAX or _METHOD.fullmatch(method) is None:
        return {"method": "-"}
    target = target.partition(b" ")[0]
    path = re.split(rb"[?#]", target, maxsplit=1)[0][:PATH_SIZE_MAX]
    text = path.decode(errors="replace")
    while len(text.encode()) > PATH_SIZE_MAX:
        text = text[:-1]
    return {"method": method.decode(), "path": text} if text else {"method": method.decode()}


def parse_moment_of_log(text: bytes) -> int:
    """The nanoseconds of `31/Jan/2026:12:00:00 +0100`."""
    match = _MOMENT.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        raise BadLine("bad_timestamp", "the time is not like 31/Jan/2026:12:00:00 +0100")
    day, year, hour, minute, second, hours, minutes = (
        int(match[i]) for i in (1, 3, 4, 5, 6, 8, 9)
    )
    sign = 1 if match[7] == b"+" else -1
    try:
        zone = timezone(sign * timedelta(hours=hours, minutes=minutes))
        # A leap second is the next second: datetime knows no sixtieth.
        moment = datetime(year, _MONTHS[match[2]], day, hour, minute, min(second, 59), tzinfo=zone)
        seconds = (moment - _EPOCH) // timedelta(seconds=1) + (second == 60)
    except (ValueError, OverflowError):
        raise BadLine("bad_timestamp", "there is no such time") from None
    if second > 60 or not -9_223_372_036 <= seconds <= 9_223_372_035:
        raise BadLine("bad_timestamp", "there is no such time")
    return seconds * 1_000_000_000
