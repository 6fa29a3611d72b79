"""Works out identities again from the events of segments and log files.

An identity is a hash of account and id; with it go a digest of the event's content and its day
(docs/STORAGE.md).  All three follow from the event and the registry, so they come out of the kernel
that applies records, given a table of metrics that counts nothing: whatever it says of an event
then, it says now.

Only rows that were stored may be given: of a duplicate or a refused event no identity is kept.
Does not know: files.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import apply as kernels
from meterd.core.kernels import segment_blocks as blocks
from meterd.core.kernels import segment_match
from meterd.core.kernels import tables as table_kernels
from meterd.core.kernels.index import clear
from meterd.core.kernels.memory import handle_of
from meterd.core.kernels.tables import DAY_NS, Capacity, make_tables
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.identity_runs import Entries
from meterd.core.state.metric_table import make_book
from meterd.core.state.registry import Registry
from meterd.protocol import log_format
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.limits import I64_MAX
from meterd.protocol.log_format import SLICE, Record, padded
from meterd.protocol.segment_format import BLOCK_ROWS

# Identities that are handed over together: one run of them.
BATCH: Final = 2_000_000
ROWS_MAX: Final = table_kernels.RECORD_ROWS_MAX


class Rows(NamedTuple):
    """Stored events, as the columns of a record."""

    timestamp: NDArray[np.int64]
    value: NDArray[np.int64]
    metric: NDArray[np.uint16]
    operation: NDArray[np.uint8]
    entries: list[bytes]  # as in a record's heap


class IdentityRebuild:
    """Takes events, in any order; `full` says when `take_entries` is due."""

    def __init__(
        self,
        identity_key: tuple[int, int],
        registry: Registry,
        leader_time: int,
        horizon: int,
        batch: int = BATCH,
    ) -> None:
        """`horizon`: events before it are left out, for their identities have expired."""
        self._batch, self._horizon = batch, horizon
        # Nothing is counted, so only the identities need room.
        self._tables = make_tables(Capacity(batch + ROWS_MAX, 1, 1, 1, 1), identity_key)
        self._handle = handle_of(self._tables)
        self._book = make_book(registry, leader_time, DAY_NS, identity_key)
        self._book.table.rows[:, kernels.BOUND_COUNT] = 0
        self._book.table.rows[:, kernels.UNIQUE_KIND] = kernels.NOT_UNIQUE
        self._scratch = kernels.make_scratch(ROWS_MAX)
        self._scratch_handle = handle_of(self._scratch)
        self.expired = 0

    @property
    def count(self) -> int:
        """How many identities wait to be handed over."""
        return int(self._tables.counters[table_kernels.RECENT])

    @property
    def full(self) -> bool:
        return self.count >= self._batch

    def take(self, rows: Rows) -> None:
        """Take stored events, at most ROWS_MAX.

        Raises InvariantViolation when two have one identity, or one a metric that nobody knows.
        """
        count = len(rows.entries)
        if count:
            self._apply(payload_of(rows), count)

    def _apply(self, payload: bytes, count: int) -> None:
        slices = np.zeros(1, SLICE)
        slices["count"], slices["index"] = count, 1
        stored, _ = kernels.apply(
            np.frombuffer(payload, np.uint8),
            count,
            np.frombuffer(slices.tobytes(), np.uint8),
            self._handle,
            self._book.handle,
            self._scratch_handle,
            (self._horizon, I64_MAX),
        )
        outcome = self._scratch.outcome[:count]
        expired = int(np.count_nonzero(outcome == kernels.TOO_OLD))
        if stored == kernels.UNKNOWN_METRIC or int(stored) + expired != count:
            raise InvariantViolation("stored events contradict each other or the registry")
        self.expired += expired

    def take_entries(self) -> Entries:
        """Return a copy of the identities taken since the last call; they are forgotten here."""
        entries: Entries = self._tables.journal[: self.count].copy()
        clear(self._tables.recent)
        self._tables.counters[table_kernels.RECENT] = 0
        return entries


def payload_of(rows: Rows) -> bytes:
    """Return events as the payload of a record."""
    heap_end = np.cumsum([len(entry) for entry in rows.entries]).astype(np.uint32)
    columns = (rows.timestamp, rows.value, heap_end, rows.metric, rows.operation)
    parts = [column.tobytes() for column in columns] + [b"".join(rows.entries)]
    return b"".join(part.ljust(padded(len(part)), b"\0") for part in parts)


def rows_of_segment(reader: SegmentReader, end: int) -> Iterator[Rows]:
    """Yield the rows of a segment whose ordinal is before `end`.  Raises Corrupt."""
    for number in range(len(reader.index.blocks)):
        columns, count = reader.block(number)
        columns = columns.copy()
        keep = np.flatnonzero(columns[blocks.ORDINAL] < end)
        if not len(keep):
            continue
        first = number * BLOCK_ROWS
        runs = reader.runs_between(first, first + count)
        counts = runs.rows[:, segment_match.COUNT]
        metric = np.repeat(runs.rows[:, segment_match.METRIC], counts)
        account = np.repeat(runs.rows[:, segment_match.ACCOUNT], counts)
        texts = _texts(runs.accounts.text, runs.accounts.text_end, int(account[-1]) + 1)
        is_uuid, ends, raw = reader.id_block(number)
        starts, ids = ends - np.diff(ends, prepend=0), raw.tobytes()
        sets = columns[blocks.SET]
        entries = []
        for row in keep.tolist():
            text, identifier = texts[account[row]], ids[starts[row] : ends[row]]
            sizes = bytes([len(text), 0 if is_uuid[row] else len(identifier)])
            entries.append(sizes + text + identifier + reader.property_set(int(sets[row])))
        yield Rows(
            columns[blocks.AT][keep],
            columns[blocks.AMOUNT][keep],
            metric[keep].astype(np.uint16),
            columns[blocks.OPERATION][keep].astype(np.uint8),
            entries,
        )


def _texts(text: NDArray[np.uint8], ends: NDArray[np.int64], count: int) -> list[bytes]:
    raw, bounds = text.tobytes(), [0, *ends[:count].tolist()]
    return [raw[start:end] for start, end in pairwise(bounds)]


def rows_of_record(record: Record, stored: NDArray[np.bool_]) -> Rows:
    """Return the rows of a record of events that were stored."""
    columns = log_format.columns(record)
    heap, ends = columns.heap.tobytes(), [0, *columns.heap_end.tolist()]
    keep = np.flatnonzero(stored)
    return Rows(
        columns.timestamp[keep],
        columns.value[keep],
        columns.metric[keep],
        columns.operation[keep],
        [heap[ends[row] : ends[row + 1]] for row in keep.tolist()],
    )
