"""Writes log files whose groups have histories with replaced ops, and knows what is in them.

The chains are real: contents and digests come from the product's kernels, places from its log.
"""

from __future__ import annotations

from random import Random

import msgpack
import numpy as np

from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_log import Entry, Log
from meterd.actors.log.wal_recovery import Owner
from meterd.actors.log.wal_spare import Spare
from meterd.core.kernels import chain, stage
from meterd.core.log.record_cut import cut
from meterd.protocol import log_format
from meterd.protocol.log_format import EVENTS, META, SLICE, RecordFields
from meterd.protocol.raft_records import head_of
from tests.support.log_builder import LoggedEvent, columns

OWNER = Owner(7, b"cluster identity", b"the identity key")
SEGMENT_SIZE = 16 * 1024
GROUPS = (0, 3, 77, 255)


class Known:
    """One op as it must come back."""

    def __init__(self, term: int, digest: tuple[int, int], head: bytes, payload: bytes) -> None:
        self.term, self.digest, self.head, self.payload = term, digest, head, payload
        self.file_number = self.offset = self.record_size = 0


class OpHistory:
    """A log that is written block by block; `ops[group]` is what it holds of a group."""

    def __init__(self, directory: str, random: Random) -> None:
        self.random = random
        disk = LocalDisk()
        self._spare = Spare(disk, directory, SEGMENT_SIZE)
        self.log = Log(disk, directory, self._spare, OWNER, lambda: 1)
        self.log.open(None)
        self.ops: dict[int, list[Known]] = {group: [] for group in GROUPS}
        self._sequence = 0
        self._term = 1

    def close(self) -> None:
        self.log.close()
        self._spare.close()

    def block(self) -> None:
        """Append a block of a few records."""
        records = [self._record() for _ in range(self.random.choice((1, 1, 3)))]
        self._append(records)

    def _append(self, records: list[tuple[Entry, list[Known]]]) -> None:
        entries = [entry for entry, _ in records]
        places = np.frombuffer(self.log.append(entries), np.uint64).reshape(-1, 4)
        for (entry, known), place in zip(records, places.tolist(), strict=True):
            for one in known:
                one.file_number, one.offset = place[1], place[2]
                one.record_size = len(entry.head) + len(entry.payload)

    def repair_one(self) -> None:
        """Some op was damaged and is written again, by itself: that is where it lies now."""
        known = self.random.choice([op for ops in self.ops.values() for op in ops])
        record = log_format.parse_frames(known.head, known.payload)
        repaired = record._replace(slices=record.slices.copy())
        repaired.slices["flags"] = log_format.REPAIR
        self._append([(Entry(record.sequence, head_of(repaired), known.payload), [known])])

    def replace_some(self) -> None:
        """A new term begins: the last ops of some groups are gone, as what follows says."""
        self._term += 1
        for ops in self.ops.values():
            if ops and self.random.random() < 0.5:
                del ops[-self.random.randint(1, min(4, len(ops))) :]

    def _record(self) -> tuple[Entry, list[Known]]:
        self._sequence += 1
        groups = sorted(self.random.sample(GROUPS, self.random.randint(1, len(GROUPS))))
        kind = self.random.choice((EVENTS, EVENTS, META))
        table = np.zeros(len(groups), SLICE)
        table["partition"], table["count"] = groups, 1
        if kind == EVENTS:
            payload, rows, heap_size = self._events(table)
        else:
            body = msgpack.packb({"filler": self.random.randbytes(self.random.choice((1, 900)))})
            payload, rows, heap_size = body + bytes(-len(body) % 8), 0, len(body)
            table["digest"] = stage.content_of_bytes(np.frombuffer(payload, np.uint8))
        refused = self._chain(table, kind)
        fields = RecordFields(kind, rows, heap_size, 1, 5, self._sequence)
        head = log_format.encode_record_head(fields, table, payload)
        record = log_format.parse_frames(head, payload)
        known = []
        for number, group in enumerate(groups):
            if number in refused:
                continue
            row = table[number]
            alone = cut(record, [number])
            digest = (int(row["digest"][0]), int(row["digest"][1]))
            known.append(Known(self._term, digest, head_of(alone), bytes(alone.payload)))
            self.ops[group].append(known[-1])
        return Entry(self._sequence, head, payload), known

    def _events(self, table: np.ndarray) -> tuple[bytes, int, int]:
        together: list[LoggedEvent] = []
        for row in table:
            count = self.random.randint(1, 4)
            row["count"] = count
            together += [self._event() for _ in range(count)]
        payload, heap_size = columns(together)
        layout = log_format.payload_layout(len(together), heap_size)
        ends = np.frombuffer(payload, np.uint32, len(together), layout.heap_end).tolist()
        first = start = 0
        for row in table:
            last = first + int(row["count"])
            span = (first, last - first, start, ends[last - 1])
            row["digest"] = stage.content_of(np.frombuffer(payload, np.uint8), layout[:6], *span)
            row["heap_size"] = ends[last - 1] - start
            first, start = last, ends[last - 1]
        return payload, first, heap_size

    def _event(self) -> LoggedEvent:
        value = self.random.randrange(-5, 5)
        return LoggedEvent("a", f"id-{self.random.random()}", 1, value, 10**18)

    def _chain(self, table: np.ndarray, kind: int) -> set[int]:
        """Chain the slices; return which of them were not taken here."""
        index = np.zeros(log_format.GROUP_COUNT, np.uint64)
        digest = np.zeros((log_format.GROUP_COUNT, 2), np.uint64)
        for group, ops in self.ops.items():
            index[group] = len(ops)
            digest[group] = ops[-1].digest if ops else (0, 0)
        groups = table["partition"].astype(np.int64)
        table["index"], table["term"] = index[groups] + np.uint64(1), self._term
        chained = np.empty((len(table), 2), np.uint64)
        chain.chain_ops(
            digest[groups],
            table["index"].astype(np.int64),
            table["term"].astype(np.int64),
            np.array([kind, 1, 5], np.uint64),
            table["digest"].copy(),
            chained,
        )
        table["digest"] = chained
        refused = {n for n in range(len(table)) if self.random.random() < 0.1}
        for number in refused:
            table[number]["flags"] = 1
        return refused
