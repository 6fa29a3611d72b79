"""Encodes events as the columnar form of an ingest body, from numpy arrays or from lists.

The fast way in for clients: integer arrays are copied once, texts in numpy arrays of fixed width
are laid out without a Python loop. Lists work as well, at the price of one. Nothing is rounded: a
float is refused, and decimals travel as decimal text.

Raises LocalProtocolError, naming the column, when the input is not what a column can be. What only
one row is wrong about (an account that is too long) is left for the node to refuse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.body import pack, text_bytes
from meterd.protocol.errors import LocalProtocolError
from meterd.protocol.event_columns import (
    ABSENT,
    I64,
    OPERATIONS,
    U8,
    U16,
    U32,
    Durability,
    TextColumn,
    text_column,
)
from meterd.protocol.limits import (
    DECIMAL_TEXT_SIZE_MAX,
    EVENTS_MAX,
    EXPONENT_MAX,
    I64_MAX,
    I64_MIN,
    UUID_SIZE,
)

NO_FLOATS = "floats are not exact"

Array = NDArray[Any]
# One text for all rows, or a text for each: list, numpy array (U or S), or laid out already.
Texts = str | int | Sequence[str | int] | Array | TextColumn


@dataclass(frozen=True, slots=True)
class ColumnInput:
    """The columns of one request, each as a list, a numpy array, or one value for all rows."""

    timestamp: Sequence[int] | Array  # UTC ns
    account: Texts
    metric: str | Sequence[str] | Array
    id: Texts | Sequence[UUID]  # or uint8 of shape (n, 16): UUIDs
    value: Sequence[int | str | Decimal] | Array | int | str | Decimal | None = None
    exponent: int = 0  # integers in value mean value * 10^-exponent
    operation: str | Sequence[str] | Array | None = None
    properties: Mapping[str, str | Sequence[str | None]] = field(default_factory=dict)


def encode_columns(columns: ColumnInput, durability: Durability = "sync") -> bytes:
    """Encode the events of one request."""
    try:
        return pack(_body(columns) | {"durability": durability})
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"text that is no Unicode: {error}") from error


def _body(columns: ColumnInput) -> dict[str, object]:
    timestamp = _integers(columns.timestamp, "timestamp")
    n = len(timestamp)
    if not 1 <= n <= EVENTS_MAX:
        raise LocalProtocolError(f"{n} events; a request takes 1 to {EVENTS_MAX}")
    body: dict[str, object] = {
        "n": n,
        "timestamp": timestamp.tobytes(),
        "metric": _metric(columns.metric, n),
        "account": _account(columns.account, n),
        "id": _id(columns.id, n),
    }
    body |= _value(columns.value, columns.exponent, n)
    if columns.operation is not None:
        body["operation"] = _operation(columns.operation, n)
    if columns.properties:
        body["properties"] = [
            _property(key, values, n) for key, values in sorted(columns.properties.items())
        ]
    return body


def _check_count(count: int, n: int, name: str) -> None:
    if count != n:
        raise LocalProtocolError(f"{name} has {count} rows instead of {n}")


def _integers(values: Sequence[int] | Array, name: str) -> Array:
    """Return an i64 array of the same integers."""
    if not isinstance(values, np.ndarray):
        if any(not _is_integer(value) for value in values):
            raise LocalProtocolError(f"{name} holds something else than integers: {NO_FLOATS}")
        try:
            return np.array(values, I64)
        except OverflowError:
            raise LocalProtocolError(f"{name} does not fit 64 bits") from None
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise LocalProtocolError(f"{name} is not one row of integers: {NO_FLOATS}")
    if values.dtype.kind == "u" and values.size and int(values.max()) > I64_MAX:
        raise LocalProtocolError(f"{name} does not fit 64 bits")
    return values.astype(I64, copy=False)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _text_map(column: TextColumn, n: int, name: str) -> dict[str, object]:
    _check_count(len(column.offsets) - 1, n, name)
    return {
        "offsets": column.offsets.astype(U32, copy=False).tobytes(),
        "text": column.text.astype(U8, copy=False).tobytes(),
    }


def _texts(texts: Sequence[Any] | Array | TextColumn, name: str) -> TextColumn:
    if isinstance(texts, TextColumn):
        return texts
    if isinstance(texts, np.ndarray):
        if texts.ndim == 1 and texts.dtype.kind in "US":
            return _fixed_width_texts(texts)
        return text_column([_text(text, name) for text in texts.tolist()])
    return text_column([_text(text, name) for text in texts])


def _text(text: object, name: str) -> bytes:
    if isinstance(text, str):
        return text_bytes(text)
    if _is_integer(text) or isinstance(text, UUID):
        return str(text).encode()
    raise LocalProtocolError(f"{name} holds a {type(text).__name__} instead of text")


def _fixed_width_texts(texts: Array) -> TextColumn:
    """Lay out a numpy array of texts; zeros at the end of a row are padding, as numpy has it."""
    if texts.dtype.kind == "U":
        wide = np.ascontiguousarray(texts).view(U32).reshape(len(texts), -1)
        if wide.size and int(wide.max()) > 127:
            return text_column([text_bytes(text) for text in texts.tolist()])
        rows = wide.astype(U8)
    else:
        rows = np.ascontiguousarray(texts).view(U8).reshape(len(texts), -1)
    sizes = np.char.str_len(texts)
    offsets = np.zeros(len(texts) + 1, U32)
    np.cumsum(sizes, out=offsets[1:])
    return TextColumn(offsets, rows[np.arange(rows.shape[1]) < sizes[:, None]])


def _account(accounts: Texts, n: int) -> dict[str, object]:
    if isinstance(accounts, str | int):
        return {"values": [str(accounts)], "index": bytes(4 * n)}
    return _text_map(_texts(accounts, "account"), n, "account")


def _id(ids: Texts | Sequence[UUID], n: int) -> dict[str, object]:
    if isinstance(ids, np.ndarray) and ids.dtype == U8 and ids.ndim == 2:
        if ids.shape[1] != UUID_SIZE:
            raise LocalProtocolError("id is neither text nor rows of 16 bytes")
        _check_count(len(ids), n, "id")
        return {"uuid": ids.tobytes()}
    if isinstance(ids, str | int):
        ids = [ids]
    if isinstance(ids, list | tuple) and all(isinstance(one, UUID) for one in ids):
        _check_count(len(ids), n, "id")
        return {"uuid": b"".join([one.bytes for one in ids])}
    return _text_map(_texts(ids, "id"), n, "id")


def _metric(metrics: str | Sequence[str] | Array, n: int) -> dict[str, object]:
    if isinstance(metrics, str):
        return {"values": [metrics]}
    if isinstance(metrics, np.ndarray):
        metrics = metrics.tolist()
    _check_count(len(metrics), n, "metric")
    codes: dict[str, int] = {}
    index = [codes.setdefault(code, len(codes)) for code in metrics]
    if any(not isinstance(code, str) for code in codes):
        raise LocalProtocolError("metric holds something else than text")
    if len(codes) == 1:
        return {"values": list(codes)}
    return {"values": list(codes), "index": np.array(index, U16).tobytes()}


def _value(values: Any, exponent: int, n: int) -> dict[str, object]:
    """Return the keys for values: none, integers with an exponent, or decimal text."""
    if values is None:
        return {}
    if isinstance(values, str | Decimal) or _is_integer(values):
        values = [values] * n
    _check_count(len(values), n, "value")
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        integers = _integers(values, "value")
    else:
        values = list(values)
        if not all(_is_integer(value) and I64_MIN <= value <= I64_MAX for value in values):
            if exponent:
                raise LocalProtocolError("exponent goes with integers that fit 64 bits only")
            return {"value": _text_map(text_column(map(_decimal, values)), n, "value")}
        integers = np.array(values, I64)
    if not 0 <= exponent <= EXPONENT_MAX:
        raise LocalProtocolError(f"exponent is not from 0 to {EXPONENT_MAX}")
    return {"value": integers.tobytes()} | ({"exponent": exponent} if exponent else {})


def _decimal(value: Any) -> bytes:
    """Write a value out; of one that is longer than any metric takes so much that it is told."""
    if isinstance(value, str):
        return text_bytes(value[: DECIMAL_TEXT_SIZE_MAX + 1])
    if isinstance(value, Decimal):
        plain = abs(value.adjusted()) <= DECIMAL_TEXT_SIZE_MAX
        text = format(value, "f") if plain else str(value)
        return text[: DECIMAL_TEXT_SIZE_MAX + 1].encode()
    if _is_integer(value):
        fits = abs(int(value)) < 10**DECIMAL_TEXT_SIZE_MAX
        return str(value).encode() if fits else b"9" * (DECIMAL_TEXT_SIZE_MAX + 1)
    raise LocalProtocolError(
        f"value holds a {type(value).__name__}; only int, Decimal and decimal text are exact"
    )


def _operation(operations: str | Sequence[str] | Array, n: int) -> bytes:
    if isinstance(operations, np.ndarray) and operations.dtype == U8:
        _check_count(len(operations), n, "operation")
        return operations.tobytes()
    words = [operations] * n if isinstance(operations, str) else list(operations)
    _check_count(len(words), n, "operation")
    if any(word not in OPERATIONS for word in words):
        raise LocalProtocolError(f"operation is not one of {', '.join(OPERATIONS)}")
    return bytes([OPERATIONS.index(word) for word in words])


def _property(key: str, values: str | Sequence[str | None], n: int) -> dict[str, object]:
    if isinstance(values, str):
        return {"key": key, "values": [values], "index": bytes(4 * n)}
    _check_count(len(values), n, f"property {key!r:.80}")
    known: dict[str, int] = {}
    index = np.full(n, ABSENT, U32)
    for row, value in enumerate(values):
        if value is not None:
            if not isinstance(value, str):
                raise LocalProtocolError(f"property {key!r:.80} holds something else than text")
            index[row] = known.setdefault(str(value), len(known))
    return {"key": key, "values": list(known) or [""], "index": index.tobytes()}
