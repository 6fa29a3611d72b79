"""A writer of logs for tests: orders and chains proposals of a node that is alone, in one term.

What it makes is what the engine makes for a group whose only voter is this node; tests of all that
reads a log need no more.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.cluster.proposals import Proposal
from meterd.core.kernels import chain
from meterd.core.log.scan import Groups
from meterd.protocol import log_format
from meterd.protocol.errors import InvariantViolation

TERM = 1


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
        table = np.frombuffer(proposal.slices, log_format.SLICE)
        groups.time[table["partition"]] = groups.leader_time
        partitions = table["partition"]
        table["index"] = groups.index[partitions] + np.uint64(1)
        table["term"] = TERM
        kind_and_time = [proposal.kind, proposal.registry_version, groups.leader_time]
        fields = np.array(kind_and_time, np.int64).view(np.uint64)
        before, contents = groups.digest[partitions], np.ascontiguousarray(table["digest"])
        index, term = table["index"].astype(np.int64), table["term"].astype(np.int64)
        digests = np.empty((len(table), 2), np.uint64)
        chain.chain_ops(before, index, term, fields, contents, digests)
        table["digest"] = digests
        groups.index[partitions], groups.digest[partitions] = table["index"], digests
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
