"""Decodes the body of an ingest request, in both its forms, into EventColumns.

The columnar form is taken as it is: arrays are views of the received bytes, checked as a whole and
never row by row, so a request of 500 events costs hardly more than one of 1. Two kinds of fault
are kept apart. What breaks the structure (sizes, offsets, indexes, unknown keys) makes the rest
meaningless, and the whole body raises RemoteProtocolError. What is wrong with one row (a decimal
that does not fit, text that is not UTF-8) becomes that row's `reason`.

`encode_columns` is the other direction, for clients.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.body import Bytes, open_body, text_bytes, unknown_name, unpack
from meterd.protocol.column_encoding import ColumnInput, encode_columns
from meterd.protocol.decimal_text import parse_decimal
from meterd.protocol.errors import (
    BAD_ACCOUNT,
    BAD_METRIC,
    BAD_OPERATION,
    BAD_PROPERTIES,
    BAD_VALUE,
    RemoteProtocolError,
)
from meterd.protocol.event_columns import (
    ABSENT,
    I64,
    ONES_I64,
    U8,
    U16,
    U32,
    ZEROS_U8,
    ZEROS_U16,
    Durability,
    EventColumns,
    PropertyColumn,
    RowFaults,
    TextColumn,
    constant_column,
    is_metric_code,
    is_property_key,
    is_property_value,
    text_column,
    text_rows,
)
from meterd.protocol.limits import (
    ACCOUNT_SIZE_MAX,
    EVENTS_MAX,
    EXPONENT_MAX,
    PROPERTIES_MAX,
    PROPERTY_KEYS_PER_REQUEST_MAX,
    UUID_SIZE,
)
from meterd.protocol.plain_events import decode_plain

__all__ = [
    "ABSENT",
    "ColumnInput",
    "Durability",
    "EventColumns",
    "PropertyColumn",
    "TextColumn",
    "decode_events",
    "encode_columns",
]

KEYS = frozenset(
    {
        "account",
        "durability",
        "exponent",
        "id",
        "metric",
        "n",
        "operation",
        "properties",
        "timestamp",
        "value",
    }
)
PROPERTY_KEYS = frozenset({"index", "key", "values"})
EXPONENTS = [constant_column(exponent, U8) for exponent in range(EXPONENT_MAX + 1)]
OPERATION_BYTES = b"\x00\x01\x02"


def decode_events(body: Bytes, lz4_size: int | None) -> EventColumns:
    """Decode the events of one ingest request.

    Raises RemoteProtocolError when the structure is broken; a fault of one row is its `reason`.
    """
    fields = unpack(open_body(body, lz4_size))
    if type(fields) is not dict:
        raise _malformed("the body is not a map")
    durability: Any = fields.get("durability")
    if durability is None:
        durability = "sync"
    if durability != "sync" and durability != "async":
        raise RemoteProtocolError("bad_request", "durability is neither sync nor async")
    if "events" in fields:
        return decode_plain(fields, durability)
    return _decode_columnar(fields, durability)


def _decode_columnar(fields: dict[str, Any], durability: Durability) -> EventColumns:
    if not fields.keys() <= KEYS:
        raise RemoteProtocolError("bad_request", unknown_name(fields, KEYS, "ingest: key"))
    n = fields.get("n")
    if type(n) is not int or n < 1:
        raise _malformed("n is not a number of events")
    if n > EVENTS_MAX:
        raise RemoteProtocolError("too_large", f"{n} events; the limit is {EVENTS_MAX}")
    faults = RowFaults(n)
    timestamp = np.frombuffer(_bytes(fields.get("timestamp"), 8 * n, "timestamp"), I64)
    value, exponent = _values(fields, n, faults)
    metric_codes, metric_index = _metrics(fields.get("metric"), n, faults)
    account = _accounts(fields.get("account"), n, faults)
    event_id, uuid = _ids(fields.get("id"), n)
    operation = _operations(fields.get("operation"), n, faults)
    properties = fields.get("properties")
    return EventColumns(
        n,
        timestamp,
        value,
        exponent,
        metric_codes,
        metric_index,
        account,
        event_id,
        uuid,
        operation,
        [] if properties is None else _properties(properties, n, faults),
        faults.reason,
        durability,
    )


def _malformed(message: str) -> RemoteProtocolError:
    return RemoteProtocolError("malformed", message)


def _bytes(raw: object, size: int, key: str) -> bytes:
    """Return the bytes of an array after checking that they are that many."""
    if type(raw) is not bytes:
        raise _malformed(f"{key} is missing or not bin")
    if len(raw) != size:
        raise _malformed(f"{key} has {len(raw)} bytes instead of {size}")
    return raw


def _text_column(raw: dict[str, Any], n: int, key: str) -> TextColumn:
    """Read {"offsets", "text"} and check that every row lies within the text."""
    text = raw.get("text")
    if len(raw) != 2 or type(text) is not bytes:
        raise _malformed(f"{key} is not made of offsets and text")
    offsets = np.frombuffer(_bytes(raw.get("offsets"), 4 * n + 4, f"offsets of {key}"), U32)
    if offsets.item(0) != 0 or offsets.item(n) != len(text):
        raise _malformed(f"offsets of {key} do not go from 0 to the end of its text")
    if n > 1 and np.count_nonzero(offsets[1:] < offsets[:-1]):
        raise _malformed(f"offsets of {key} fall")
    return TextColumn(offsets, np.frombuffer(text, U8))


def _texts(raw: object, key: str) -> list[bytes]:
    """Return the bytes of a dictionary's values, of which there is at least one."""
    if type(raw) is not list or not raw:
        raise _malformed(f"values of {key} is not a list of texts")
    for text in raw:
        if type(text) is not str:
            raise _malformed(f"values of {key} holds something else than text")
    return [text_bytes(text) for text in raw]


