"""What the log costs: writing durably, by how a file was prepared; what Python adds; reading back.

The questions it answers for docs/STORAGE.md: is it worth filling files with zeros, does filling the
next file disturb appends to this one, how much do `Log.append` and recovery cost beside the disk.
Every figure comes from the product's own code, on real files in a temporary directory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.support import fdatasync_us, percentiles_us, say, write_result
from meterd.actors.files.direct_file import Buffer, page_memory
from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_log import Entry, Log
from meterd.actors.log.wal_recovery import Owner, Recovery
from meterd.actors.log.wal_spare import BackgroundSpare, Spare
from meterd.core.cluster.proposals import Proposal
from meterd.core.kernels import stage
from meterd.core.log.scan import FileScan, Groups
from meterd.protocol import log_format
from meterd.protocol.log_format import EVENTS, SLICE
from tests.support.replica import Replica

OWNER = Owner(1, bytes(16), bytes(range(16)))
SEGMENT_SIZE = 64 * 1024 * 1024
HEAP_PER_ROW = 40
BLOCK_SIZES = (4_096, 65_536, 262_144, 1_048_576)
WRITES = 400
TURNS = 3

# Rows and slices of one record: a single event, a request of 500, a full record.
SHAPES = {"1 row, 1 slice": (1, 1), "500 rows, 86 slices": (500, 86), "5000 rows": (5_000, 200)}


class NullDisk(LocalDisk):
    """Takes blocks and does nothing, so that what is left is Python."""

    def write(self, descriptor: int, buffer: Buffer, offset: int) -> None:
        pass

    def sync(self, descriptor: int) -> None:
        pass


def random_block(size: int) -> Buffer:
    block = page_memory(size)
    block[:] = os.urandom(size)
    return block


def grown(path: str) -> int:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT))
    return LocalDisk().open(path)


def allocated(path: str) -> int:
    descriptor = grown(path)
    os.posix_fallocate(descriptor, 0, SEGMENT_SIZE)
    os.fsync(descriptor)
    return descriptor


def filled(path: str) -> int:
    return LocalDisk().create(path, SEGMENT_SIZE)


PREPARATIONS: dict[str, Callable[[str], int]] = {
    "none": grown,
    "fallocate": allocated,
    "zeros": filled,
}


def prepared_files(directory: str) -> list[dict[str, Any]]:
    """Write and sync blocks into files that were prepared in different ways, in turns."""
    disk, rows = LocalDisk(), []
    for size in BLOCK_SIZES:
        block = random_block(size)
        count = min(WRITES, SEGMENT_SIZE // size)
        taken: dict[str, list[int]] = {name: [] for name in PREPARATIONS}
        for _ in range(TURNS):
            for name, prepare in PREPARATIONS.items():
                path = f"{directory}/{name}"
                descriptor = prepare(path)
                for number in range(count):
                    began = time.perf_counter_ns()
                    disk.write(descriptor, block, number * size)
                    disk.sync(descriptor)
                    taken[name].append(time.perf_counter_ns() - began)
                os.close(descriptor)
                os.unlink(path)
        for name, nanoseconds in taken.items():
            rate = size * len(nanoseconds) / sum(nanoseconds) * 1000
            rows.append(
                {
                    "block_bytes": size,
                    "prepared": name,
                    "latency_us": percentiles_us(nanoseconds),
                    "megabytes_per_second": round(rate),
                }
            )
            say(str(rows[-1]))
    return rows


def make_entry(replica: Replica, rows: int, slices: int) -> Entry:
    """Return a record of events with a real hash chain."""
    layout = log_format.payload_layout(rows, HEAP_PER_ROW * rows)
    payload = np.frombuffer(os.urandom(layout.size), np.uint8)
    table = np.zeros(slices, SLICE)
    table["partition"] = np.arange(slices)
    table["count"] = np.diff(np.linspace(0, rows, slices + 1).astype(int))
    table["heap_size"] = table["count"] * HEAP_PER_ROW
    first = 0
    for number in range(slices):
        count = int(table["count"][number])
        end = (first + count) * HEAP_PER_ROW
        table["digest"][number] = stage.content_of(
            payload, layout[:6], first, count, first * HEAP_PER_ROW, end
        )
        first += count
    proposal = Proposal(
        EVENTS, bytearray(table.tobytes()), payload.tobytes(), rows, HEAP_PER_ROW * rows, 1
    )
    append = replica.propose(proposal, time.time_ns())
    return Entry(append.sequence, append.head, bytes(append.payload))


def python_cost(directory: str) -> list[dict[str, Any]]:
    """Time `Log.append` on a disk that does nothing."""
    rows = []
    for name, (row_count, slice_count) in SHAPES.items():
        for records in (1, 10, 100):
            disk = NullDisk()
            log = Log(disk, directory, Spare(disk, directory, SEGMENT_SIZE), OWNER, time.time_ns)
            log.open(None)
            replica = Replica(Groups())
            entries = [make_entry(replica, row_count, slice_count) for _ in range(records)]
            size = sum(len(entry.head) + len(entry.payload) for entry in entries)
            taken = []
            for _ in range(min(1_000, (SEGMENT_SIZE - 8_192) // (size + 1_024))):
                began = time.perf_counter_ns()
                log.append(entries)
                taken.append(time.perf_counter_ns() - began)
            log.close()
            row = {"record": name, "records_per_block": records, "block_bytes": size}
            rows.append(row | {"python_us": percentiles_us(taken)})
            say(str(rows[-1]))
    return rows


def beside_filling(directory: str) -> dict[str, Any]:
    """Append blocks of 64 KiB, alone and while the next file is filled at the product's pace."""
    disk, block, found = LocalDisk(), random_block(65_536), {}
    taken: dict[str, list[int]] = {"alone": [], "beside filling": []}
    for _ in range(TURNS):
        for name, busy in (("alone", False), ("beside filling", True)):
            descriptor = disk.create(f"{directory}/appended", SEGMENT_SIZE)
            spare = BackgroundSpare(disk, directory, SEGMENT_SIZE)
            if busy:
                spare.prepare()
            for offset in range(0, SEGMENT_SIZE, len(block)):
                began = time.perf_counter_ns()
                disk.write(descriptor, block, offset)
                disk.sync(descriptor)
                taken[name].append(time.perf_counter_ns() - began)
                spare.appended = offset
            disk.close(descriptor)
            spare.close()
    found = {name: percentiles_us(nanoseconds) for name, nanoseconds in taken.items()}
    began = time.perf_counter()
    disk.close(disk.create(f"{directory}/appended", SEGMENT_SIZE))
    row = {"latency_us": found, "fill_at_once_seconds": round(time.perf_counter() - began, 3)}
    say(str(row))
    return row


