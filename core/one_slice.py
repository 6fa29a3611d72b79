"""Cuts one slice out of a record: the same op as a record that holds nothing else.

An op travels alone to a replica that is behind, or goes alone into the log of one that has refused
what was beside it.  Neither its content hash nor its digest changes: rows keep their order, and
where a row's heap entry ends is counted from the slice's beginning, which no hash covers
(docs/STORAGE.md, "Hash chain").

Does not know: files, sockets, which of a record's slices were taken here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from meterd.protocol import log_format
from meterd.protocol.log_format import EVENTS, Record, RecordFields


def one_slice(record: Record, number: int) -> tuple[bytes, bytes | memoryview]:
    """Return head and payload of slice `number` (0, 1 … in the table) as a record of its own.

    Sequence, leader time and registry version stay; the slice's flags do not, for they say what
    one node did with it.  A payload that need not be cut is not copied: it is the record's.
    """
    table = record.slices[number : number + 1].copy()
    table["flags"] = 0
    if record.kind != EVENTS or len(record.slices) == 1:
        return _head(record, table, record.row_count, record.heap_size, record.payload)
    rows, heap = int(table["count"][0]), int(table["heap_size"][0])
    before = record.slices[:number]
    first_row, first_byte = int(before["count"].sum()), int(before["heap_size"].sum())
    payload = _cut(record, first_row, rows, first_byte, heap)
    return _head(record, table, rows, heap, payload)


def _head(
    record: Record,
    table: NDArray[np.void],
    row_count: int,
    heap_size: int,
    payload: bytes | memoryview,
) -> tuple[bytes, bytes | memoryview]:
    fields = RecordFields(
        record.kind,
        row_count,
        heap_size,
        record.registry_version,
        record.leader_time,
        record.sequence,
    )
    return log_format.encode_record_head(fields, table, payload), payload


def _cut(record: Record, first_row: int, rows: int, first_byte: int, heap: int) -> bytes:
    """Return the payload of some rows that lie together, and of their heap."""
    columns = log_format.columns(record)
    layout = log_format.payload_layout(rows, heap)
    payload = bytearray(layout.size)
    last_row = first_row + rows
    heap_end = columns.heap_end[first_row:last_row] - np.uint32(first_byte)
    for at, part in (
        (layout.timestamp, columns.timestamp[first_row:last_row]),
        (layout.value, columns.value[first_row:last_row]),
        (layout.heap_end, heap_end),
        (layout.metric, columns.metric[first_row:last_row]),
        (layout.operation, columns.operation[first_row:last_row]),
        (layout.heap, columns.heap[first_byte : first_byte + heap]),
    ):
        payload[at : at + part.nbytes] = part.tobytes()
    return bytes(payload)
