"""Checks that what a peer sends is what its digests say: content, and chain from the digest before.

A follower calls this before its engine sees an envelope, so it never writes what it has not
checked.  The digest before comes with the message; whether it is this replica's own is for the
engine to say.  For ops that repair damage it is this replica's own from the start; so it is for
those whose sender does not know it.

Does not know: sockets, bytes, terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from meterd.core.kernels import chain
from meterd.core.log.scan import first_broken
from meterd.protocol import log_format, raft_records
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.log_format import EVENTS, SLICE, Record
from meterd.protocol.raft_messages import UNKNOWN, Append, Envelope, Op, RepairReply
from meterd.protocol.raft_records import ENGINE_KINDS, RecordSlices
from meterd.protocol.raft_slices import AppendSlices, Digests, words

# The digest of a group's op at an index, or None when this replica does not know it.
DigestAt = Callable[[int, int], int | None]
# What `chain.check_rest` has found.
FAULTS = (
    "",
    "entries of a record's heap do not follow",
    "something lies between a record's columns",
)


def check_envelope(envelope: Envelope, digest_at: DigestAt) -> Envelope:
    """Return the envelope without ops of repair that cannot be checked here, or do not belong here.

    Raises RemoteProtocolError when a content does not follow: its sender is broken.
    """
    messages: list[Any] = []
    for message in envelope.messages:
        if isinstance(message, AppendSlices):
            check_record(_record_of(message), np.array(message.prev_digest))
        elif isinstance(message, Append):
            message = _checked_append(message, digest_at)
        elif isinstance(message, RepairReply):
            message = _checkable(message, digest_at)
        messages.append(message)
    return envelope._replace(messages=tuple(messages))


def _record_of(message: AppendSlices) -> Record:
    body = message.ops.body
    assert isinstance(body, RecordSlices)  # as whatever has come over the wire
    return body.record


def _checked_append(message: Append, digest_at: DigestAt) -> Append:
    """Check the ops; fill in what its sender does not know, when they follow my own history.

    A digest says everything before it, so the first op says what came before it, too.
    """
    group, before, ops = message.group, message.prev_digest, message.ops
    if message.prev_term == UNKNOWN and message.prev_index and ops:
        own = digest_at(group, message.prev_index)
        if own is None or not _follows(group, ops[0], own):
            own = 0
        message = message._replace(prev_digest=own)
        before, ops = ops[0].digest, ops[1:]
    for op in ops:
        _check_op(group, op, before)
        before = op.digest
    return message


def _checkable(message: RepairReply, digest_at: DigestAt) -> RepairReply:
    """Leave out what does not follow this replica's own history.

    That is not its sender's fault: another leader's ops may have taken the place of what was to be
    repaired since this replica asked.
    """
    ops = []
    for op in message.ops:
        before = digest_at(message.group, op.index - 1)
        if before is not None and _follows(message.group, op, before):
            ops.append(op)
    return message._replace(ops=tuple(ops))


def _follows(group: int, op: Op, before: int) -> bool:
    """Whether an op follows a digest of this replica's.  Raises RemoteProtocolError."""
    record = _record_of_op(group, op)
    _check_rest(record)
    return _broken(record, np.array([words(before)], np.uint64)) < 0


def _check_op(group: int, op: Op, before: int) -> None:
    check_record(_record_of_op(group, op), np.array([words(before)], np.uint64))


def _record_of_op(group: int, op: Op) -> Record:
    if op.kind not in ENGINE_KINDS:
        record: Record = op.body.record
        return record
    table = np.array([(group, 0, 1, op.index, words(op.digest), op.term, 0)], SLICE)
    table.flags.writeable = False  # as what is read: the kernel is compiled for that
    return raft_records.engine_record(op.kind, op.body, table)


def check_record(record: Record, before: Digests) -> None:
    """Check every slice against the digest before it, and what no digest covers."""
    _check_rest(record)
    broken = _broken(record, before)
    if broken >= 0:
        group = int(record.slices["partition"][broken])
        raise RemoteProtocolError("malformed", f"the hash chain of group {group} is broken")


def _broken(record: Record, before: Digests) -> int:
    """Return the first slice that does not follow the digest before it, or -1."""
    return first_broken(record, np.ones(len(record.slices), np.bool_), before)


def _check_rest(record: Record) -> None:
    """Check what is in no digest: where entries of the heap end, and what lies between columns."""
    if record.kind != EVENTS:
        return
    rows, heap_size = record.row_count, record.heap_size
    layout = tuple(log_format.payload_layout(rows, heap_size))
    payload = np.frombuffer(record.payload, np.uint8)
    fault = chain.check_rest(record.slices, payload, layout, rows, heap_size)
    if fault:
        raise RemoteProtocolError("malformed", FAULTS[fault])
