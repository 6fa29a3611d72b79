"""Says what many groups append by the records it lies in: Appends of a group become AppendSlices.

A follower that was away lacks ops of many groups, and the log holds those of one proposal in one
record.  Group by group each op would be cut out of its record, sent, checked and written by itself;
record by record all of this is done once for all of them.  For the engine both mean the same, as an
Append of k ops means what k Appends of one op mean.

Does not know: sockets, bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from meterd.protocol.log_format import Record
from meterd.protocol.raft_messages import UNKNOWN, Append, Op
from meterd.protocol.raft_records import ENGINE_KINDS, RecordSlice, RecordSlices
from meterd.protocol.raft_slices import AppendSlices, SliceOps, words

# So many ops of a record, on average, are worth it.
SHARED_MIN: Final = 2


class _Row(NamedTuple):
    """An op, what is said of the one before it, and the message that it is of."""

    op: Op
    prev_term: int
    prev_digest: int
    message: Append


def weave(messages: tuple[Any, ...]) -> Iterator[Any]:
    """Yield messages that say the same, in an order that says it as well."""
    records = _by_record(messages)
    if not records or not _ascend(records):
        yield from messages
        return
    for message in messages:
        if type(message) is not Append:
            yield message
        elif left := message.ops[: _first_shared(message)]:
            yield message._replace(ops=left)
        elif not message.ops:
            yield message
    for record, rows in records:
        yield _slices(record, rows)


def _by_record(messages: tuple[Any, ...]) -> list[tuple[Record, list[_Row]]]:
    """Return the records of a log that ops lie in, in its order; none when too few share one."""
    found: dict[int, tuple[Record, list[_Row]]] = {}
    count = 0
    for message in messages:
        if type(message) is Append:
            for row in _shared(message):
                own = row.op.body.record
                record, rows = found.setdefault(own.sequence, (own, []))
                if record is not own:
                    return []
                rows.append(row)
                count += 1
    return [found[number] for number in sorted(found)] if count >= SHARED_MIN * len(found) else []


def _first_shared(message: Append) -> int:
    """Return which op is the first from which on all lie in records that groups may share."""
    first = 0
    for at, op in enumerate(message.ops, 1):
        if op.kind in ENGINE_KINDS or type(op.body) is not RecordSlice:
            first = at
    if message.prev_index and message.prev_term == UNKNOWN:
        first = max(first, 1)  # only an Append can say that
    return first


def _shared(message: Append) -> Iterator[_Row]:
    """Yield the ops from there on."""
    first = _first_shared(message)
    before = (message.prev_term, message.prev_digest)
    for at, op in enumerate(message.ops):
        if at >= first:
            yield _Row(op, *before, message)
        before = (op.term, op.digest)


def _ascend(records: list[tuple[Record, list[_Row]]]) -> bool:
    """Do the ops of each group follow each other, each record taken once?

    A repaired op lies behind what follows it; two Appends of one group may say the same.
    """
    last: dict[int, int] = {}
    for _, rows in records:
        for row in rows:
            group = row.message.group
            if last.get(group, row.op.index - 1) != row.op.index - 1:
                return False
            last[group] = row.op.index
    return True


def _slices(record: Record, rows: list[_Row]) -> AppendSlices:
    rows = sorted(rows, key=_group)
    ops = [row.op for row in rows]
    return AppendSlices(
        np.array([row.message.term for row in rows], np.int64),
        np.array([row.prev_term for row in rows], np.int64),
        np.array([words(row.prev_digest) for row in rows], np.uint64),
        np.array([row.message.commit for row in rows], np.int64),
        SliceOps(
            np.array([_group(row) for row in rows], np.int64),
            np.array([op.index for op in ops], np.int64),
            np.array([op.term for op in ops], np.int64),
            np.array([words(op.digest) for op in ops], np.uint64),
            np.array([op.kind for op in ops], np.int64),
            np.array([op.size for op in ops], np.int64),
            RecordSlices(record, np.array([op.body.number for op in ops], np.intp)),
        ),
    )


def _group(row: _Row) -> int:
    return row.message.group
