"""Collects the events of many requests and packs them into one proposal.  Sans-I/O.

A stage takes decoded requests one by one; `pack` makes the payload, slice table and origin of
one record out of all that was staged and empties the stage.  A request is never split over records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import located as locating
from meterd.core.kernels import stage as kernels
from meterd.core.kernels.hashing import PARTITION_COUNT, text_hash
from meterd.core.kernels.memory import reserve
from meterd.core.state.registry import Registry
from meterd.protocol import limits, log_format
from meterd.protocol.body import Bytes
from meterd.protocol.errors import UnknownMetric
from meterd.protocol.event_columns import Durability, EventColumns

# Heap for what is staged beyond a full record: the largest request, its texts written out.
HEAP_SIZE_MAX = 24 * 1024 * 1024
# A record closes after this many bytes of heap, so that it stays a small part of a log file.
HEAP_SIZE_ENOUGH = 1024 * 1024
# Where a row's flags hold its partition (16 bits), see kernels/stage.py.
PARTITION_SHIFT = 24


@dataclass(frozen=True, slots=True)
class Refusals:
    """Rows whose identity may be known although something is wrong with them."""

    rows: NDArray[np.int64]  # [k, 8], see kernels/stage.py; metric = position in codes
    heap: NDArray[np.uint8]
    codes: list[bytes]

    def partitions(self) -> NDArray[np.int64]:
        """Return the partition of each row."""
        return partitions_of(self.rows)


class Packed(NamedTuple):
    """One proposal: what goes into the log, and what leads its outcomes back to the requests."""

    payload: NDArray[np.uint8]
    slices: NDArray[np.uint64]  # [k, 5]
    row_count: int
    heap_size: int
    request_of_row: NDArray[np.uint16]
    row_of_row: NDArray[np.uint16]
    refusals: Refusals | None


class Stage:
    """Rows of requests on their way into one record.  Changed only through its methods."""

    def __init__(
        self, record_events_max: int, identity_key: tuple[int, int], records: int = 1
    ) -> None:
        """`records`: how many are made of what is staged (`pack_parts`), if all are of one size."""
        self._enough = record_events_max * records
        self._heap_enough = HEAP_SIZE_ENOUGH * records
        rows_max = self._enough + limits.EVENTS_MAX
        self._key = identity_key
        self._staged = reserve((rows_max, kernels.ROW_WORDS), np.int64)
        self._refused = reserve((rows_max, kernels.ROW_WORDS), np.int64)
        self._faults = reserve((rows_max, 3), np.int64)
        self._heap = reserve((HEAP_SIZE_MAX,), np.uint8)
        self._state = np.zeros(4, np.int64)
        self._sizes = np.zeros((PARTITION_COUNT, 2), np.int64)
        self._codes: list[bytes] = []
        self._out = (self._staged, self._refused, self._faults, self._heap, self._state)
        self._located = (
            np.zeros(locating.PLACE_COUNT, np.int64),
            np.zeros((locating.CODES_MAX, 2), np.int64),
            np.zeros((locating.KEYS_MAX, 4), np.int64),
            np.zeros((locating.VALUES_MAX, 2), np.int64),
        )
        self.use(Registry())

    def use(self, registry: Registry) -> None:
        """Choose metric numbers by this registry from now on."""
        self.registry_version = registry.version
        rows: list[tuple[int, int, int, int]] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for code in dict.fromkeys(entry.code for entry in registry.entries):
            versions = registry.versions(code)
            self._places[code.encode()] = (len(rows), len(versions))
            rows += [
                (v.effective_from, v.number, v.definition.decimals, int(not v.deleted))
                for v in versions
            ]
        self._versions = np.array(rows, np.int64).reshape(-1, 4)
        self._known = _code_index(self._places)

    @property
    def count(self) -> int:
        """How many rows are staged?"""
        return int(self._state[kernels.STAGED])

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
            or state[kernels.HEAP_USED] >= self._heap_enough
        )

    def add_body(self, body: Bytes, request: int) -> tuple[int, Durability] | None:
        """Stage a request as it came; return how many events it has, and the durability asked for.

        None, and nothing is staged, unless it is columnar, plain and right in every row: then it is
        for `protocol.columns` to decode and for `add`.
        """
        located = (np.frombuffer(body, np.uint8), *self._located)
        if not kernels.stage_body(self._known, located, self._versions, (*self._out, request)):
            return None
        places = self._located[0]
        return int(places[locating.ROWS]), "async" if places[locating.DURABILITY] else "sync"

    def add(
        self, columns: EventColumns, request: int, certain: bool = True
    ) -> list[tuple[int, int]] | None:
        """Stage one request; return its rows without an identity as (row, reason).

        None, and nothing is staged: written out, the request is larger than a record may be.
        Raises UnknownMetric, and nothing is staged, when a newer registry might take a row that
        this one refuses, unless the registry is `certain`.
        """
        state = self._state
        before, refused_before = state.copy(), int(state[kernels.REFUSED])
        state[kernels.FAULTS] = 0
        codes = np.array([self._places.get(code, (0, 0)) for code in columns.metric_codes])
        located = located_columns(columns, codes.astype(np.int64))
        if not kernels.stage(located, self._versions, (*self._out, request)):
            return None
        if int(state[kernels.REFUSED]) > refused_before:
            refused = self._refused[refused_before : int(state[kernels.REFUSED])]
            if not certain and _depends_on_registry(refused, columns):
                state[:] = before
                raise UnknownMetric
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
        packed = self._pack_rows(self._staged, int(self._state[kernels.STAGED]))
        packed = packed._replace(refusals=self._take_refusals())
        self._state[:] = 0
        return packed

    def pack_parts(self, leaders: NDArray[np.uint8]) -> list[tuple[int, Packed]]:
        """Take everything staged as one proposal for each leader, those of a lower number first.

        leaders: u8[256 or more], who leads each partition.  What was refused goes with the part of
        its partition, because only the leader knows its identity; a part may hold nothing else.
        """
        n, refused = int(self._state[kernels.STAGED]), int(self._state[kernels.REFUSED])
        led_by = _led_by(self._staged[:n], leaders)
        refused_by = _led_by(self._refused[:refused], leaders)
        present = np.zeros(256, np.bool_)
        present[led_by] = present[refused_by] = True
        nodes = np.flatnonzero(present).tolist()
        if len(nodes) == 1:
            return [(nodes[0], self.pack())]
        codes, parts = self._codes, []
        for node in nodes:
            rows = self._staged[:n][led_by == node]
            packed = self._pack_rows(rows, len(rows))
            refusals = self._refusals(self._refused[:refused][refused_by == node], codes)
            parts.append((node, packed._replace(refusals=refusals)))
        self._codes = []
        self._state[:] = 0
        return parts

    def _pack_rows(self, staged: NDArray[np.int64], n: int) -> Packed:
        """Pack n staged rows."""
        slice_count, heap_size = kernels.count_slices(staged, n, self._sizes)
        layout = log_format.payload_layout(n, heap_size)
        payload = np.empty(layout.size, np.uint8)
        slices = np.empty((slice_count, 5), np.uint64)
        request_of_row, row_of_row = np.empty(n, np.uint16), np.empty(n, np.uint16)
        kernels.pack(
            staged,
            n,
            self._heap,
            self._sizes,
            payload,
            tuple(layout[:6]),
            (slices, request_of_row, row_of_row),
        )
        return Packed(payload, slices, n, heap_size, request_of_row, row_of_row, None)

    def _take_refusals(self) -> Refusals | None:
        count = int(self._state[kernels.REFUSED])
        codes, self._codes = self._codes, []
        return self._refusals(self._refused[:count].copy(), codes)

    def _refusals(self, rows: NDArray[np.int64], codes: list[bytes]) -> Refusals | None:
        """Return refused rows with what they need of the heap; None when there are none."""
        if not len(rows):
            return None
        size = int((rows[:, kernels.ENTRY_END] - rows[:, kernels.ENTRY_START]).sum())
        heap = np.zeros(size, np.uint8)
        kernels.compact_refused(rows, len(rows), self._heap, heap)
        # As they are when they have crossed to usage as bytes: kernels tell the two apart.
        rows.flags.writeable = heap.flags.writeable = False
        return Refusals(rows, heap, codes)


def _led_by(rows: NDArray[np.int64], leaders: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return who leads the partition of each staged or refused row."""
    return leaders[partitions_of(rows)]


