"""Decodes the plain form of an ingest body: a list of maps, for simple clients.

A field of the wrong type, or one that is missing, is the fault of its event; only what makes the
list itself meaningless (an entry that is no map, an unknown key) fails the request. A field that
may be left out may also be nil.
"""

from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.body import text_bytes, unknown_name
from meterd.protocol.decimal_text import parse_decimal
from meterd.protocol.errors import (
    BAD_ACCOUNT,
    BAD_ID,
    BAD_METRIC,
    BAD_OPERATION,
    BAD_PROPERTIES,
    BAD_TIMESTAMP,
    BAD_VALUE,
    WELL_FORMED,
    RemoteProtocolError,
)
from meterd.protocol.event_columns import (
    ABSENT,
    I64,
    OPERATIONS,
    U8,
    U16,
    U32,
    Durability,
    EventColumns,
    PropertyColumn,
    RowFaults,
    is_metric_code,
    is_property_key,
    is_property_value,
    text_column,
)
from meterd.protocol.limits import (
    EVENTS_MAX,
    I64_MAX,
    I64_MIN,
    PROPERTIES_MAX,
    PROPERTY_KEYS_PER_REQUEST_MAX,
)

BODY_KEYS = frozenset({"durability", "events"})
EVENT_KEYS = frozenset({"account", "id", "metric", "operation", "properties", "timestamp", "value"})
OPERATION_NUMBERS: dict[object, int] = {None: 0} | {
    word: number for number, word in enumerate(OPERATIONS)
}


def decode_plain(fields: dict[str, Any], durability: Durability) -> EventColumns:
    """Decode a body that has `events`.

    Raises RemoteProtocolError when it is not a list of maps with known keys.
    """
    events = _events(fields)
    rows = PlainRows(len(events))
    for row, event in enumerate(events):
        reason = rows.read(row, event)
        if reason:
            rows.faults.mark([row], reason)
    return rows.columns(durability)


def _events(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events after checking that they are maps of known keys."""
    if not fields.keys() <= BODY_KEYS:
        raise RemoteProtocolError("bad_request", unknown_name(fields, BODY_KEYS, "ingest: key"))
    events = fields["events"]
    if type(events) is not list or not events:
        raise RemoteProtocolError("malformed", "events is not a list of at least one event")
    if len(events) > EVENTS_MAX:
        raise RemoteProtocolError("too_large", f"{len(events)} events; the limit is {EVENTS_MAX}")
    for row, event in enumerate(events):
        if type(event) is not dict:
            raise RemoteProtocolError("malformed", f"event {row} is not a map")
        if not event.keys() <= EVENT_KEYS:
            raise RemoteProtocolError(
                "bad_request", unknown_name(event, EVENT_KEYS, f"event {row}: key")
            )
    return events


class PlainRows:
    """Takes the rows of a request one by one and becomes its columns; only through read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.faults = RowFaults(count)
        self.timestamp = [0] * count
        self.value = [1] * count
        self.exponent = [0] * count
        self.metric_codes: dict[bytes, int] = {}
        self.metric_index = [0] * count
        self.account = [b""] * count
        self.id = [b""] * count
        self.operation = [0] * count
        self.properties = PlainProperties(count)

    def read(self, row: int, event: dict[str, Any]) -> int:
        """Take the fields of an event, also those after a fault; return the first reason."""
        reasons = (
            self._account(row, event.get("account")),
            self._metric(row, event.get("metric")),
            self._value(row, event.get("value")),
            self._timestamp(row, event.get("timestamp")),
            self._id(row, event.get("id")),
            self._operation(row, event.get("operation")),
            self.properties.read(row, event.get("properties")),
        )
        return next(filter(None, reasons), WELL_FORMED)

    def columns(self, durability: Durability) -> EventColumns:
        return EventColumns(
            self.count,
            np.array(self.timestamp, I64),
            np.array(self.value, I64),
            np.array(self.exponent, U8),
            list(self.metric_codes),
            np.array(self.metric_index, U16),
            text_column(self.account),
            text_column(self.id),
            None,
            np.array(self.operation, U8),
            self.properties.columns(),
            self.faults.reason,
            durability,
        )

    def _account(self, row: int, raw: object) -> int:
        if type(raw) is int:
            raw = str(raw)
        if type(raw) is not str:
            return BAD_ACCOUNT
        self.account[row] = text_bytes(raw)
        return WELL_FORMED

    def _metric(self, row: int, raw: object) -> int:
        code = text_bytes(raw) if type(raw) is str else b""
        known = self.metric_codes.get(code)
        reason = WELL_FORMED
        if known is None or code == b"":
            if not is_metric_code(code):
                code, reason = b"", BAD_METRIC
            known = self.metric_codes.setdefault(code, len(self.metric_codes))
        self.metric_index[row] = known
        return reason

    def _value(self, row: int, raw: object) -> int:
        if type(raw) is str:
            parsed = parse_decimal(text_bytes(raw))
            if parsed is None:
                return BAD_VALUE
            self.value[row], self.exponent[row] = parsed
        elif type(raw) is int and I64_MIN <= raw <= I64_MAX:
            self.value[row] = raw
        elif raw is not None:
            return BAD_VALUE
        return WELL_FORMED

    def _timestamp(self, row: int, raw: object) -> int:
        if type(raw) is not int or not I64_MIN <= raw <= I64_MAX:
            return BAD_TIMESTAMP
        self.timestamp[row] = raw
        return WELL_FORMED

    def _id(self, row: int, raw: object) -> int:
        if type(raw) is not str:
            return BAD_ID
        self.id[row] = text_bytes(raw)
        return WELL_FORMED

    def _operation(self, row: int, raw: object) -> int:
        number = OPERATION_NUMBERS.get(raw) if raw is None or type(raw) is str else None
        if number is None:
            return BAD_OPERATION
        self.operation[row] = number
        return WELL_FORMED


class PlainProperties:
    """Takes the properties of rows and becomes a column for each key; only through read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.keys: dict[bytes, tuple[dict[bytes, int], NDArray[np.uint32]]] = {}

    def read(self, row: int, raw: object) -> int:
        """Take the properties of one event, all or none.

        Raises RemoteProtocolError when the request has more keys than columns are allowed.
        """
        if raw is None:
            return WELL_FORMED
        if type(raw) is not dict or len(raw) > PROPERTIES_MAX:
            return BAD_PROPERTIES
        pairs: list[tuple[bytes, bytes]] = []
        for key, value in raw.items():
            if type(key) is not str or type(value) is not str:
                return BAD_PROPERTIES
            pair = text_bytes(key), text_bytes(value)
            if not (is_property_key(pair[0]) and is_property_value(pair[1])):
                return BAD_PROPERTIES
            pairs.append(pair)
        for key_bytes, value_bytes in pairs:
            self._set(row, key_bytes, value_bytes)
        return WELL_FORMED

    def columns(self) -> list[PropertyColumn]:
        return [
            PropertyColumn(key, text_column(values), index)
            for key, (values, index) in sorted(self.keys.items(), key=itemgetter(0))
        ]

    def _set(self, row: int, key: bytes, value: bytes) -> None:
        column = self.keys.get(key)
        if column is None:
            if len(self.keys) == PROPERTY_KEYS_PER_REQUEST_MAX:
                raise RemoteProtocolError(
                    "too_large",
                    f"more than {PROPERTY_KEYS_PER_REQUEST_MAX} property keys in one request",
                )
            column = self.keys[key] = {}, np.full(self.count, ABSENT, U32)
        values, index = column
        index[row] = values.setdefault(value, len(values))
