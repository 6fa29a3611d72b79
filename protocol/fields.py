"""Checks the fields of questions and definitions one at a time.

Each function takes what was decoded and the name to complain about, and returns the value in the
one form the node works with, or raises BadRequest with a message that names the field and says
what would be right.
"""

import ipaddress
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from meterd.protocol import limits
from meterd.protocol.body import unknown_name
from meterd.protocol.errors import BadRequest
from meterd.protocol.event_columns import is_metric_code, is_property_key

# As DNS has them; nothing that means something else to whoever connects.
HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")

TIMEZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+./-]*", re.ASCII)
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# Positions in all partitions, as `core/questions/feed_cursor.py` writes them, take up to 3,800.
FEED_CURSOR_SIZE_MAX = 4_096


def default(raw: object, fallback: object) -> object:
    return fallback if raw is None else raw


def known_map(raw: object, where: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise BadRequest(f"{where}: not a map")
    if not raw.keys() <= set(known):
        raise BadRequest(unknown_name(raw, known, f"{where}: key"))
    return raw


def one_of(raw: object, known: tuple[str, ...], where: str) -> str:
    if not isinstance(raw, str) or raw not in known:
        raise BadRequest(f"{where}: one of {', '.join(known)}")
    return raw


def integer(raw: object, low: int, high: int, where: str) -> int:
    if type(raw) is not int or not low <= raw <= high:
        raise BadRequest(f"{where}: an integer from {low} to {high}")
    return raw


def boolean(raw: object, where: str) -> bool:
    if type(raw) is not bool:
        raise BadRequest(f"{where}: true or false")
    return raw


def text(raw: object, size_max: int, where: str) -> str:
    if not isinstance(raw, str):
        raise BadRequest(f"{where}: not text")
    try:
        size = len(raw.encode())
    except UnicodeEncodeError:
        raise BadRequest(f"{where}: not UTF-8") from None
    if size > size_max:
        raise BadRequest(f"{where}: {size} bytes; the limit is {size_max}")
    return raw


def metric_code(raw: object, where: str) -> str:
    """Return a metric code, or raise BadRequest."""
    if not isinstance(raw, str) or not is_metric_code(raw.encode("utf-8", "replace")):
        raise BadRequest(f"{where}: 1 to 63 of the characters a-z 0-9 _ . : -")
    return raw


def property_key(raw: object, where: str) -> str:
    """Return a property key, or raise BadRequest."""
    if not isinstance(raw, str) or not is_property_key(raw.encode("utf-8", "surrogatepass")):
        raise BadRequest(f"{where}: a property key is text of 1 to 63 bytes UTF-8")
    return raw


def property_keys(raw: object, where: str) -> tuple[str, ...]:
    """Return distinct property keys, at most as many as a metric has dimensions."""
    if not isinstance(raw, list | tuple) or len(raw) > limits.DIMENSIONS_MAX:
        raise BadRequest(f"{where}: a list of at most {limits.DIMENSIONS_MAX} property keys")
    keys = tuple(property_key(key, where) for key in raw)
    if len(set(keys)) != len(keys):
        raise BadRequest(f"{where}: a key is named twice")
    return keys


def timezone(raw: object, where: str) -> str:
    """Return text that can be the name of an IANA time zone, or raise BadRequest."""
    name = text(raw, limits.TIMEZONE_SIZE_MAX, where)
    if TIMEZONE.fullmatch(name) is None or ".." in name:
        raise BadRequest(f"{where}: not the name of a time zone")
    return name


def account(raw: object) -> str:
    """Return an account as text, or raise BadRequest."""
    if type(raw) is int:
        raw = str(raw)
    name = text(raw, limits.ACCOUNT_SIZE_MAX, "account")
    if not name:
        raise BadRequest("account: empty")
    return name


def page_size(raw: object) -> int:
    return integer(raw, 1, limits.PAGE_SIZE_MAX, "limit")


def cursor(raw: object) -> str:
    return text(raw, limits.CURSOR_SIZE_MAX, "after")


def feed_cursor(raw: object) -> str:
    """Return a cursor that may name a position in every partition, or raise BadRequest."""
    return text(raw, FEED_CURSOR_SIZE_MAX, "after")


def nanoseconds(raw: object, where: str) -> int:
    return integer(raw, limits.I64_MIN, limits.I64_MAX, where)


def period_name(raw: object) -> str:
    """Return "current", "previous" or a date of the calendar, or raise BadRequest."""
    name = text(raw, len("2026-01-31"), "period")
    if name in ("current", "previous"):
        return name
    if DATE.fullmatch(name) is not None:
        try:
            return date.fromisoformat(name).isoformat()
        except ValueError:
            pass
    raise BadRequest("period: current, previous, or a date such as 2026-01-31")


def filters(raw: object) -> dict[str, tuple[str | None, ...]]:
    """Return the values wanted for each property key; None is an event without the property."""
    if not isinstance(raw, Mapping) or len(raw) > limits.DIMENSIONS_MAX:
        raise BadRequest(f"filters: a map of at most {limits.DIMENSIONS_MAX} property keys")
    wanted: dict[str, tuple[str | None, ...]] = {}
    for key, values in raw.items():
        if not isinstance(values, list | tuple) or not (
            1 <= len(values) <= limits.FILTER_VALUES_MAX
        ):
            raise BadRequest(f"filters: a list of 1 to {limits.FILTER_VALUES_MAX} values each")
        wanted[property_key(key, "filters")] = tuple(
            None if value is None else text(value, limits.PROPERTY_VALUE_SIZE_MAX, "filters")
            for value in values
        )
    return wanted


def partitions(raw: object) -> tuple[int, ...]:
    """Return the partitions of a set of 32 bytes, ascending, or raise BadRequest."""
    size = limits.PARTITION_COUNT // 8
    if not isinstance(raw, bytes) or len(raw) != size:
        raise BadRequest(f"partitions: {size} bytes, a bit for each partition")
    bits = int.from_bytes(raw, "little")
    return tuple(one for one in range(limits.PARTITION_COUNT) if bits >> one & 1)


def command_id(raw: object) -> str:
    """Return the id by which a command is done once, or raise BadRequest."""
    name = text(raw, limits.COMMAND_ID_SIZE_MAX, "id")
    if not name:
        raise BadRequest("id: empty")
    return name


def balances(raw: object) -> list[Any]:
    """Return opening balances, unchecked but for their number; the node knows their metrics."""
    if not isinstance(raw, list | tuple) or not 1 <= len(raw) <= limits.BALANCES_MAX:
        raise BadRequest(f"balances: a list of 1 to {limits.BALANCES_MAX}")
    return list(raw)


def numbers(raw: object, low: int, high: int, count: int, where: str) -> tuple[int, ...]:
    """Return distinct integers, at most `count`, or raise BadRequest."""
    if not isinstance(raw, list | tuple) or len(raw) > count:
        raise BadRequest(f"{where}: a list of at most {count} integers")
    found = tuple(integer(one, low, high, where) for one in raw)
    if len(set(found)) != len(found):
        raise BadRequest(f"{where}: an integer stands there twice")
    return found


def address(raw: object, where: str) -> str:
    """Return HOST:PORT as text, or raise BadRequest; whether it leads somewhere is not asked."""
    name = text(raw, limits.ADDRESS_SIZE_MAX, where)
    host, separator, port = name.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    good = is_ipv6(host[1:-1]) if bracketed else HOST_NAME.fullmatch(host) is not None
    if not (good and separator and port.isascii() and port.isdecimal()):
        raise BadRequest(f"{where}: not HOST:PORT")
    if not 1 <= int(port[:6]) <= 65_535:
        raise BadRequest(f"{where}: not HOST:PORT")
    return name


def is_host(host: str) -> bool:
    """Is this a name or an address, IPv6 without brackets?"""
    return is_ipv6(host) or HOST_NAME.fullmatch(host) is not None


def is_ipv6(host: str) -> bool:
    """Is this an IPv6 address, with or without a zone?"""
    number, separator, zone = host.partition("%")
    if separator and HOST_NAME.fullmatch(zone) is None:
        return False
    try:
        ipaddress.IPv6Address(number)
    except ValueError:
        return False
    return True


def moves(raw: object) -> list[list[Any]]:
    """Return changes of the plan, [group, voters, leader] each, or raise BadRequest."""
    count = limits.PARTITION_COUNT + 1
    if not isinstance(raw, list | tuple) or not 1 <= len(raw) <= count:
        raise BadRequest(f"moves: a list of 1 to {count}")
    found = []
    for one in raw:
        if not isinstance(one, list | tuple) or len(one) != 3:
            raise BadRequest("moves: each is [group, voters, leader]")
        group, voters, leader = one
        node = limits.NODE_MAX
        found.append(
            [
                integer(group, 0, limits.PARTITION_COUNT, "moves: group"),
                list(numbers(voters, 0, node, limits.VOTERS_MAX, "moves: voters")),
                integer(leader, 0, node, "moves: leader"),
            ]
        )
    if len({group for group, *_ in found}) != len(found):
        raise BadRequest("moves: a group stands there twice")
    return found
