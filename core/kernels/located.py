"""Finds the columns of an ingest body where they lie, without decoding it.

A request *located* is its bytes and where each column begins in them, so staging copies every value
once, from the request into the record.  `locate` reads the columnar form as clients write it (docs/
PROTOCOL.md): keys in any order, each at most once, arrays as `bin`.  Whatever is rarer or wrong it
leaves alone by returning False; then `protocol.columns` decodes the body, or says what is wrong
with it, and `core.staging` lays its columns out in the same form.

Every read is checked against the end of the body first: any bytes are safe.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.entries import same_bytes
from meterd.core.kernels.hashing import load_u32, load_u64
from meterd.core.kernels.text import is_utf8
from meterd.protocol import limits

Array = Any

# Where the columns of a request lie (int64[PLACE_COUNT]); ..._AT is -1 for a column left out.
(
    ROWS,
    TIMESTAMP_AT,
    VALUE_AT,
    EXPONENT,  # of all rows, unless
    EXPONENT_AT,
    METRIC_AT,
    ACCOUNT_OFFSETS_AT,
    ACCOUNT_AT,
    ACCOUNT_SIZE,
    UUID_AT,  # or
    ID_OFFSETS_AT,
    ID_AT,
    ID_SIZE,
    OPERATION_AT,
    REASON_AT,
    PROPERTY_COUNT,
    DURABILITY,  # 0 sync, 1 async
    CODE_COUNT,
) = range(18)
PLACE_COUNT = 18
# A property key of a request (int64[keys, 4]), sorted by key bytes.
KEY_AT, KEY_SIZE, FIRST_VALUE, INDEX_AT = range(4)
# A property value (int64[values, 2]).
VALUE_START, VALUE_SIZE = range(2)
# What a metric code of the registry is (int64[codes, 4]); CODE_FIRST and CODE_VERSIONS go into a
# request's codes (int64[codes, 2]).
CODE_AT, CODE_SIZE, CODE_FIRST, CODE_VERSIONS = range(4)

# A request with more is decoded in Python.
CODES_MAX = 1_024
KEYS_MAX = limits.PROPERTIES_MAX
VALUES_MAX = 16_384

NOWHERE = np.int64(-1)

_NAMES = (
    "durability", "n", "timestamp", "value", "exponent", "metric", "account", "id", "operation",
    "properties", "values", "index", "offsets", "text", "uuid", "key",
)  # fmt: skip
(
    _DURABILITY, _N, _TIMESTAMP, _VALUE, _EXPONENT, _METRIC, _ACCOUNT, _ID, _OPERATION,
    _PROPERTIES, _VALUES, _INDEX, _OFFSETS, _TEXT, _UUID, _KEY,
) = range(16)  # fmt: skip
_NAME_BYTES = np.frombuffer("".join(_NAMES).encode(), np.uint8)
_NAME_ENDS = np.cumsum([len(name) for name in _NAMES])
_SYNC, _ASYNC = np.frombuffer(b"sync", np.uint8), np.frombuffer(b"async", np.uint8)


@njit(cache=True, _nrt=False)
def _number(body: Array, at: int, size: int) -> Any:
    """Return `size` bytes as a big-endian number, or -1 beyond the end (or 2^63)."""
    if at + size > len(body):
        return NOWHERE
    number = np.int64(0)
    for i in range(at, at + size):
        number = number << 8 | np.int64(body[i])
    return number if number >= 0 else NOWHERE


@njit(cache=True, _nrt=False)
def _sized(body: Array, at: int, fixed: int, mask: int, first: int, sizes: int) -> Any:
    """Read the head of a msgpack value; return (its size or -1, where its content begins).

    fixed, mask: the head that holds the size in its other bits (mask 0: there is none); first: the
    head followed by the shortest size; `sizes`: how many heads follow, each size twice as long.
    """
    if at >= len(body):
        return NOWHERE, at
    head = np.int64(body[at])
    if mask and head & mask == fixed:
        return head & ~mask & 0xFF, at + 1
    width = 1 if sizes == 3 else 2
    for kind in range(first, first + sizes):
        if head == kind:
            return _number(body, at + 1, width), at + 1 + width
        width *= 2
    return NOWHERE, at


@njit(cache=True, _nrt=False)
def _map(body: Array, at: int) -> Any:
    return _sized(body, at, 0x80, 0xF0, 0xDE, 2)


@njit(cache=True, _nrt=False)
def _list(body: Array, at: int) -> Any:
    return _sized(body, at, 0x90, 0xF0, 0xDC, 2)


@njit(cache=True, _nrt=False)
def _text(body: Array, at: int) -> Any:
    """Return (start or -1, end) of a text."""
    size, start = _sized(body, at, 0xA0, 0xE0, 0xD9, 3)
    if size < 0 or start + size > len(body):
        return NOWHERE, at
    return start, start + size


@njit(cache=True, _nrt=False)
def _bin(body: Array, at: int, wanted: int) -> Any:
    """Return (start or -1, end) of a bin of so many bytes; of any size when that is -1."""
    size, start = _sized(body, at, 0, 0, 0xC4, 3)
    if size < 0 or start + size > len(body) or (wanted >= 0 and size != wanted):
        return NOWHERE, at
    return start, start + size


@njit(cache=True, _nrt=False)
def _count(body: Array, at: int) -> Any:
    """Return (a number that is not negative, or -1; where it ends)."""
    if at >= len(body):
        return NOWHERE, at
    head = np.int64(body[at])
    if head < 0x80:
        return head, at + 1
    if 0xCC <= head <= 0xCF:
        width = 1 << (head - 0xCC)
        return _number(body, at + 1, width), at + 1 + width
    return NOWHERE, at


@njit(cache=True, _nrt=False)
def _name(body: Array, at: int) -> Any:
    """Return (which of the names a key is, or -1; where it ends)."""
    start, end = _text(body, at)
    if start < 0:
        return NOWHERE, at
    first = np.int64(0)
    for name in range(len(_NAME_ENDS)):
        size = _NAME_ENDS[name] - first
        if size == end - start and same_bytes(body, start, _NAME_BYTES, first, size):
            return np.int64(name), end
        first = _NAME_ENDS[name]
    return NOWHERE, at


@njit(cache=True, _nrt=False)
def _offsets_hold(body: Array, at: int, rows: int, size: int) -> Any:
    """Do rows + 1 offsets begin at 0, never fall, and end at `size`?"""
    last = np.int64(load_u32(body, at))
    if last != 0 or np.int64(load_u32(body, at + 4 * rows)) != size:
        return False
    falls = np.int64(0)
    for i in range(1, rows + 1):
        offset = np.int64(load_u32(body, at + 4 * i))
        falls |= offset - last
        last = offset
    return falls >= 0


@njit(cache=True, _nrt=False)
def _texts(body: Array, at: int, rows: int, places: Array, first: int) -> Any:
    """Locate {"offsets", "text"} (or {"uuid"} where `first` is the id's); return the end or -1."""
    fields, at = _map(body, at)
    offsets = text = end = NOWHERE
    for _ in range(fields):
        name, at = _name(body, at)
        if name == _OFFSETS and offsets < 0:
            offsets, at = _bin(body, at, 4 * rows + 4)
        elif name == _TEXT and text < 0:
            text, at = _bin(body, at, -1)
            end = at
        elif name == _UUID and first == ID_OFFSETS_AT and fields == 1:
            places[UUID_AT], at = _bin(body, at, limits.UUID_SIZE * rows)
            return at if places[UUID_AT] >= 0 else NOWHERE
        else:
            return NOWHERE
    if fields != 2 or offsets < 0 or text < 0 or not _offsets_hold(body, offsets, rows, end - text):
        return NOWHERE
    places[first], places[first + 1], places[first + 2] = offsets, text, end - text
    return at


@njit(cache=True, _nrt=False)
def code_slot(slots: Array, codes: Array, texts: Array, body: Array, start: int, end: int) -> Any:
    """Return the slot of a code in the table of codes: that of its number, or a free one (-1)."""
    size = end - start
    digest = np.uint64(size)
    for i in range(start, end):
        digest = (digest ^ np.uint64(body[i])) * np.uint64(0x100000001B3)  # FNV-1a
    slot = np.int64((digest ^ (digest >> np.uint64(32))) & np.uint64(len(slots) - 1))
    while slots[slot] >= 0:
        code = slots[slot]
        at = codes[code, CODE_AT]
        if codes[code, CODE_SIZE] == size and same_bytes(body, start, texts, at, size):
            break
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@njit(cache=True, _nrt=False)
def _metrics(body: Array, at: int, rows: int, places: Array, known: Any, codes: Array) -> Any:
    """Locate the metric column and look its codes up; return the end or -1."""
    slots, known_codes, texts = known
    fields, at = _map(body, at)
    count = NOWHERE
    for _ in range(fields):
        name, at = _name(body, at)
        if name == _VALUES and count < 0:
            count, at = _list(body, at)
            if count < 1 or count > CODES_MAX:
                return NOWHERE
            for code in range(count):
                start, at = _text(body, at)
                if start < 0:
                    return NOWHERE
                number = slots[code_slot(slots, known_codes, texts, body, start, at)]
                if number < 0:
                    return NOWHERE  # an unknown metric: its rows are refused by name
                codes[code, 0] = known_codes[number, CODE_FIRST]
                codes[code, 1] = known_codes[number, CODE_VERSIONS]
        elif name == _INDEX and places[METRIC_AT] < 0:
            places[METRIC_AT], at = _bin(body, at, 2 * rows)
            if places[METRIC_AT] < 0:
                return NOWHERE
        else:
            return NOWHERE
    places[CODE_COUNT] = count
    if count < 1 or (places[METRIC_AT] < 0 and count > 1):
        return NOWHERE
    return at


@njit(cache=True, _nrt=False)
def _property(body: Array, at: int, rows: int, key: Array, values: Array, used: int) -> Any:
    """Locate one property column; return (end or -1, values used)."""
    fields, at = _map(body, at)
    key[KEY_AT] = key[INDEX_AT] = key[FIRST_VALUE] = -1
    for _ in range(fields):
        name, at = _name(body, at)
        if name == _KEY and key[KEY_AT] < 0:
            start, at = _text(body, at)
            key[KEY_AT], key[KEY_SIZE] = start, at - start
            if start < 0 or not 1 <= at - start <= limits.PROPERTY_KEY_SIZE_MAX:
                return NOWHERE, used
            if not is_utf8(body, start, at):
                return NOWHERE, used
        elif name == _VALUES and key[FIRST_VALUE] < 0:
            count, at = _list(body, at)
            if count < 1 or used + count > VALUES_MAX:
                return NOWHERE, used
            key[FIRST_VALUE] = used
            for value in range(used, used + count):
                start, at = _text(body, at)
                if start < 0 or at - start > limits.PROPERTY_VALUE_SIZE_MAX:
                    return NOWHERE, used
                if not is_utf8(body, start, at):
                    return NOWHERE, used
                values[value, VALUE_START], values[value, VALUE_SIZE] = start, at - start
            used += count
        elif name == _INDEX and key[INDEX_AT] < 0:
            key[INDEX_AT], at = _bin(body, at, 4 * rows)
            if key[INDEX_AT] < 0:
                return NOWHERE, used
        else:
            return NOWHERE, used
    whole = key[KEY_AT] >= 0 and key[INDEX_AT] >= 0 and key[FIRST_VALUE] >= 0
    if not whole or not _index_holds(body, key[INDEX_AT], rows, used - key[FIRST_VALUE]):
        return NOWHERE, used
    return at, used


@njit(cache=True, _nrt=False)
def _index_holds(body: Array, at: int, rows: int, count: int) -> Any:
    """Is each of the rows' indexes ABSENT or below `count`?"""
    for i in range(rows):
        which = np.int64(load_u32(body, at + 4 * i))
        if which >= count and which != 0xFFFFFFFF:
            return False
    return True


@njit(cache=True, _nrt=False)
def _properties(body: Array, at: int, places: Array, keys: Array, values: Array) -> Any:
    """Locate the property columns, which must come sorted by key; return the end or -1."""
    count, at = _list(body, at)
    if count < 0 or count > KEYS_MAX:
        return NOWHERE
    used = np.int64(0)
    for p in range(count):
        at, used = _property(body, at, places[ROWS], keys[p], values, used)
        if at < 0 or (p and not _before(body, keys[p - 1], keys[p])):
            return NOWHERE
    places[PROPERTY_COUNT] = count
    return at


@njit(cache=True, _nrt=False)
def _before(body: Array, one: Array, other: Array) -> Any:
    """Does one key stand before the other, by their bytes?"""
    for i in range(min(one[KEY_SIZE], other[KEY_SIZE])):
        a, b = body[one[KEY_AT] + i], body[other[KEY_AT] + i]
        if a != b:
            return a < b
    return one[KEY_SIZE] < other[KEY_SIZE]


@njit(cache=True, _nrt=False)
def _rows_of(body: Array) -> Any:
    """Return the request's `n` if it is the body's first or second key, else -1."""
    _, at = _map(body, 0)
    for _ in range(2):
        name, at = _name(body, at)
        if name == _N:
            return _count(body, at)[0]
        if name != _DURABILITY:
            return NOWHERE
        _, at = _text(body, at)
    return NOWHERE


@njit(cache=True, _nrt=False)
def locate(body: Array, known: Any, found: Any) -> bool:
    """Locate the columns of an ingest body; False when it must be decoded instead.

    known  the registry's codes: slots int64[2^k], codes int64[codes, 4], their bytes u8
    found  (places int64[PLACE_COUNT], codes int64[CODES_MAX, 2], keys int64[KEYS_MAX, 4],
           values int64[VALUES_MAX, 2]), to be filled
    """
    places, codes, keys, values = found
    places[:] = -1
    rows = _rows_of(body)
    if rows < 1 or rows > limits.EVENTS_MAX:
        return False
    places[ROWS], places[PROPERTY_COUNT], places[EXPONENT], places[DURABILITY] = rows, 0, 0, 0
    seen = np.int64(0)
    fields, at = _map(body, 0)
    for _ in range(fields):
        name, at = _name(body, at)
        if name < 0 or seen >> name & 1:
            return False
        seen |= 1 << name
        if name == _N:
            _, at = _count(body, at)
        elif name == _DURABILITY:
            start, at = _text(body, at)
            size = at - start
            asynchronous = size == 5 and same_bytes(body, start, _ASYNC, 0, size)
            if start < 0 or not (
                asynchronous or (size == 4 and same_bytes(body, start, _SYNC, 0, size))
            ):
                return False
            places[DURABILITY] = 1 if asynchronous else 0
        elif name == _TIMESTAMP:
            places[TIMESTAMP_AT], at = _bin(body, at, 8 * rows)
        elif name == _VALUE:
            places[VALUE_AT], at = _bin(body, at, 8 * rows)
            if places[VALUE_AT] < 0:
                return False
        elif name == _EXPONENT:
            places[EXPONENT], at = _count(body, at)
        elif name == _METRIC:
            at = _metrics(body, at, rows, places, known, codes)
        elif name == _ACCOUNT:
            at = _texts(body, at, rows, places, ACCOUNT_OFFSETS_AT)
        elif name == _ID:
            at = _texts(body, at, rows, places, ID_OFFSETS_AT)
        elif name == _OPERATION:
            places[OPERATION_AT], at = _bin(body, at, rows)
            if places[OPERATION_AT] < 0:
                return False
        elif name == _PROPERTIES:
            at = _properties(body, at, places, keys, values)
        else:
            return False
        if at < 0:
            return False
    return at == len(body) and _whole(body, places)


@njit(cache=True, _nrt=False)
def _whole(body: Array, places: Array) -> Any:
    """Is every column there that must be, and every number one that it can be?"""
    rows = places[ROWS]
    if places[TIMESTAMP_AT] < 0 or places[CODE_COUNT] < 0 or places[ACCOUNT_OFFSETS_AT] < 0:
        return False
    if places[UUID_AT] < 0 and places[ID_OFFSETS_AT] < 0:
        return False
    exponent = places[EXPONENT]
    if exponent < 0 or exponent > limits.EXPONENT_MAX or (exponent and places[VALUE_AT] < 0):
        return False
    if places[METRIC_AT] >= 0:
        for i in range(rows):
            if load_u16(body, places[METRIC_AT] + 2 * i) >= places[CODE_COUNT]:
                return False
    if places[OPERATION_AT] >= 0:
        for i in range(rows):
            if body[places[OPERATION_AT] + i] > 2:
                return False
    return True


@njit(cache=True, forceinline=True, _nrt=False)
def load_u16(data: Array, at: int) -> Any:
    """Load two bytes of a uint8 array from any index, little-endian."""
    return np.int64(data[at]) | np.int64(data[at + 1]) << 8


@njit(cache=True, forceinline=True, _nrt=False)
def load_i64(data: Array, at: int) -> Any:
    """Load eight bytes of a uint8 array from any index as a signed number."""
    return np.int64(load_u64(data, at))


@njit(cache=True)
def enter_codes(slots: Array, codes: Array, texts: Array) -> None:
    """Fill the table of codes (slots, all -1) with the numbers of `codes`."""
    for code in range(len(codes)):
        start = codes[code, CODE_AT]
        end = start + codes[code, CODE_SIZE]
        slots[code_slot(slots, codes, texts, texts, start, end)] = code
