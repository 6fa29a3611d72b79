"""Cuts slices out of a record: the same ops as a record that holds nothing else.

Replica sets differ, and replicas that are behind take one op at a time.  Neither content hash nor
digest of a slice changes: rows keep their order, and where a heap entry ends is no part of a
content (docs/STORAGE.md, "Hash chain").

Does not know: sockets, files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meterd.protocol import log_format
from meterd.protocol.log_format import EVENTS, RECORD_HEADER_SIZE, SLICE, Record


def cut(record: Record, numbers: Sequence[int]) -> Record:
    """Return a record of some slices, ascending; their flags are those of a new record.

    A payload that need not be cut is not copied.
    """
    slices = record.slices[np.asarray(numbers)].copy()
    slices["flags"] = 0
    rows, heap_size, payload = record.row_count, record.heap_size, record.payload
    if record.kind == EVENTS and len(numbers) < len(record.slices):
        rows, heap_size = int(slices["count"].sum()), int(slices["heap_size"].sum())
        payload = memoryview(_payload(record, numbers, rows, heap_size))
    size = RECORD_HEADER_SIZE + SLICE.itemsize * len(slices) + len(payload)
    return record._replace(
        offset=0, size=size, row_count=rows, heap_size=heap_size, slices=slices, payload=payload
    )


def _payload(record: Record, numbers: Sequence[int], rows: int, heap_size: int) -> bytes:
    columns = log_format.columns(record)
    layout = log_format.payload_layout(rows, heap_size)
    row_ends = np.cumsum(record.slices["count"], dtype=np.int64)
    byte_ends = np.cumsum(record.slices["heap_size"], dtype=np.int64)
    payload = np.zeros(layout.size, np.uint8)
    row = byte = 0
    for number in numbers:
        last, heap_last = int(row_ends[number]), int(byte_ends[number])
        first = last - int(record.slices["count"][number])
        heap_first = heap_last - int(record.slices["heap_size"][number])
        ends = columns.heap_end[first:last] - np.uint32(heap_first) + np.uint32(byte)
        for at, width, part in (
            (layout.timestamp, 8, columns.timestamp[first:last]),
            (layout.value, 8, columns.value[first:last]),
            (layout.heap_end, 4, ends),
            (layout.metric, 2, columns.metric[first:last]),
            (layout.operation, 1, columns.operation[first:last]),
        ):
            _put(payload, at + width * row, part)
        _put(payload, layout.heap + byte, columns.heap[heap_first:heap_last])
        row += last - first
        byte += heap_last - heap_first
    return payload.tobytes()


def _put(payload: NDArray[np.uint8], at: int, part: NDArray[np.generic]) -> None:
    payload[at : at + part.nbytes] = np.ascontiguousarray(part).view(np.uint8)
