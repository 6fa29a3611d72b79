"""Translates between records of the log and ops of the engine.

An op is a slice of a record.  What one step of the engine writes becomes as few records as there
are: a proposal keeps its whole payload in one record, whose slices that the engine did not take
here are flagged; ops of the engine that say the same in many groups are one record, and so are all
terms and votes of a step.

Sans-I/O.  Does not know: when something is durable, who else has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.cluster.proposals import Proposal
from meterd.core.kernels import chain, stage
from meterd.core.log.group_logs import ROW_SIZE
from meterd.core.raft.events import Write, WriteRepair, WriteSnapshot, WriteTerm
from meterd.core.raft.slices import WriteSlices
from meterd.protocol import log_facts, log_format, raft_records
from meterd.protocol.log_facts import UNCERTAIN, LogMark
from meterd.protocol.log_format import (
    NOT_HERE,
    RECORD_HEADER_SIZE,
    REPAIR,
    SLICE,
    TERM_ROW,
    Record,
    RecordFields,
)
from meterd.protocol.raft_messages import Op
from meterd.protocol.raft_records import ENGINE_KINDS, RecordSlices, engine_payload
from meterd.protocol.raft_slices import Digests, Ints, SliceOps, words

Bytes = bytes | memoryview

SLICE_WORDS = log_format.SLICE_SIZE // 8


def ops_of(proposal: Proposal, leader_time: int) -> SliceOps:
    """Return a proposal as ops without a place: one for each slice of the record it will be.

    The table of that record has contents' hashes in place of digests until it is written.
    """
    table = np.frombuffer(proposal.slices, SLICE)
    payload = proposal.payload
    record = Record(
        0,
        RECORD_HEADER_SIZE + table.nbytes + len(payload),
        proposal.kind,
        log_format.MACHINE_VERSION,
        proposal.row_count,
        proposal.heap_size,
        proposal.registry_version,
        leader_time,
        0,
        table,
        payload if isinstance(payload, memoryview) else memoryview(payload),
    )
    groups, none, kind, size = np.zeros((4, len(table)), np.int64)
    is_events = proposal.kind == log_format.EVENTS
    chain.read_table(_words_of(record), ROW_SIZE if is_events else 0, groups, size)
    if not is_events:
        size[:] = len(payload)
    kind[:] = proposal.kind
    digest = np.zeros((len(table), 2), np.uint64)
    return SliceOps(groups, none, none, digest, kind, size, RecordSlices(record))


def _is_proposals(record: Record) -> bool:
    """Whether a record is what was proposed here, whose table may be written."""
    return record.sequence == 0 and record.slices.flags.writeable


def _words_of(record: Record) -> NDArray[np.uint64]:
    """Return a slice table as words, u64[k, 5]: the same memory."""
    return record.slices.view(np.uint64).reshape(-1, SLICE_WORDS)


# The hash chain.


def chain_many(
    before: Digests, term: Ints, index: Ints, kind: Ints, bodies: Sequence[Any]
) -> Digests:
    """Return the digests of ops, each of another group, that follow digests `before`."""
    out = np.empty((len(index), 2), np.uint64)
    if not isinstance(bodies, RecordSlices):
        raise TypeError("ops of one record are chained at once")
    record = bodies.record
    if bodies.whole and _is_proposals(record):
        fields = record.kind, record.registry_version, record.leader_time
        chain.chain_table(before, index, term, fields, _words_of(record), out)
        return out
    contents = record.slices["digest"][bodies.places]
    chain.chain_ops(before, index, term, _fields(record), np.ascontiguousarray(contents), out)
    return out


def chain_one(before: int, term: int, index: int, kind: int, body: Any) -> int:
    """Return the digest of an op that follows the digest `before`."""
    if kind in ENGINE_KINDS:
        payload = np.frombuffer(engine_payload(kind, body), np.uint8)
        contents = np.array([stage.content_of_bytes(payload)], np.uint64)
        fields = np.array([kind, 0, 0], np.uint64)
    else:
        record, number = body
        contents = record.slices["digest"][number : number + 1].copy()
        fields = _fields(record)
    out = np.empty((1, 2), np.uint64)
    digests = np.array([words(before)], np.uint64)
    chain.chain_ops(digests, np.array([index]), np.array([term]), fields, contents, out)
    low, high = out[0].tolist()
    return int(low | high << 64)


def _fields(record: Record) -> NDArray[np.uint64]:
    fields = [record.kind, record.registry_version, record.leader_time]
    return np.array(fields, np.int64).view(np.uint64)


# Records.


class Written(NamedTuple):
    """A record to make durable."""

    sequence: int
    kind: int
    head: bytes
    payload: Bytes
    groups: Ints  # whose ops are here
    index: Ints  # type: ignore[assignment]
    source: Record | None  # whose slices it has; None when the engine itself made it


class _Draft:
    """A record to be: its table's rows are filled as ops come."""

    def __init__(self, key: Any, kind: int, source: Record | None, flags: int = 0) -> None:
        self.key, self.kind, self.source, self.flags = key, kind, source, flags
        self.ops: list[tuple[int, Op]] = []  # group and op
        self.facts: list[Any] = []


def written(writes: Sequence[Write | WriteSlices], first: int) -> list[Written]:
    """Return what one step of the engine writes as records, numbered from `first` on."""
    if all(isinstance(write, WriteSlices) for write in writes):
        slices = [write.ops for write in writes if isinstance(write, WriteSlices)]
        if all(isinstance(ops.body, RecordSlices) for ops in slices):
            return [_whole(ops, first + k) for k, ops in enumerate(slices)]
    return [_record(draft, first + k) for k, draft in enumerate(_drafts(writes))]


