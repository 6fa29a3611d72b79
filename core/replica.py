"""Orders proposals, chains them, says when they are committed: this node's replicas of all groups.

Sans-I/O: `propose` returns the record to append, `durable` what may be applied.  In a group of one
a record is committed as soon as it is durable here.  What a cluster adds (terms that change,
followers, quorums) goes between these two calls; nothing outside this module knows how many
replicas a group has.

Invariants:
  * every slice gets the index after its group's last one, and the digest chained to it
  * leader time rises by at least 1 ns from record to record and never goes back
  * records become durable, and are committed, in the order of their sequence
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import stage
from meterd.core.log_scan import Groups
from meterd.protocol import log_format
from meterd.protocol.errors import InvariantViolation

# A group of one elects itself once and for ever.
TERM = 1


class Proposal(NamedTuple):
    """What ingest asks to have ordered."""

    kind: int  # log_format.EVENTS, META or EXPIRE
    slices: bytearray  # slice table with the contents' hashes in place of digests
    payload: bytes | memoryview
    row_count: int
    heap_size: int
    registry_version: int


class Append(NamedTuple):
    """A record to make durable."""

    sequence: int
    head: bytes
    payload: bytes | memoryview
    commits: bool  # durable here is committed: nobody else need have it


class Replica:
    """Change it only through `propose` and `durable`."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._waiting: deque[int] = deque()  # bounded by what the router admits

    @property
    def waiting(self) -> int:
        """Return how many records are appended and not yet durable."""
        return len(self._waiting)

    def propose(self, proposal: Proposal, now: int) -> Append:
        """Order one proposal at UTC ns `now`."""
        groups = self._groups
        groups.leader_time = max(now, groups.leader_time + 1)
        groups.sequence += 1
        words = np.frombuffer(proposal.slices, np.uint64).reshape(-1, 5)
        constants = np.array(
            [proposal.kind, proposal.registry_version, groups.leader_time, TERM], np.uint64
        )
        stage.chain(words, constants, groups.index, groups.digest)
        head = log_format.encode_record_head(
            log_format.RecordFields(
                proposal.kind,
                proposal.row_count,
                proposal.heap_size,
                proposal.registry_version,
                groups.leader_time,
                groups.sequence,
            ),
            np.frombuffer(proposal.slices, log_format.SLICE),
            proposal.payload,
        )
        self._waiting.append(groups.sequence)
        return Append(groups.sequence, head, proposal.payload, commits=True)

    def durable(self, sequences: NDArray[np.uint64]) -> None:
        """Take note that these records are on stable storage."""
        for sequence in sequences.tolist():
            expected = self._waiting.popleft() if self._waiting else None
            if sequence != expected:
                raise InvariantViolation(f"record {sequence} is durable, {expected} was next")


def slices_of(groups: Iterable[int], body: bytes) -> bytearray:
    """Return the slice table, `Proposal.slices`, of a payload that is one msgpack body."""
    first, second = stage.content_of_bytes(np.frombuffer(body, np.uint8))
    words = np.array([[group | 1 << 32, 0, first, second, 0] for group in groups], np.uint64)
    return bytearray(words.tobytes())


def single_slice(group: int, body: bytes) -> bytearray:
    """Return the slice table of a body that is for one group."""
    return slices_of((group,), body)