def _check_index(index: NDArray[Any], size: int, key: str) -> None:
    if index.size and int(index.max()) >= size:
        raise _malformed(f"index of {key} points behind its {size} values")


def _metrics(raw: object, n: int, faults: RowFaults) -> tuple[list[bytes], NDArray[np.uint16]]:
    if type(raw) is not dict:
        raise _malformed("metric is missing or not a map")
    codes = _texts(raw.get("values"), "metric")
    index: NDArray[np.uint16] = ZEROS_U16[:n]
    if raw.get("index") is not None:
        index = np.frombuffer(_bytes(raw["index"], 2 * n, "index of metric"), U16)
        _check_index(index, len(codes), "metric")
    elif len(codes) != 1:
        raise _malformed("metric has several values and no index")
    if len(raw) != 1 + ("index" in raw):
        raise _malformed("metric is made of values and index only")
    bad = [row for row, code in enumerate(codes) if not is_metric_code(code)]
    if bad:
        faults.mark(np.isin(index, bad), BAD_METRIC)
        for row in bad:
            codes[row] = b""
    return codes, index


def _accounts(raw: object, n: int, faults: RowFaults) -> TextColumn:
    if type(raw) is not dict:
        raise _malformed("account is missing or not a map")
    if "values" not in raw:
        return _text_column(raw, n, "account")
    if len(raw) != 2:
        raise _malformed("account is made of values and index only")
    texts = _texts(raw["values"], "account")
    index = np.frombuffer(_bytes(raw.get("index"), 4 * n, "index of account"), U32)
    _check_index(index, len(texts), "account")
    # A text that is too long must not be repeated for each of its rows.
    bad = [row for row, text in enumerate(texts) if len(text) > ACCOUNT_SIZE_MAX]
    if bad:
        faults.mark(np.isin(index, bad), BAD_ACCOUNT)
        for row in bad:
            texts[row] = b""
    return text_column([texts[row] for row in index.tolist()])


