"""Collects the events of many requests and packs them into one proposal.  Sans-I/O.

A stage takes decoded requests one by one; `pack` makes the payload, slice table and origin of
one record out of all that was staged and empties the stage.  A request is never split over records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import stage as kernels
from meterd.core.kernels.hashing import PARTITION_COUNT, text_hash
from meterd.core.kernels.memory import reserve
from meterd.core.registry import Registry
from meterd.protocol import limits, log_format
from meterd.protocol.event_columns import EventColumns, TextColumn

# Heap for what is staged beyond a full record: the largest request, its texts written out.
HEAP_SIZE_MAX = 24 * 1024 * 1024
# A record closes after this many bytes of heap, so that it stays a small part of a log file.
HEAP_SIZE_ENOUGH = 1024 * 1024
# Code tables of batches seen lately, so that a client's usual metrics are looked up once.
CODE_TABLES_MAX = 1_024


def _frozen(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Make an array read-only: kernels are compiled for exactly one type of each argument."""
    array.flags.writeable = False
    return array


_NO_TEXT = (_frozen(np.zeros(1, np.uint32)), _frozen(np.zeros(0, np.uint8)))
_NO_UUIDS = _frozen(np.zeros(0, np.uint8))


@dataclass(frozen=True, slots=True)
class Refusals:
    """Rows whose identity may be known although something is wrong with them."""

    rows: NDArray[np.int64]  # [k, 8], see kernels/stage.py; metric = position in codes
    heap: NDArray[np.uint8]
    codes: list[bytes]


@dataclass(frozen=True, slots=True)
class Packed:
    """One proposal: what goes into the log, and what leads its outcomes back to the requests."""

    payload: NDArray[np.uint8]
    slices: NDArray[np.uint64]  # [k, 5]
    row_count: int
    heap_size: int
    request_of_row: NDArray[np.uint32]
    row_of_row: NDArray[np.uint32]
    refusals: Refusals | None


