"""The cores of the actors of the chain in one process: an event's way without sockets and disk.

Requests are decoded, staged, packed, ordered, chained, read back as the log would give them,
applied, and their outcomes led back to the requests.  Everything crosses as the bytes that cross in
a node, so the arrays that kernels see are of the same types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from meterd.actors.requests.outcomes import Origin, encode_origin, parse_origin, results
from meterd.core.cluster.proposals import Proposal, slices_of
from meterd.core.kernels.tables import Capacity
from meterd.core.log.scan import Groups, verify_chain
from meterd.core.questions.zones import UTC
from meterd.core.staging import Packed, Stage
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from meterd.protocol.columns import decode_events
from meterd.protocol.log_format import Record
from meterd.protocol.result import IngestResult
from tests.support.replica import Append, Replica

KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
CAPACITY = Capacity(20_000, 2_000, 4_000, 20_000, 20_000)


class Pipeline:
    """Stage → Replica → records → StateMachine."""

    def __init__(self, key: tuple[int, int] = KEY, capacity: Capacity = CAPACITY) -> None:
        self.key, self.capacity = key, capacity
        self.state = StateMachine(key, capacity)
        self.replica = Replica(Groups())
        self.stage = Stage(4_096, key)
        self.appended: list[Append] = []
        self._follower = Groups()

    def command(self, now: int, **command: Any) -> dict[str, Any]:
        """Order and apply a command of the log; return its result."""
        packed = msgpack.packb(command)
        payload = packed.ljust(log_format.padded(len(packed)), b"\0")
        kind = log_format.EXPIRE if command["op"] == "expire" else log_format.META
        slices = slices_of([log_format.META_GROUP], payload)
        version = self.state.registry.version
        record = self._record(Proposal(kind, slices, payload, 0, len(packed), version), now)
        result = self.state.apply_command(record)
        self.stage.use(self.state.registry)
        return result

    def account_command(self, now: int, partition: int, command: dict[str, Any]) -> dict[str, Any]:
        """Order and apply a command of an account in its partition; return its result."""
        packed = msgpack.packb(command)
        payload = packed.ljust(log_format.padded(len(packed)), b"\0")
        slices = slices_of([partition], payload)
        version = self.state.registry.version
        proposal = Proposal(log_format.ACCOUNT, slices, payload, 0, len(packed), version)
        return self.state.apply_command(self._record(proposal, now))

    def put(self, now: int, definition: dict[str, Any], replace: bool = False) -> dict[str, Any]:
        """Register a metric whose time zone is UTC."""
        return self.command(
            now, op="metric_put", definition=definition, transitions=UTC, replace=replace
        )

    def ingest(self, now: int, *bodies: bytes) -> list[IngestResult]:
        """Take the requests of one record; return their results in order."""
        requests: list[Any] = []
        for number, body in enumerate(bodies):
            whole = self.stage.add_body(body, number)
            if whole is not None:
                requests.append((b"%d" % number, number, whole[0], []))
                continue
            columns = decode_events(body, None)
            faults = self.stage.add(columns, number)
            assert faults is not None, "the requests are small"
            requests.append((b"%d" % number, number, columns.count, faults))
        packed = self.stage.pack()
        origin = origin_of(packed, requests)
        outcome = np.zeros(0, np.uint8)
        if packed.row_count:
            outcome = self.state.apply_events(self._record(proposal_of(packed, self.stage), now))
        judged = None if origin.refusals is None else self.state.judge(origin.refusals)
        found = {rid: result for rid, *_, result in results(origin, outcome, judged)}
        return [found[b"%d" % number] for number in range(len(bodies))]

    def events(self, now: int, *requests: Sequence[dict[str, Any]]) -> list[IngestResult]:
        """Take requests in the plain form."""
        return self.ingest(now, *(msgpack.packb({"events": list(r)}) for r in requests))

    def replayed(self) -> StateMachine:
        """Return a new state machine to which the same log was applied."""
        fresh = StateMachine(self.key, self.capacity)
        for append in self.appended:
            apply(fresh, append)
        return fresh

    def _record(self, proposal: Proposal, now: int) -> Record:
        append = self.replica.propose(proposal, now)
        self.replica.durable(np.array([append.sequence], np.uint64))
        self.appended.append(append)
        record = log_format.parse_frames(append.head, bytes(append.payload))
        verify_chain(record, self._follower)
        self._follower.follow(record)
        return record


def apply(state: StateMachine, append: Append) -> None:
    """Apply a record of the log."""
    record = log_format.parse_frames(append.head, bytes(append.payload))
    if record.kind == log_format.EVENTS:
        state.apply_events(record)
    else:
        state.apply_command(record)


def proposal_of(packed: Packed, stage: Stage) -> Proposal:
    """Return what ingest would ask to have ordered."""
    return Proposal(
        log_format.EVENTS,
        bytearray(packed.slices.tobytes()),
        packed.payload.tobytes(),
        packed.row_count,
        packed.heap_size,
        stage.registry_version,
    )


def origin_of(packed: Packed, requests: list[Any]) -> Origin:
    """Return the origin as usage reads it from the frame that ingest sends.

    requests: (rid, request id, events, faults), all `sync`.
    """
    return parse_origin(encode_origin(0.0, [(*one, False) for one in requests], packed))
