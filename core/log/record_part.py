"""Cuts some slices of a record of events out, as a record of their own.

Rows of a slice are contiguous, and so are their heap entries: every column is cut where the slices
begin and end, and the ends of heap entries are counted anew.  Digests and content stay what they
are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from meterd.protocol import log_format
from meterd.protocol.log_format import Record

Mask = NDArray[np.bool_]


def rows_of(record: Record, chosen: Mask) -> Mask:
    """Return which rows belong to the chosen slices."""
    return np.repeat(chosen, record.slices["count"].astype(np.int64))


def part_of(record: Record, chosen: Mask) -> Record:
    """Return a record of the chosen slices.  It has no bytes of its own: offset and size are 0."""
    columns, rows = log_format.columns(record), rows_of(record, chosen)
    sizes = np.diff(columns.heap_end.astype(np.int64), prepend=0)[rows]
    heap = columns.heap[np.repeat(chosen, record.slices["heap_size"].astype(np.int64))]
    count = len(sizes)
    at = log_format.payload_layout(count, len(heap))
    payload = np.zeros(at.size, np.uint8)
    pieces = (
        (at.timestamp, columns.timestamp[rows]),
        (at.value, columns.value[rows]),
        (at.heap_end, sizes.cumsum().astype(np.uint32)),
        (at.metric, columns.metric[rows]),
        (at.operation, columns.operation[rows]),
        (at.heap, heap),
    )
    for start, piece in pieces:
        raw = piece.view(np.uint8)
        payload[start : start + len(raw)] = raw
    return record._replace(
        offset=0,
        size=0,
        row_count=count,
        heap_size=len(heap),
        slices=record.slices[chosen],
        payload=payload.data,
    )