class Stage:
    """Rows of requests on their way into one record.  Changed only through its methods."""

    def __init__(self, record_events_max: int, identity_key: tuple[int, int]) -> None:
        rows_max = record_events_max + limits.EVENTS_MAX
        self._enough = record_events_max
        self._key = identity_key
        self._staged = reserve((rows_max, kernels.ROW_WORDS), np.int64)
        self._refused = reserve((rows_max, kernels.ROW_WORDS), np.int64)
        self._faults = reserve((rows_max, 3), np.int64)
        self._heap = reserve((HEAP_SIZE_MAX,), np.uint8)
        self._state = np.zeros(4, np.int64)
        self._sizes = np.zeros((PARTITION_COUNT, 2), np.int64)
        self._codes: list[bytes] = []
        self.use(Registry())

    def use(self, registry: Registry) -> None:
        """Choose metric numbers by this registry from now on."""
        self.registry_version = registry.version
        rows: list[tuple[int, int, int, int]] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._code_tables: dict[tuple[bytes, ...], NDArray[np.int64]] = {}
        for code in dict.fromkeys(entry.code for entry in registry.entries):
            versions = registry.versions(code)
            self._places[code.encode()] = (len(rows), len(versions))
            rows += [
                (v.effective_from, v.number, v.definition.decimals, int(not v.deleted))
                for v in versions
            ]
        self._versions = np.array(rows, np.int64).reshape(-1, 4)

    @property
    def empty(self) -> bool:
        """Is there nothing to propose?"""
        return not (self._state[kernels.STAGED] or self._state[kernels.REFUSED])

    @property
    def full(self) -> bool:
        """Should what is staged be packed before the next request?"""
        state = self._state
        return bool(
            state[kernels.STAGED] + state[kernels.REFUSED] >= self._enough
            or state[kernels.HEAP_USED] >= HEAP_SIZE_ENOUGH
        )

    def add(self, columns: EventColumns, request: int) -> list[tuple[int, int]] | None:
        """Stage one request; return its rows without an identity as (row, reason).

        None, and nothing is staged: written out, the request is larger than a record may be.
        """
        state = self._state
        refused_before = int(state[kernels.REFUSED])
        state[kernels.FAULTS] = 0
        identifier = columns.id
        staged = kernels.stage(
            (
                _frozen(columns.timestamp),
                _frozen(columns.value),
                _frozen(columns.exponent),
                _frozen(columns.metric_index),
                _frozen(columns.operation),
                _frozen(columns.reason),
            ),
            (_frozen(columns.account.offsets), _frozen(columns.account.text)),
            _NO_TEXT
            if identifier is None
            else (_frozen(identifier.offsets), _frozen(identifier.text)),
            _NO_UUIDS if columns.uuid is None else _frozen(columns.uuid.reshape(-1)),
            _flattened(columns),
            (self._versions, self._code_table(columns.metric_codes)),
            (self._staged, self._refused, self._faults, self._heap, state, request),
        )
        if not staged:
            return None
        if int(state[kernels.REFUSED]) > refused_before:
            refused = self._refused[refused_before : int(state[kernels.REFUSED])]
            refused[:, kernels.METRIC] += len(self._codes)
            self._codes += columns.metric_codes
        faults = int(state[kernels.FAULTS])
        return [(row, reason) for _, row, reason in self._faults[:faults].tolist()]

    def refused_rows(self, request: int) -> list[tuple[int, int]]:
        """Return the refused rows of a request staged last, as (row, reason)."""
        rows = self._refused[: int(self._state[kernels.REFUSED])]
        mine = rows[rows[:, kernels.REQUEST] == request]
        reasons = (mine[:, kernels.FLAGS] >> 16) & 0xFF
        return list(zip(mine[:, kernels.ROW].tolist(), reasons.tolist(), strict=True))

    def pack(self) -> Packed:
        """Take everything staged as one proposal."""
        n = int(self._state[kernels.STAGED])
        slice_count, heap_size = kernels.count_slices(self._staged, n, self._sizes)
        layout = log_format.payload_layout(n, heap_size)
        payload = np.zeros(layout.size, np.uint8)
        slices = np.empty((slice_count, 5), np.uint64)
        request_of_row, row_of_row = np.empty(n, np.uint32), np.empty(n, np.uint32)
        kernels.pack(
            self._staged,
            n,
            self._heap,
            self._sizes,
            payload,
            tuple(layout[:6]),
            (slices, request_of_row, row_of_row),
        )
        refusals = self._take_refusals()
        self._state[:] = 0
        return Packed(payload, slices, n, heap_size, request_of_row, row_of_row, refusals)

    def _take_refusals(self) -> Refusals | None:
        count = int(self._state[kernels.REFUSED])
        if count == 0:
            return None
        rows = self._refused[:count].copy()
        size = int((rows[:, kernels.ENTRY_END] - rows[:, kernels.ENTRY_START]).sum())
        heap = np.zeros(size, np.uint8)
        kernels.compact_refused(rows, count, self._heap, heap)
        codes, self._codes = self._codes, []
        # As they are when they have crossed to usage as bytes: kernels tell the two apart.
        rows.flags.writeable = heap.flags.writeable = False
        return Refusals(rows, heap, codes)

    def _code_table(self, codes: list[bytes]) -> NDArray[np.int64]:
        known = tuple(codes)
        table = self._code_tables.get(known)
        if table is None:
            if len(self._code_tables) >= CODE_TABLES_MAX:
                self._code_tables.clear()
            table = np.array([self._places.get(code, (0, 0)) for code in codes], np.int64)
            self._code_tables[known] = table
        return table


def code_hash(identity_key: tuple[int, int], code: bytes) -> int:
    """Hash a metric's code for the content digest."""
    first, _ = text_hash(
        np.uint64(identity_key[0]),
        np.uint64(identity_key[1]),
        _frozen(np.frombuffer(code, np.uint8)),
    )
    return int(first)


_NO_PROPERTIES = (
    _frozen(np.zeros(0, np.uint32)),
    _frozen(np.zeros(0, np.uint8)),
    _frozen(np.zeros(0, np.uint32)),
    _frozen(np.zeros(1, np.uint32)),
    _frozen(np.zeros(0, np.uint8)),
    _frozen(np.zeros(0, np.uint32)),
    0,
)


def _flattened(columns: EventColumns) -> tuple[object, ...]:
    """Return all property columns end to end, as `kernels.stage` reads them."""
    properties = columns.properties
    if not properties:
        return _NO_PROPERTIES
    keys = b"".join(column.key for column in properties)
    key_ends = np.cumsum([len(column.key) for column in properties], dtype=np.uint32)
    offsets, bases, text_base, value_base = [], [], 0, 0
    for column in properties:
        values: TextColumn = column.values
        bases.append(value_base)
        offsets.append(values.offsets + np.uint32(text_base))
        value_base += len(values.offsets)
        text_base += len(values.text)
    return (
        _frozen(key_ends),
        _frozen(np.frombuffer(keys, np.uint8)),
        _frozen(np.array(bases, np.uint32)),
        _frozen(np.concatenate(offsets)),
        _frozen(np.concatenate([column.values.text for column in properties])),
        _frozen(np.concatenate([column.index for column in properties])),
        columns.count,
    )
