"""Reads events written as JSON, one object on each line.

A line holds the fields of an event and nothing else: a misspelt `vaule` would otherwise count as
1. Numbers are exact: a decimal fraction stays the digits that were written. Without `timestamp`
an event happened when it was read; without `id` it gets a new one, or, on request, one derived
from the line.
"""

import json
import time
from decimal import Decimal
from typing import Any

from meterd.client.events import make_id
from meterd.commands.access_log import BadLine
from meterd.commands.line_identity import LineIdentity, id_of
from meterd.commands.moments import parse_moment
from meterd.protocol.limits import I64_MAX, I64_MIN

FIELDS = ("account", "metric", "value", "timestamp", "id", "operation", "properties")

Fields = tuple[str, str, int | str | Decimal, int, str, str, dict[str, str]]


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


_decode = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant).raw_decode


class EventLines:
    """Turns the lines of one file into the fields of events."""

    def __init__(self, id_from_line: bool = False, source: str = "") -> None:
        self._identity = LineIdentity(source) if id_from_line else None

    def event(self, line: bytes) -> Fields:
        """The line's event as (account, metric, value, timestamp, id, operation, properties)."""
        fields = _object_of(line)
        get = fields.get
        event = (
            _text(get("account"), "account"),
            _text(get("metric"), "metric"),
            _value(get("value", 1)),
            self._timestamp(get("timestamp")),
            self._id(get("id"), line),
            _operation(get("operation", "none")),
            _properties(get("properties")),
        )
        if not fields.keys() <= _FIELD_SET:
            name = min(fields.keys() - _FIELD_SET)
            raise BadLine("unknown_field", f"an event has no field {name!r:.40}")
        return event

    def _timestamp(self, timestamp: Any) -> int:
        if type(timestamp) is int:
            if I64_MIN <= timestamp <= I64_MAX:
                return timestamp
            raise BadLine("bad_timestamp", "timestamp does not fit in 64 bits")
        if timestamp is None:
            if self._identity is not None:
                raise BadLine("no_timestamp", "a line that makes its own id must hold its time")
            return time.time_ns()
        if type(timestamp) is not str:
            raise BadLine("bad_timestamp", "timestamp is nanoseconds or ISO-8601 text")
        try:
            return parse_moment(timestamp, time.time_ns())
        except ValueError as error:
            raise BadLine("bad_timestamp", str(error)) from None

    def _id(self, event_id: Any, line: bytes) -> str:
        if event_id is not None:
            return _text(event_id, "id")
        if self._identity is not None:
            return id_of(self._identity.digest(line)[:16])
        return make_id(time.time_ns())


_FIELD_SET = frozenset(FIELDS)


def _object_of(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
        fields, end = _decode(text)
    except (ValueError, RecursionError) as error:
        raise BadLine("bad_json", str(error)[:100]) from None
    if end != len(text):
        raise BadLine("bad_json", f"something follows the object at character {end}")
    if type(fields) is not dict:
        raise BadLine("bad_json", "the line is no JSON object")
    return fields


def _text(text: Any, field: str) -> str:
    if type(text) is not str:
        if field == "account" and type(text) is int:
            return str(text)
        missing = "is missing" if text is None else "is no text"
        raise BadLine(f"bad_{field}", f"{field} {missing}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadLine(f"bad_{field}", f"{field} holds half a character") from None
    return text


def _value(value: Any) -> int | str | Decimal:
    """Return a value as it is sent.

    Also one that no metric can take: whether its event is rejected, or known and so a conflict, is
    for the node to say.
    """
    if type(value) in (int, str, Decimal):
        return value
    raise BadLine("bad_value", "value is no decimal number such as 12 or -0.25")


def _operation(operation: Any) -> str:
    if operation in ("none", "add", "remove"):
        return operation
    raise BadLine("bad_operation", "operation is none, add or remove")


def _properties(properties: Any) -> dict[str, str]:
    if properties is None:
        return {}
    if type(properties) is not dict:
        raise BadLine("bad_properties", "properties is no object")
    for key, value in properties.items():
        _text(key, "properties")
        if type(value) is not str:
            raise BadLine("bad_properties", f"property {key!r:.40} is no text")
        _text(value, "properties")
    return properties
