"""Holds the events of a request as columns, the form in which a node works on them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Durability = Literal["sync", "async"]

# A row's index into a property's values when the event has no such property.
ABSENT = 0xFFFFFFFF


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
    metric_codes: list[bytes]  # never empty
    metric_index: NDArray[np.uint16]  # n; rows of metric_codes
    account: TextColumn
    id: TextColumn | None  # exactly one of id and uuid
    uuid: NDArray[np.uint8] | None  # (n, 16)
    operation: NDArray[np.uint8]  # 0 none, 1 add, 2 remove
    properties: list[PropertyColumn]  # sorted by key bytes, keys distinct
    reason: NDArray[np.uint8]  # 0, or a position in errors.REASONS
    durability: Durability