def whole_log(directory: str) -> list[dict[str, Any]]:
    """Write logs of 256 MiB (small records: less) as the WAL-writer does, and read them back."""
    rows = []
    for name, (row_count, slice_count) in SHAPES.items():
        replica = Replica(Groups())
        total = (1 if row_count == 1 else 16) * 16 * 1024 * 1024
        size = len(make_entry(Replica(Groups()), row_count, slice_count).payload)
        per_block = max(1, min(1_000, 262_144 // size))
        rows.append({"record": name} | one_log(directory, replica, total, per_block, SHAPES[name]))
        say(str(rows[-1]))
    return rows


def one_log(
    directory: str, replica: Replica, total: int, per_block: int, shape: tuple[int, int]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        disk = LocalDisk()
        spare = BackgroundSpare(disk, folder, SEGMENT_SIZE)
        log = Log(disk, folder, spare, OWNER, time.time_ns)
        log.open(None)
        taken, records = [], 0
        while log.bytes_written < total:
            entries = [make_entry(replica, *shape) for _ in range(per_block)]
            spare.prepare()
            began = time.perf_counter_ns()
            log.append(entries)
            taken.append(time.perf_counter_ns() - began)
            records += per_block
        log.close()
        spare.close()
        began = time.perf_counter()
        end = Recovery(disk, folder, OWNER, None, lambda _: None).run()
        recovery = time.perf_counter() - began
        assert end is not None
        assert end.groups.sequence == records
        return {
            "records_per_block": per_block,
            "append_us": percentiles_us(taken),
            "megabytes_per_second": round(log.bytes_written / sum(taken) * 1000),
            "files": end.file_number,
            "recovery_us_per_record": round(recovery / records * 1e6, 2),
            "recovery_megabytes_per_second": round(log.bytes_written / recovery / 1e6),
            "scan": scan_time(Path(folder)),
        }


def scan_time(folder: Path) -> dict[str, float]:
    """Read the first file without the hash chain: checksums, structure and order alone."""
    full = folder / log_format.full_name(1)
    path = full if full.exists() else folder / log_format.ACTIVE_NAME
    content = memoryview(path.read_bytes())
    began = time.perf_counter()
    scan = FileScan(str(path), content, active=path != full)
    records = sum(len(block.records) for block in scan)
    seconds = time.perf_counter() - began
    return {
        "us_per_record": round(seconds / records * 1e6, 2),
        "milliseconds_per_64_mib": round(seconds / scan.end.offset * SEGMENT_SIZE * 1000, 1),
    }


@click.command()
@click.option("--directory", default="/tmp", help="where to write; its disk is what is measured")
def main(directory: str) -> None:
    """Measure the log."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="wal-bench-") as folder:
        warm = Replica(Groups())
        one_log(folder, warm, 1, 1, (4, 2))
        document = {
            "fdatasync_4k_us": fdatasync_us(Path(folder)),
            "prepared_files": prepared_files(folder),
            "python_cost": python_cost(folder),
            "beside_filling": beside_filling(folder),
            "whole_log": whole_log(folder),
        }
    say(str(write_result("wal", document)))


if __name__ == "__main__":
    main()