def _whole(ops: SliceOps, sequence: int) -> Written:
    """Return the record of ops that are slices of one record."""
    body = ops.body
    assert isinstance(body, RecordSlices)
    if body.whole and _is_proposals(body.record):
        chain.fill_table(_words_of(body.record), ops.index, ops.term, ops.digest)
        return _encoded(body.record, body.record.slices, sequence, ops.groups, ops.index)
    if body.whole and not body.record.slices.flags.writeable:  # it has come with its place
        return _encoded(body.record, body.record.slices, sequence, ops.groups, ops.index)
    table, places = _absent(body.record), body.places
    table["flags"][places], table["index"][places] = 0, ops.index
    table["term"][places], table["digest"][places] = ops.term, ops.digest
    return _encoded(body.record, table, sequence, ops.groups, ops.index)


def _absent(record: Record) -> NDArray[np.void]:
    """Return the slice table of a record none of whose slices is here.

    It is the record's own where that is a proposal's: the contents' hashes are needed no more.
    """
    table = record.slices if _is_proposals(record) else record.slices.copy()
    table["flags"], table["index"], table["digest"], table["term"] = NOT_HERE, 0, 0, 0
    return table


def _drafts(writes: Sequence[Write | WriteSlices]) -> list[_Draft]:
    """Sort what is written into records; terms go first, and each group keeps its order."""
    terms = _Draft("terms", log_format.TERMS, None)
    drafts = [terms]
    sources: list[Record] = []
    newest: dict[Any, int] = {}
    last: dict[int, int] = {}  # group -> number of the draft that its newest op is in

    def draft_for(group: int, key: Any, kind: int, source: Record | None, flags: int = 0) -> _Draft:
        at = newest.get(key, -1)
        if at <= last.get(group, 0):
            at = newest[key] = len(drafts)
            drafts.append(_Draft(key, kind, source, flags))
        last[group] = at
        return drafts[at]

    for write in writes:
        if isinstance(write, WriteTerm):
            terms.facts.append(write)
        elif isinstance(write, WriteSlices):
            _draft_slices(write.ops, draft_for, sources)
        elif isinstance(write, WriteSnapshot):
            draft_for(write.group, ("mark", write.group), log_format.MARK, None).facts.append(write)
        else:
            flags = REPAIR if isinstance(write, WriteRepair) else 0
            for op in write.ops:
                source = None if op.kind in ENGINE_KINDS else op.body.record
                key = (flags, op.kind, op.body if source is None else _number(sources, source))
                draft_for(write.group, key, op.kind, source, flags).ops.append((write.group, op))
    return drafts if terms.facts else drafts[1:]


def _draft_slices(ops: SliceOps, draft_for: Any, sources: list[Record]) -> None:
    """Add ops of records that each have many groups."""
    for row, group in enumerate(ops.groups.tolist()):
        record = ops.body[row].record
        key = (0, record.kind, _number(sources, record))
        draft_for(group, key, record.kind, record).ops.append((group, ops.op(row)))


def _number(sources: list[Record], record: Record) -> int:
    """Return the number of a record among those of this step, by identity."""
    for number in range(len(sources) - 1, -1, -1):
        if sources[number] is record:
            return number
    sources.append(record)
    return len(sources) - 1


def _record(draft: _Draft, sequence: int) -> Written:
    if draft.kind == log_format.TERMS:
        return _terms(draft, sequence)
    if draft.kind == log_format.MARK:
        group, mark = draft.facts[0]
        head, payload = log_facts.encode_mark(LogMark(group, mark, ""), sequence)
        none = np.zeros(0, np.int64)
        return Written(sequence, draft.kind, head, payload, none, none, None)
    draft.ops.sort(key=lambda found: found[0])
    groups = np.array([group for group, _ in draft.ops], np.int64)
    index = np.array([op.index for _, op in draft.ops], np.int64)
    if draft.source is None:
        table = np.zeros(len(groups), SLICE)
        table["partition"], table["count"] = groups, 1
        _fill(table, range(len(groups)), draft)
        record = raft_records.engine_record(draft.kind, draft.ops[0][1].body, table)
        found = _encoded(record, table, sequence, groups, index)
        return found._replace(source=None)
    table = _absent(draft.source)
    _fill(table, [op.body.number for _, op in draft.ops], draft)
    return _encoded(draft.source, table, sequence, groups, index)


def _fill(table: NDArray[np.void], rows: Sequence[int], draft: _Draft) -> None:
    for row, (_, op) in zip(rows, draft.ops, strict=True):
        table["flags"][row], table["index"][row] = draft.flags, op.index
        table["term"][row], table["digest"][row] = op.term, words(op.digest)


def _terms(draft: _Draft, sequence: int) -> Written:
    """Return the last term and vote of each group as one record."""
    newest = {write.group: write for write in draft.facts}
    rows = np.zeros(len(newest), TERM_ROW)
    for row, (group, write) in enumerate(sorted(newest.items())):
        rows[row] = (group, UNCERTAIN if write.uncertain else 0, write.term, write.vote)
    head, payload = log_facts.encode_terms(rows, sequence)
    none = np.zeros(0, np.int64)
    return Written(sequence, draft.kind, head, payload, none, none, None)


def _encoded(
    record: Record, table: NDArray[np.void], sequence: int, groups: Ints, index: Ints
) -> Written:
    fields = RecordFields(
        record.kind,
        record.row_count,
        record.heap_size,
        record.registry_version,
        record.leader_time,
        sequence,
    )
    head = log_format.encode_record_head(fields, table, record.payload)
    return Written(sequence, record.kind, head, record.payload, groups, index, record)
