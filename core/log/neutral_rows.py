"""Makes payloads of the size of one that was lost, whose rows are whole and count for nothing.

Readers of log files walk through all rows of a record, also those that were refused, so what
stands in the place of lost rows must be well formed: heap entries of the sizes that the slice
table names.  No stretch is left zero that was not, for zeros tell a torn block.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from meterd.protocol import log_format
from meterd.protocol.log_format import EVENTS, Record

MARKER: Final = b"?"
NIL: Final = b"\xc0"  # of msgpack
TEXT_MAX: Final = 255
# Sizes of account and id, one byte of each, number of properties.
ENTRY_MIN: Final = 5


def neutral_payload(record: Record) -> bytes | None:
    """Return a payload for a record's row count, heap size and slices, None when there is none."""
    size = record.heap_size
    if record.kind != EVENTS:
        return (NIL * size).ljust(log_format.padded(size), b"\0")
    entries: list[bytes] = []
    for part in record.slices:
        found = _entries(int(part["count"]), int(part["heap_size"]))
        if found is None:
            return None
        entries += found
    n = record.row_count
    at = log_format.payload_layout(n, size)
    payload = bytearray(at.size)
    ends = np.cumsum([len(entry) for entry in entries]).astype(np.uint32)
    payload[at.timestamp : at.value] = np.full(n, max(1, record.leader_time), np.int64).tobytes()
    payload[at.value : at.heap_end] = np.ones(n, np.int64).tobytes()
    payload[at.heap_end : at.heap_end + 4 * n] = ends.tobytes()
    payload[at.metric : at.metric + 2 * n] = np.ones(n, np.uint16).tobytes()
    payload[at.heap : at.heap + size] = b"".join(entries)
    return bytes(payload)


def _entries(count: int, size: int) -> list[bytes] | None:
    """Return heap entries of `count` rows that are `size` bytes together."""
    if count == 0:
        return [] if size == 0 else None
    sizes = [size // count] * count
    sizes[-1] += size - sum(sizes)
    entries = [_entry(each) for each in sizes]
    return None if None in entries else [entry for entry in entries if entry is not None]


def _entry(size: int) -> bytes | None:
    """Return one heap entry of exactly this size."""
    more = size - ENTRY_MIN
    if more < 0:
        return None
    account = min(more, TEXT_MAX - 1)
    more -= account
    identity = min(more, TEXT_MAX - 1)
    more -= identity
    properties = []
    while more:
        # Key and value with their sizes; what is left must be nothing or another property.
        whole = min(more, 2 + TEXT_MAX + TEXT_MAX)
        if 0 < more - whole < 4:
            whole -= 4
        if whole < 3:
            return _shorter(size, account, identity)
        key = min(whole - 2, TEXT_MAX)
        value = whole - 2 - key
        properties.append(bytes([key]) + MARKER * key + bytes([value]) + MARKER * value)
        more -= whole
    if len(properties) > TEXT_MAX:
        return None
    texts = MARKER * (account + 1) + MARKER * (identity + 1)
    return (
        bytes([account + 1, identity + 1]) + texts + bytes([len(properties)]) + b"".join(properties)
    )


def _shorter(size: int, account: int, identity: int) -> bytes | None:
    """Return an entry whose id is a little shorter, so that one small property fills the rest."""
    cut = 8
    rest = size - ENTRY_MIN - account - identity + cut
    if identity < cut or rest < 3:
        return None
    key = rest - 2
    texts = MARKER * (account + 1) + MARKER * (identity - cut + 1)
    small = bytes([key]) + MARKER * key + b"\0"
    return bytes([account + 1, identity - cut + 1]) + texts + b"\x01" + small