def _depends_on_registry(refused: NDArray[np.int64], columns: EventColumns) -> bool:
    """Does a row of these lack a metric at its time, or decimals, and nothing else?"""
    reasons = (refused[:, kernels.FLAGS] >> 16) & 0xFF
    own = columns.reason[refused[:, kernels.ROW]] == 0
    of_registry = (reasons == kernels.UNKNOWN_METRIC) | (reasons == kernels.BAD_VALUE)
    return bool((own & of_registry).any())


def partitions_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the partition of each staged or refused row."""
    return (rows[:, kernels.FLAGS] >> PARTITION_SHIFT) & 0xFFFF


def _code_index(places: dict[bytes, tuple[int, int]]) -> tuple[NDArray[Any], ...]:
    """Return the codes of a registry as `kernels.stage_body` looks them up."""
    ends = np.cumsum([0, *map(len, places)])
    codes = np.zeros((len(places), 4), np.int64)
    codes[:, locating.CODE_AT], codes[:, locating.CODE_SIZE] = ends[:-1], np.diff(ends)
    if places:
        codes[:, locating.CODE_FIRST :] = list(places.values())
    slots = np.full(max(8, 1 << (2 * len(places)).bit_length()), -1, np.int64)
    texts = np.frombuffer(b"".join(places), np.uint8)
    locating.enter_codes(slots, codes, texts)
    return slots, codes, texts


def code_hash(identity_key: tuple[int, int], code: bytes) -> int:
    """Hash a metric's code for the content digest."""
    first, _ = text_hash(
        np.uint64(identity_key[0]),
        np.uint64(identity_key[1]),
        np.frombuffer(code, np.uint8),
    )
    return int(first)


