"""Runs every kernel once on tiny inputs, so that all are compiled and loaded before they matter.

It is the way of an event in one process: stage, pack, chain, apply, judge, save, restore, collect,
read back.  A kernel that a running node calls with types not used here would be compiled then,
for seconds, in the middle of its work; a test sees to it that none is.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from meterd.core.cluster import forwarded
from meterd.core.cluster.proposals import Proposal, command
from meterd.core.cluster.replicas import Append, Clock, Replicas
from meterd.core.cluster.wire_check import check_record
from meterd.core.kernels import runs, sectors
from meterd.core.kernels.index import clear
from meterd.core.kernels.tables import Capacity
from meterd.core.log.commit_queue import CommitQueue
from meterd.core.log.group_logs import GroupLogs, unpack
from meterd.core.log.record_cut import cut
from meterd.core.log.scan import FileScan, Groups, verify_chain
from meterd.core.questions import periods
from meterd.core.questions.memory_cells import collect
from meterd.core.questions.question import Question
from meterd.core.staging import Packed, Stage
from meterd.core.state import identity_runs
from meterd.core.state.balance_rows import import_commands
from meterd.core.state.erasures import erasure_command
from meterd.core.state.identity_filter import IdentityFilter
from meterd.core.state.identity_runs import (
    Facts,
    Run,
    RunMaker,
    Source,
    memory_source,
    merge_source,
)
from meterd.core.state.machine import StateMachine
from meterd.core.warm_reading import warm_reading
from meterd.core.warm_steady import warm_steady
from meterd.protocol import log_format
from meterd.protocol.columns import decode_events
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.log_format import Record

KEY = (1, 2)
NOW = 1_800_000_000_000_000_000
CLOCK = Clock(1, NOW)
CAPACITY = Capacity(4_096, 1_024, 1_024, 1_024, 1_024)
UTC = ((-(2**63), 0),)

DEFINITIONS = (
    {"code": "s", "aggregation": "sum", "dimensions": ["k"]},
    {"code": "v", "aggregation": "unique"},
    {"code": "p", "aggregation": "unique", "unique_on": "k"},
)


def warm() -> None:
    """Compile or load every kernel that records and questions need."""
    node = _Pipeline()
    for definition in DEFINITIONS:
        node.command({"op": "metric_put", "definition": definition})
    node.command({"op": "expire", "horizon": 0, "future_ns": 1})
    for body in _bodies():
        node.ingest(body)
    node.look()
    node.bring_and_erase()
    warm_reading(node.records, node.state.registry, KEY)
    read_log(node)
    warm_steady()


def _wait_for(record: Record) -> None:
    """Have a record that is not the first of its group wait for what comes before it."""
    queue: CommitQueue[None] = CommitQueue(Groups(), [0], lambda: 1)
    queue.add_record(record, None)
    queue.add_commit([[record.sequence, 1, 0, 0]], [1], committed=False)
    if any(queue.ready()):
        raise InvariantViolation("a record was applied that nobody has committed")


def read_log(node: _Pipeline) -> None:
    """Write a log file of one block and a torn one behind it, and read it as a start does."""
    group = [log_format.META_GROUP]
    append = node.append(command(log_format.META, group, {"op": "none"}, 1))
    records = append.head + append.payload
    size = log_format.padded(log_format.BLOCK_HEADER_SIZE + len(records), log_format.SECTOR_SIZE)
    head = log_format.encode_file_header(log_format.FileHeader(1, bytes(16), bytes(16), 1, 1, 0, 0))
    crc = log_format.parse_file_header(head)[1]
    header = log_format.BlockHeader(1, size, 1, 0, 0, 0, 0, NOW, 1, crc)
    block = (log_format.encode_block_header(header) + records).ljust(size, b"\0")
    sectors.count_zero_sectors(np.frombuffer(block, np.uint64))
    torn = bytes(log_format.SECTOR_SIZE) + b"torn".ljust(log_format.SECTOR_SIZE, b"\0")
    scan = FileScan("", memoryview(head + block + torn), active=True)
    for read in scan:
        sectors.check_slices(read.records[0].slices, log_format.GROUP_COUNT, 0, 0)
        _wait_for(read.records[0])
    if scan.torn is None:
        raise InvariantViolation("a torn block was not recognised")


def _bodies() -> list[bytes]:
    event = {"account": "a/b", "timestamp": NOW, "properties": {"k": "x", "l": "y"}}
    events = [event | {"metric": code, "id": f"{code}-{n}"} for code in "svp" for n in "12"]
    events.append(event | {"metric": "s", "id": "c", "account": "c"})  # of another partition
    events.append(event | {"metric": "none", "id": "n"})
    columns = {
        "n": 1,
        "timestamp": NOW.to_bytes(8, "little"),
        "metric": {"values": ["s"]},
        "account": {"offsets": bytes(4) + b"\1\0\0\0", "text": b"a"},
        "id": {"uuid": bytes(16)},
    }
    return [msgpack.packb({"events": events}), msgpack.packb(columns)]


class _NoChance:
    """Who is alone waits for nobody, so nothing is drawn."""

    def random(self) -> float:
        return 0.0


class _Pipeline:
    """The cores of all actors of the chain, called one after another."""

    def __init__(self) -> None:
        self.state = StateMachine(KEY, CAPACITY)
        self.before, self.applied = Groups(), Groups()
        fields: dict[str, Any] = {
            "cluster": 1,
            "member": 1,
            "boot": 1,
            "sequence": 0,
            "leader_time": 0,
        }
        starts = unpack(GroupLogs(1).packed())
        self._replicas = Replicas(starts, CLOCK, random=_NoChance(), **fields)
        self._replicas.tick(CLOCK)
        for _ in range(2):  # a vote for itself, the op that opens its term
            step = self._replicas.durable(1 << 60, CLOCK)
            for append in step.appends if step is not None else ():
                self._read(append)
        self.stage = Stage(16, KEY)
        self.records: list[bytes] = []

    def append(self, proposal: Proposal) -> Append:
        """Have a proposal ordered."""
        (append,) = self._replicas.propose(proposal, b"", CLOCK).appends
        self._replicas.durable(append.sequence, CLOCK)
        return append

    def command(
        self,
        fields: dict[str, Any],
        kind: int = log_format.META,
        group: int = log_format.META_GROUP,
    ) -> None:
        fields = {"transitions": UTC, "replace": False} | fields
        version = self.state.registry.version
        self.state.apply_command(self._record(command(kind, [group], fields, version)))
        self.stage.use(self.state.registry)

    def ingest(self, body: bytes) -> None:
        if self.stage.add_body(body, 0) is None:
            self.stage.add(decode_events(body, None), 0)
        packed = self.stage.pack()
        self._forward(packed)
        proposal = Proposal(
            log_format.EVENTS,
            bytearray(packed.slices.tobytes()),
            packed.payload.tobytes(),
            packed.row_count,
            packed.heap_size,
            self.stage.registry_version,
        )
        self.state.apply_events(self._record(proposal))
        if packed.refusals is not None:
            self.state.judge(packed.refusals)

    def _forward(self, packed: Packed) -> None:
        """Check it as a leader checks what another node passes on to it."""
        meta = {
            "kind": log_format.EVENTS,
            "slices": packed.slices.tobytes(),
            "row_count": packed.row_count,
            "heap_size": packed.heap_size,
            "registry_version": self.stage.registry_version,
        }
        forwarded.check_proposal(msgpack.packb(meta), packed.payload.tobytes())
        rows = packed.request_of_row, packed.row_of_row
        part = forwarded.encode_part_origin(*rows, packed.refusals)
        forwarded.check_part_origin(part, packed.row_count)

    def _follow(self, record: Record) -> None:
        """Take it as a follower does, whole and a slice of it alone."""
        digests = self.before.digest[record.slices["partition"]]
        check_record(record, digests)
        check_record(cut(record, [0]), digests[:1])

    def _record(self, proposal: Proposal) -> Record:
        append = self.append(proposal)
        self.records.append(append.head + append.payload)
        return self._read(append)

    def _read(self, append: Append) -> Record:
        record = log_format.parse_frames(append.head, append.payload)
        verify_chain(record, self.before)
        self._follow(record)
        self.before.follow(record)
        if not self.applied.take_plain(record):
            raise InvariantViolation("a new record's slices have flags")
        return record

    def bring_and_erase(self) -> None:
        """Import balances, and erase an account of the tables, as commands of the log do.

        What there is before goes the way of partitions that are copied, too.
        """
        key = self.state.tables.key
        balance = {"account": "a", "at": NOW, "count": 1}
        balances = [balance | {"metric": "v", "members": [1]}, balance | {"metric": "s", "sum": 1}]
        balances.append(balance | {"metric": "p", "present": ["x"]})
        imports = import_commands("warm", balances, self.state.registry, key)
        for partition, fields in imports.items():
            self.command(fields, log_format.ACCOUNT, partition)
        self.look()
        StateMachine(KEY, CAPACITY).adopt(self.state, np.ones(log_format.GROUP_COUNT, np.bool_))
        fields, partition = erasure_command(key, "a", True, "warm")
        self.command(fields, log_format.ACCOUNT, partition)

    def look(self) -> None:
        for code in "svp":
            entry = self.state.registry.versions(code)[-1]
            start, end = periods.bounds(entry.definition.period, entry.transitions, NOW)
            for account, subtree in (("a", True), ("a/b", False), ("", False)):
                question = Question("usage", account, subtree, code, start, end, whole_period=True)
                collect(self.state, question)
                self.state.balances.partial(question, [entry])
        while self.state.evict() is not None:
            pass
        saved = self.state.save()
        fresh = StateMachine(KEY, CAPACITY)
        fresh.restore(saved.state, saved.arrays())
        fresh.restore_identities(np.array(saved.identities))
        self.state.end_save()
        entries = fresh.begin_flush()
        facts = identity_runs.facts_of_entries(entries)
        run = _run(facts, memory_source(entries, facts, entries.copy()))
        growing = IdentityFilter(1)
        growing.begin(1)
        fresh.use_filter(growing.arrays)
        growing.fill([run], entries, 0)
        growing.move_edge()
        growing.add(entries)
        fresh.filter_has_flushing()
        clear(fresh.end_flush())
        facts = identity_runs.facts_of_merge([run, run], 0)
        both = _run(facts, merge_source([run, run], 0))
        fresh.use_runs([both])
        state, out = np.zeros(3, np.int64), np.empty((int(both.facts[runs.COUNT]), 2), np.uint64)
        runs.take_entries(both[:3], both.facts, state, np.uint64(0), 0, out)


def _run(facts: Facts, source: Source) -> Run:
    """Make a run in memory; its arrays are read-only as those of a file are."""
    maker = RunMaker(facts)
    (piece,) = maker.pieces(source)
    entries = np.append(piece.entries, np.zeros(runs.ENTRIES_MARGIN, np.uint8))
    run = Run(piece.lines.reshape(-1).copy(), piece.starts.copy(), entries, entries, maker.facts)
    for array in run[:3]:
        array.flags.writeable = False
    return run
