"""Makes what the engine sends fit to be sent: small before large, records cut, sizes bounded.

Everything small (beats, votes, acks) goes by the control connection, so that it never waits
behind ops; ops and snapshots go by the bulk connection.  The engine takes any order, and any loss.

Does not know: sockets, bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from meterd.core.cluster.weaving import weave
from meterd.core.log.record_cut import cut
from meterd.protocol.log_format import Record
from meterd.protocol.raft_messages import Append, Envelope, Install, Op, RepairReply
from meterd.protocol.raft_records import ENGINE_KINDS, RecordSlice, RecordSlices
from meterd.protocol.raft_slices import AppendSlices, SliceOps, words

# One envelope of bulk: beyond it the next message begins another.  A message may be larger.
BULK_BYTES_MAX: Final = 2 << 20
BULK_OPS_MAX: Final = 512
# Messages of one envelope of control; a group has one or two.
CONTROL_MESSAGES_MAX: Final = 2_048

BULK: Final = (AppendSlices, Append, Install, RepairReply)


class Ready(NamedTuple):
    """An envelope for one of the two connections, and about how large it is."""

    is_bulk: bool
    size: int
    envelope: Envelope


def ready_to_send(envelope: Envelope) -> Iterator[Ready]:
    """Yield the envelopes that say the same, as `raft_wire.encode` wants them."""
    control = [m for m in envelope.messages if not isinstance(m, BULK)]
    for at in range(0, len(control), CONTROL_MESSAGES_MAX):
        some = tuple(control[at : at + CONTROL_MESSAGES_MAX])
        yield Ready(False, 0, envelope._replace(messages=some))
    some_bulk: list[Any] = []
    size = ops = 0
    for message in weave(envelope.messages):
        if not isinstance(message, BULK):
            continue
        whole, message_size, message_ops = _as_records(message)
        if some_bulk and (size + message_size > BULK_BYTES_MAX or ops + message_ops > BULK_OPS_MAX):
            yield Ready(True, size, envelope._replace(messages=tuple(some_bulk)))
            some_bulk, size, ops = [], 0, 0
        some_bulk.append(whole)
        size, ops = size + message_size, ops + message_ops
    if some_bulk:
        yield Ready(True, size, envelope._replace(messages=tuple(some_bulk)))


def _as_records(message: Any) -> tuple[Any, int, int]:
    """Return a message whose ops are whole records, its bytes and its ops."""
    if isinstance(message, AppendSlices):
        record = _record_of(message.ops)
        whole = message._replace(ops=message.ops._replace(body=RecordSlices(record)))
        return whole, record.size + 48 * len(record.slices), 1
    if isinstance(message, Install):
        return message, len(message.body), 1
    ops = tuple([_alone(message.group, op) for op in message.ops])
    return message._replace(ops=ops), sum([op.size for op in ops]), len(ops)


def _record_of(ops: SliceOps) -> Record:
    """Return the record that these ops are all slices of, with their places in it."""
    assert isinstance(ops.body, RecordSlices)
    whole = ops.body.record
    if len(ops.body) == len(whole.slices) and not whole.slices["flags"].any():
        record = whole._replace(slices=whole.slices.copy())
    else:
        record = cut(whole, [body.number for body in ops.body])
    table = record.slices
    table["index"], table["term"], table["digest"] = ops.index, ops.term, ops.digest
    return record


def _alone(group: int, op: Op) -> Op:
    """Return an op whose record has no other slice."""
    if op.kind in ENGINE_KINDS:
        return op
    record = cut(op.body.record, [op.body.number])
    table = record.slices
    table["partition"], table["index"], table["term"] = group, op.index, op.term
    table["digest"] = np.array(words(op.digest), np.uint64)
    return op._replace(body=RecordSlice(record, 0))