def located_columns(columns: EventColumns, codes: NDArray[np.int64]) -> tuple[Any, ...]:
    """Lay the columns of a decoded request one after another; return it located."""
    parts: list[bytes] = []
    size = 0

    def lay(array: NDArray[Any]) -> int:
        nonlocal size
        at = size
        parts.append(array.tobytes())
        size += len(parts[-1])
        return at

    places = np.full(locating.PLACE_COUNT, -1, np.int64)
    places[locating.ROWS] = columns.count
    places[locating.TIMESTAMP_AT] = lay(columns.timestamp)
    places[locating.VALUE_AT] = lay(columns.value)
    places[locating.EXPONENT_AT] = lay(columns.exponent)
    places[locating.METRIC_AT] = lay(columns.metric_index)
    places[locating.ACCOUNT_OFFSETS_AT] = lay(columns.account.offsets)
    places[locating.ACCOUNT_AT] = lay(columns.account.text)
    if columns.uuid is not None:
        places[locating.UUID_AT] = lay(columns.uuid)
    if columns.id is not None:
        places[locating.ID_OFFSETS_AT] = lay(columns.id.offsets)
        places[locating.ID_AT] = lay(columns.id.text)
    places[locating.OPERATION_AT] = lay(columns.operation)
    places[locating.REASON_AT] = lay(columns.reason)
    places[locating.PROPERTY_COUNT] = len(columns.properties)
    keys, values = [], [np.zeros((0, 2), np.int64)]
    for column in columns.properties:
        key_at = lay(np.frombuffer(column.key, np.uint8))
        index_at, text_at = lay(column.index), lay(column.values.text)
        keys.append((key_at, len(column.key), sum(map(len, values)), index_at))
        offsets = column.values.offsets.astype(np.int64)
        values.append(np.stack([text_at + offsets[:-1], np.diff(offsets)], axis=1))
    key_rows = np.array(keys, np.int64).reshape(-1, 4)
    body = np.frombuffer(b"".join(parts), np.uint8)
    return body, places, codes, key_rows, np.concatenate(values)
