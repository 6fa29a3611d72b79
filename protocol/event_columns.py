"""Holds the events of a request as columns, the form in which a node works on them.

The decoders of both forms of an ingest body end here, so everything behind them knows one form.

Invariants of EventColumns, whichever bytes it came from:
  * every array has `count` rows (text columns: count + 1 offsets), 1 to EVENTS_MAX;
  * offsets start at 0, never fall, and end at the size of their text;
  * every index is ABSENT (properties only) or within its dictionary;
  * a fault of one row is that row's `reason` and nobody else's.
Not checked here: UTF-8 and sizes of account and id, which a kernel does faster over the arrays.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from meterd.protocol.limits import (
    EVENTS_MAX,
    PROPERTY_KEY_SIZE_MAX,
    PROPERTY_VALUE_SIZE_MAX,
)

Number = TypeVar("Number", bound=np.generic)
Durability = Literal["sync", "async"]

METRIC_CODE = re.compile(rb"[a-z0-9_.:-]{1,63}")
# The operations as numbers in columns and as words in the plain form.
OPERATIONS = ("none", "add", "remove")
# A row's index into a property's values when the event has no such property.
ABSENT = 0xFFFFFFFF

I64 = np.dtype("<i8")
U32 = np.dtype("<u4")
U16 = np.dtype("<u2")
U8 = np.dtype("u1")


@dataclass(frozen=True, slots=True)
class TextColumn:
    """Text of n rows, one after another: row r is text[offsets[r]:offsets[r + 1]]."""

    offsets: NDArray[np.uint32]  # n + 1, never falling, first 0, last the size of text
    text: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PropertyColumn:
    """One property key of a request: its distinct values, and which of them each row has."""

    key: bytes
    values: TextColumn
    index: NDArray[np.uint32]  # n; ABSENT or a row of values


@dataclass(frozen=True, slots=True)
class EventColumns:
    """The events of one request; arrays may be read-only views of the request's bytes.

    Fields of a row whose `reason` is not 0 hold what could be read, else zeros or empty text.
    """

    count: int  # 1 to EVENTS_MAX
    timestamp: NDArray[np.int64]
    value: NDArray[np.int64]  # in units of 10^-exponent
    exponent: NDArray[np.uint8]  # 0 to 18
    metric_codes: list[bytes]  # never empty; a code that cannot be one is b""
    metric_index: NDArray[np.uint16]  # n; rows of metric_codes
    account: TextColumn
    id: TextColumn | None  # exactly one of id and uuid
    uuid: NDArray[np.uint8] | None  # (n, 16)
    operation: NDArray[np.uint8]  # 0 none, 1 add, 2 remove
    properties: list[PropertyColumn]  # sorted by key bytes, keys distinct
    reason: NDArray[np.uint8]  # 0, or a position in errors.REASONS
    durability: Durability


def constant_column(value: int, dtype: np.dtype[Number]) -> NDArray[Number]:
    """Return a read-only column of one value, as long as the longest request."""
    column = np.full(EVENTS_MAX, value, dtype)
    column.flags.writeable = False
    return column


# Columns that a request leaves out are slices of these: no allocation, no write.
ONES_I64 = constant_column(1, I64)
ZEROS_U8 = constant_column(0, U8)
ZEROS_U16 = constant_column(0, U16)


class RowFaults:
    """Collects the first fault of each row; costs nothing until there is one."""

    __slots__ = ("count", "reason")

    def __init__(self, count: int) -> None:
        self.count = count
        self.reason: NDArray[np.uint8] = ZEROS_U8[:count]

    def mark(self, rows: NDArray[np.bool_] | NDArray[np.intp] | list[int], reason: int) -> None:
        """Give these rows (a mask or row numbers) this reason unless they have one."""
        if not self.reason.flags.writeable:
            self.reason = np.zeros(self.count, U8)
        chosen = self.reason[rows]
        self.reason[rows] = np.where(chosen == 0, reason, chosen)


def text_column(texts: Iterable[bytes]) -> TextColumn:
    """Lay texts one after another."""
    rows = list(texts)
    offsets = np.zeros(len(rows) + 1, U32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return TextColumn(offsets, np.frombuffer(b"".join(rows), U8))


def text_rows(column: TextColumn) -> list[bytes]:
    """Return the texts of a column."""
    text, ends = column.text.tobytes(), column.offsets.tolist()
    return [text[start:end] for start, end in pairwise(ends)]


def is_metric_code(code: bytes) -> bool:
    return METRIC_CODE.fullmatch(code) is not None


def is_property_key(key: bytes) -> bool:
    return 1 <= len(key) <= PROPERTY_KEY_SIZE_MAX and is_utf8(key)


def is_property_value(text: bytes) -> bool:
    return len(text) <= PROPERTY_VALUE_SIZE_MAX and is_utf8(text)


def is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
