"""Builds log files from events in plain Python, as docs/STORAGE.md describes them.

Slow and simple: the tests read what it writes with the product's kernels.  It follows the rules
for places that readers depend on: rows of a record lie by partition, a slice takes the next index
of its partition, and row numbers count through the file.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from meterd.core.kernels.hashing import partition_of
from meterd.protocol import log_format
from meterd.protocol.log_format import (
    EVENTS,
    NOOP,
    NOT_HERE,
    REPAIR,
    SLICE,
    BlockHeader,
    FileHeader,
    RecordFields,
)

IDENTITY_KEY = bytes(range(16))
CLUSTER_ID = bytes(range(16, 32))
OPERATIONS = {"none": 0, "add": 1, "remove": 2}


@dataclass(frozen=True)
class LoggedEvent:
    """One event as the log keeps it: its metric by number, its value in units."""

    account: str
    id: str
    metric: int
    value: int
    timestamp: int
    operation: str = "none"
    properties: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """Where an event came to lie."""

    event: LoggedEvent
    file_number: int
    row: int
    position: int


class LogBuilder:
    """Log files one after another; `records` may be called again for the next block."""

    def __init__(self, file_number: int = 1) -> None:
        self.file_number = file_number
        self.noops = False  # does every third block begin with an op without rows?
        self.absent = False  # are the slices of what comes those of a record taken for no group?
        self.repairs = 0  # what comes is the content of the op of this index again; 0: a new op
        self.indexes: dict[int, int] = {}
        self.block_seq = 1
        self.previous_crc = 0
        self.sequence = 1
        self.placed: list[Placed] = []
        self._begin_file()

    def next_file(self) -> None:
        """Go on in a new file."""
        self.file_number += 1
        self._begin_file()

    def block(self, records: Sequence[Sequence[LoggedEvent]]) -> list[Placed]:
        """Append one block with a record for each list of events; return where they lie."""
        first, first_row = len(self.placed), self.row
        opened = self._noop() if self.noops and self.block_seq % 3 == 2 else b""
        body = opened + b"".join(self._record(events) for events in records)
        size = -(-(len(body) + 64) // 512) * 512
        padded = body.ljust(size - 64, b"\0")
        header = BlockHeader(
            self.block_seq,
            size,
            len(records) + (opened != b""),
            self.row - first_row,
            first_row,
            0,
            self.previous_crc,
            0,
            self.file_number,
            self.file_crc,
        )
        encoded = log_format.encode_block_header(header)
        self.previous_crc = int.from_bytes(encoded[60:], "little")
        self.block_seq += 1
        self.data += encoded + padded
        return self.placed[first:]

    def _noop(self) -> bytes:
        """An op without rows in every partition, as when a leader opens its term."""
        slices = np.zeros(256, SLICE)
        slices["partition"], slices["count"], slices["term"] = np.arange(256), 1, 1
        for number in range(256):
            index = self.indexes[number] = self.indexes.get(number, 0) + 1
            slices[number]["index"] = index
        fields = RecordFields(NOOP, 0, 6, 0, 0, self.sequence)
        self.sequence += 1
        payload = b"\x81\xa3why\x01\0\0"  # {"why": 1}
        return log_format.encode_record_head(fields, slices, payload) + payload

    def array(self) -> np.ndarray:
        """The file so far."""
        return np.frombuffer(bytes(self.data), np.uint8)

    def _begin_file(self) -> None:
        header = FileHeader(
            1,
            CLUSTER_ID,
            IDENTITY_KEY,
            self.file_number,
            self.block_seq,
            0,
            self.previous_crc,
        )
        self.data = bytearray(log_format.encode_file_header(header))
        _, self.file_crc = log_format.parse_file_header(bytes(self.data))
        self.row = 0

    def _record(self, events: Sequence[LoggedEvent]) -> bytes:
        by_partition: dict[int, list[LoggedEvent]] = {}
        for event in events:
            by_partition.setdefault(partition(event.account), []).append(event)
        rows: list[LoggedEvent] = []
        slices = np.zeros(len(by_partition), SLICE)
        for at, number in enumerate(sorted(by_partition)):
            index, within = 0, by_partition[number]
            slices[at]["partition"], slices[at]["count"] = number, len(within)
            if self.absent:
                slices[at]["flags"] = NOT_HERE
            elif self.repairs:
                index = self.repairs
                slices[at]["index"], slices[at]["term"], slices[at]["flags"] = index, 1, REPAIR
            else:
                index = self.indexes[number] = self.indexes.get(number, 0) + 1
                slices[at]["index"], slices[at]["term"] = index, 1
            slices[at]["heap_size"] = sum(len(entry(event)) for event in within)
            for row, event in enumerate(within):
                place = Placed(
                    event, self.file_number, self.row + len(rows) + row, index << 20 | row
                )
                self.placed.append(place)
            rows += within
        self.row += len(rows)
        payload, heap_size = columns(rows)
        fields = RecordFields(EVENTS, len(rows), heap_size, 1, self.sequence, self.sequence)
        self.sequence += 1
        return log_format.encode_record_head(fields, slices, payload) + payload


def partition(account: str) -> int:
    text = np.frombuffer(account.encode(), np.uint8)
    return int(partition_of(text, 0, len(text)))


def columns(rows: Sequence[LoggedEvent]) -> tuple[bytes, int]:
    """The payload of a record, and how large its heap is."""
    entries = [entry(event) for event in rows]
    parts = [
        b"".join(struct.pack("<q", event.timestamp) for event in rows),
        b"".join(struct.pack("<q", event.value) for event in rows),
        np.cumsum([len(one) for one in entries]).astype("<u4").tobytes(),
        b"".join(struct.pack("<H", event.metric) for event in rows),
        bytes(OPERATIONS[event.operation] for event in rows),
        b"".join(entries),
    ]
    return b"".join(part + bytes(-len(part) % 8) for part in parts), len(parts[-1])


def entry(event: LoggedEvent) -> bytes:
    """The heap entry of a row."""
    account = event.account.encode()
    identifier, id_size = event.id.encode(), len(event.id.encode())
    try:
        if str(uuid.UUID(event.id)) == event.id:
            identifier, id_size = uuid.UUID(event.id).bytes, 0
    except ValueError:
        pass
    properties = sorted((k.encode(), v.encode()) for k, v in event.properties.items())
    packed = bytes([len(account), id_size]) + account + identifier + bytes([len(properties)])
    for key, value in properties:
        packed += bytes([len(key)]) + key + bytes([len(value)]) + value
    return packed