def _ids(raw: object, n: int) -> tuple[TextColumn | None, NDArray[np.uint8] | None]:
    if type(raw) is not dict:
        raise _malformed("id is missing or not a map")
    if "uuid" not in raw:
        return _text_column(raw, n, "id"), None
    if len(raw) != 1:
        raise _malformed("id is made of uuid, or of offsets and text")
    uuid = np.frombuffer(_bytes(raw["uuid"], UUID_SIZE * n, "uuid"), U8)
    return None, uuid.reshape(n, UUID_SIZE)


def _values(
    fields: dict[str, Any], n: int, faults: RowFaults
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    raw = fields.get("value")
    exponent = fields.get("exponent")
    if exponent is None:
        exponent = 0
    if type(exponent) is not int or not 0 <= exponent <= EXPONENT_MAX:
        raise _malformed(f"exponent is not an integer from 0 to {EXPONENT_MAX}")
    if type(raw) is bytes:
        return np.frombuffer(_bytes(raw, 8 * n, "value"), I64), EXPONENTS[exponent][:n]
    if exponent != 0:
        raise _malformed("exponent goes with a value of integers only")
    if raw is None:
        return ONES_I64[:n], ZEROS_U8[:n]
    if type(raw) is not dict:
        raise _malformed("value is neither bin nor made of offsets and text")
    return _decimals(_text_column(raw, n, "value"), n, faults)


def _decimals(
    column: TextColumn, n: int, faults: RowFaults
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    bad: list[int] = []
    values, exponents = [0] * n, [0] * n
    for row, text in enumerate(text_rows(column)):
        parsed = parse_decimal(text)
        if parsed is None:
            bad.append(row)
        else:
            values[row], exponents[row] = parsed
    if bad:
        faults.mark(bad, BAD_VALUE)
    return np.array(values, I64), np.array(exponents, U8)


def _operations(raw: object, n: int, faults: RowFaults) -> NDArray[np.uint8]:
    if raw is None:
        return ZEROS_U8[:n]
    checked = _bytes(raw, n, "operation")
    operation = np.frombuffer(checked, U8)
    if checked.translate(None, OPERATION_BYTES):
        bad = operation >= len(OPERATION_BYTES)
        faults.mark(bad, BAD_OPERATION)
        operation = np.where(bad, 0, operation).astype(U8)
    return operation


def _properties(raw: object, n: int, faults: RowFaults) -> list[PropertyColumn]:
    if type(raw) is not list:
        raise _malformed("properties is not a list")
    if len(raw) > PROPERTY_KEYS_PER_REQUEST_MAX:
        raise RemoteProtocolError(
            "too_large",
            f"{len(raw)} property keys in one request; the limit is"
            f" {PROPERTY_KEYS_PER_REQUEST_MAX}",
        )
    columns = [_property(entry, n, faults) for entry in raw]
    columns.sort(key=lambda column: column.key)
    if len({column.key for column in columns}) != len(columns):
        raise _malformed("properties names a key twice")
    if len(columns) > PROPERTIES_MAX:
        counts = np.zeros(n, U16)
        for column in columns:
            counts += column.index != ABSENT
        faults.mark(counts > PROPERTIES_MAX, BAD_PROPERTIES)
    return [column for column in columns if is_property_key(column.key)]


def _property(raw: object, n: int, faults: RowFaults) -> PropertyColumn:
    if type(raw) is not dict or raw.keys() != PROPERTY_KEYS or type(raw["key"]) is not str:
        raise _malformed("a property is not made of key, values and index")
    key, texts = text_bytes(raw["key"]), _texts(raw["values"], "a property")
    index = np.frombuffer(_bytes(raw["index"], 4 * n, "index of a property"), U32)
    present = index != ABSENT
    _check_index(index[present], len(texts), "a property")
    if not is_property_key(key):
        faults.mark(present, BAD_PROPERTIES)
    bad = [row for row, text in enumerate(texts) if not is_property_value(text)]
    if bad:
        faults.mark(np.isin(index, bad), BAD_PROPERTIES)
        for row in bad:
            texts[row] = b""
    return PropertyColumn(key, text_column(texts), index)
