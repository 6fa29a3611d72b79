"""Replays the log into the state machine: every record after the position of the checkpoint."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.core.log_scan import FileScan, Place
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import ACTIVE_NAME, FILE_HEADER_SIZE, Record, full_name

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

STATUS_SECONDS = 0.5


class Position(NamedTuple):
    """Where the next block is expected: all before it is applied."""

    file_number: int
    offset: int
    block_seq: int
    row: int
    previous_crc: int


# Of an empty directory: the first file does not exist yet.
BEGINNING = Position(1, FILE_HEADER_SIZE, 1, 0, 0)


def replay(usage: Usage, last_sequence: int) -> int:
    """Apply every record after `usage.position` up to `last_sequence`; return how many events.

    The WAL-writer has checked and repaired the log before, and may be writing behind
    that record by now.  Raises Corrupt.
    """
    events = 0
    status_due = 0.0
    while usage.groups.sequence < last_sequence:
        number = usage.position.file_number
        for row, records, end in _blocks(usage, last_sequence):
            for record in records:
                usage.apply(record, number, row, None)
                row += record.row_count
                events += record.row_count
            usage.position = end
            usage.maybe_save()
            if time.monotonic() >= status_due:
                usage.lifeline.say(f"status replayed {events} events, in log file {number}")
                status_due = time.monotonic() + STATUS_SECONDS
    return events


def _blocks(usage: Usage, last_sequence: int) -> Iterator[tuple[int, list[Record], Position]]:
    """Yield (first row, records, end) of the blocks left in the file of `usage.position`.

    After the last one move it on to the next file.
    """
    directory = Path(usage.options.node.data_dir)
    position = usage.position
    number = position.file_number
    full = directory / full_name(number)
    active = not full.exists()
    path = directory / ACTIVE_NAME if active else full
    if not path.exists():
        raise Corrupt(str(path), 0, f"log file {number} is missing")
    start = Place(position.offset, position.block_seq, position.row, position.previous_crc)
    scan = FileScan(str(path), _mapped(path), active, start)
    if scan.header.file_number != number:
        raise Corrupt(str(path), 0, f"log file {scan.header.file_number} where {number} belongs")
    for block in scan:
        yield block.header.first_row, block.records, Position(number, *scan.end)
        if usage.groups.sequence >= last_sequence:
            return
    if active:
        raise Corrupt(str(path), scan.end.offset, f"ends before record {last_sequence}")
    usage.position = Position(
        number + 1, FILE_HEADER_SIZE, scan.end.block_seq, 0, scan.end.previous_crc
    )


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
