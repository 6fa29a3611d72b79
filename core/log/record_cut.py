"""Cuts slices out of a record: the same ops as a record that holds nothing else.

Replica sets differ, replicas that are behind take one op at a time, and groups are committed one by
one.  Neither content hash nor digest of a slice changes: rows keep their order, and where a heap
entry ends is no part of a content (docs/STORAGE.md, "Hash chain").

Does not know: sockets, files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels.row_columns import cut_slices
from meterd.protocol import log_format
from meterd.protocol.log_format import EVENTS, RECORD_HEADER_SIZE, SLICE, Record


def rows_of(record: Record, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which rows belong to the chosen slices."""
    return np.repeat(chosen, record.slices["count"].astype(np.int64))


def cut(record: Record, numbers: Sequence[int]) -> Record:
    """Return a record of some slices, ascending; their flags are those of a new record.

    A payload that need not be cut is not copied.
    """
    if len(numbers) == 1:  # as for each op that a follower catches up by
        slices = record.slices[numbers[0] : numbers[0] + 1].copy()
    else:
        slices = record.slices[np.asarray(numbers)]
    slices["flags"] = 0
    rows, heap_size, payload = record.row_count, record.heap_size, record.payload
    if record.kind == EVENTS and len(numbers) < len(record.slices):
        rows, heap_size = sum(slices["count"].tolist()), sum(slices["heap_size"].tolist())
        payload = memoryview(_payload(record, numbers, rows, heap_size))
    size = RECORD_HEADER_SIZE + SLICE.itemsize * len(slices) + len(payload)
    return record._replace(
        offset=0, size=size, row_count=rows, heap_size=heap_size, slices=slices, payload=payload
    )


def _payload(record: Record, numbers: Sequence[int], rows: int, heap_size: int) -> bytes:
    source = log_format.payload_layout(record.row_count, record.heap_size)
    layout = log_format.payload_layout(rows, heap_size)
    payload = np.frombuffer(record.payload, np.uint8)
    found = np.zeros(layout.size, np.uint8)
    wanted = np.asarray(numbers, np.int64)
    cut_slices(frozen(record.slices), frozen(payload), tuple(source), wanted, found, tuple(layout))
    return found.tobytes()
