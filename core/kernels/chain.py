"""Verifies the hash chain of a record that was read back: content of each slice, then its digest.

`stage.pack` and `stage.chain` compute the same when a record is made (docs/STORAGE.md, "Hash
chain").
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.hashing import (
    CHAIN_KEY_0,
    CHAIN_KEY_1,
    sip_finish,
    sip_start,
    sip_word,
)
from meterd.core.kernels.stage import content_of, content_of_bytes
from meterd.protocol.log_format import EVENTS

Array = Any

_U64 = np.uint64


@njit(cache=True)
def first_broken(slices: Array, payload: Array, layout: Any, fields: Array, digests: Array) -> int:
    """Return the position of the first slice whose digest is not what it must be, or -1.

    layout   byte offsets of timestamp, value, heap_end, metric, operation and heap in the payload
    fields   u64[3]: kind, registry version, leader time
    digests  u64[257, 2]: each group's digest before this record
    """
    row = byte = 0
    for i in range(len(slices)):
        last_row = row + int(slices[i].count)
        last_byte = byte + int(slices[i].heap_size)
        if fields[0] == EVENTS:
            c0, c1 = content_of(payload, layout, row, last_row - row, byte, last_byte)
        else:
            c0, c1 = content_of_bytes(payload)
        row, byte = last_row, last_byte
        group = int(slices[i].partition)
        v0, v1, v2, v3 = sip_start(CHAIN_KEY_0, CHAIN_KEY_1)
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, digests[group, 0])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, digests[group, 1])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(slices[i].index))
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, _U64(slices[i].term))
        for k in range(3):
            v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, fields[k])
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, c0)
        v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, c1)
        d0, d1 = sip_finish(v0, v1, v2, v3)
        if d0 != slices[i].digest[0] or d1 != slices[i].digest[1]:
            return i
    return -1
