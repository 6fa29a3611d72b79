"""Makes records and whole lives of a log for tests: what was appended, what was acknowledged.

Records are made by the real `Replica`, so their hash chains are real.  Payloads are chosen to be
mean: long stretches of zeros, whole sectors of them, single bytes, sizes around a sector.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

import msgpack
import numpy as np

from meterd.actors.files.disk import Disk
from meterd.actors.log.wal_log import Entry, Log
from meterd.actors.log.wal_recovery import End, Owner, Recovery, Start
from meterd.actors.log.wal_spare import Spare
from meterd.core.cluster.proposals import Proposal, slices_of
from meterd.core.kernels import stage
from meterd.core.log.scan import FileScan, Groups
from meterd.protocol import log_format
from meterd.protocol.log_format import EVENTS, META, SLICE
from tests.support.replica import Replica

OWNER = Owner(7, b"cluster identity", b"the identity key")
DIRECTORY = "/data"
NOW = 1_700_000_000_000_000_000


def meta_entry(replica: Replica, random: Random, size: int) -> Entry:
    """Return a record of one msgpack body with about `size` bytes, many of them zero."""
    filler = bytearray(size)
    for _ in range(random.choice((0, 1, size // 50))):
        filler[random.randrange(size)] = random.randrange(256)
    body = msgpack.packb({"filler": bytes(filler)})
    payload = body.ljust(log_format.padded(len(body)), b"\0")
    group = random.choice((0, 3, 255, 256))
    proposal = Proposal(META, slices_of([group], body), payload, 0, len(body), 1)
    return _appended(replica, proposal)


def events_entry(replica: Replica, random: Random, row_count: int) -> Entry:
    """Return a record of events that lie in up to three partitions, values mostly zero."""
    slice_count = min(row_count, random.randint(1, 3))
    partitions = sorted(random.sample(range(256), slice_count))
    counts = [row_count // slice_count] * slice_count
    counts[0] += row_count - sum(counts)
    heap = random.randbytes(5 * row_count)
    layout = log_format.payload_layout(row_count, len(heap))
    payload = bytearray(layout.size)
    payload[layout.timestamp : layout.value] = struct.pack(f"<{row_count}q", *range(row_count))
    payload[layout.heap : layout.heap + len(heap)] = heap
    table = np.zeros(slice_count, SLICE)
    table["partition"], table["count"] = partitions, counts
    table["heap_size"] = [5 * count for count in counts]
    row = 0
    for i, count in enumerate(counts):
        table["digest"][i] = stage.content_of(
            np.frombuffer(payload, np.uint8), layout[:6], row, count, 5 * row, 5 * (row + count)
        )
        row += count
    slices = bytearray(table.tobytes())
    return _appended(replica, Proposal(EVENTS, slices, bytes(payload), row_count, len(heap), 1))


def _appended(replica: Replica, proposal: Proposal) -> Entry:
    append = replica.propose(proposal, NOW)
    return Entry(append.sequence, append.head, bytes(append.payload))


def any_entries(replica: Replica, random: Random) -> list[Entry]:
    """Return the records of one block, sized from one sector to a dozen."""
    entries = []
    for _ in range(random.choice((1, 1, 2, 5))):
        if random.random() < 0.3:
            entries.append(events_entry(replica, random, random.choice((1, 2, 40, 100))))
        else:
            entries.append(meta_entry(replica, random, random.choice((1, 200, 600, 2000))))
    return entries


def recover(disk: Disk, directory: str = DIRECTORY, start: Start | None = None) -> End | None:
    """Run the real recovery."""
    return Recovery(disk, directory, OWNER, start, lambda _: None).run()


def open_log(
    disk: Disk, segment_size: int, directory: str = DIRECTORY
) -> tuple[Log, Spare, Groups]:
    """Start a log as the WAL-writer does; return it with what replication would be told."""
    end = recover(disk, directory)
    spare = Spare(disk, directory, segment_size)
    log = Log(disk, directory, spare, OWNER, lambda: NOW)
    log.open(end)
    return log, spare, end.groups if end is not None else Groups()


def read_all(disk: Disk, directory: str = DIRECTORY) -> list[tuple[int, bytes]]:
    """Return (sequence, bytes) of every record in the log, in order, read file by file."""
    records = []
    names = [name for name in disk.names(directory) if log_format.number_of(name) is not None]
    for name in [*names, log_format.ACTIVE_NAME]:
        descriptor = disk.open(f"{directory}/{name}")
        buffer = disk.view(descriptor)
        for block in FileScan(name, buffer, active=name == log_format.ACTIVE_NAME):
            for record in block.records:
                end = record.offset + record.size
                records.append((record.sequence, bytes(buffer[record.offset : end])))
        disk.close(descriptor)
    return records


def as_read(entries: Sequence[Entry]) -> list[tuple[int, bytes]]:
    """Return entries in the form of `read_all`."""
    return [(entry.sequence, entry.head + bytes(entry.payload)) for entry in entries]
