"""What is asked to be ordered: a table of slices with their contents' hashes, and one payload.

Sans-I/O; ingest and usage make proposals, `core/cluster/replicas.py` orders them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgpack
import numpy as np

from meterd.core.kernels import stage
from meterd.protocol import log_format


class Proposal(NamedTuple):
    """One record to be: slices of any groups that share a payload."""

    kind: int  # log_format.EVENTS, META, EXPIRE or ACCOUNT
    slices: bytearray  # slice table with the contents' hashes in place of digests
    payload: bytes | memoryview
    row_count: int
    heap_size: int
    registry_version: int


def command(kind: int, groups: Iterable[int], fields: Any, registry_version: int) -> Proposal:
    """Return the proposal of one command for some groups, ascending."""
    packed = msgpack.packb(fields)
    payload = packed.ljust(log_format.padded(len(packed)), b"\0")
    slices = slices_of(groups, payload)
    return Proposal(kind, slices, payload, 0, len(packed), registry_version)


def slices_of(groups: Iterable[int], body: bytes) -> bytearray:
    """Return the slice table of a payload that is one body, the same for each group, ascending."""
    first, second = stage.content_of_bytes(np.frombuffer(body, np.uint8))
    words = np.array([[group | 1 << 32, 0, first, second, 0] for group in groups], np.uint64)
    return bytearray(words.tobytes())
