"""The log as files: appends blocks, and goes from one file to the next.

No socket, clock or thread: what happens to files depends on the calls alone, so tests drive this
through every crash that a `Disk` can have.  The order of steps is what makes it safe:

  * a block is acknowledged after it was written whole and synced; the next is begun only then
  * a file is zero-filled and synced before it is used, so a sector that is zero in a block whose
    header says otherwise was never written
  * the next file is complete, header and all, under its spare name before the full one is cut,
    synced and renamed; each rename is durable before the next name changes

States: closed → `open` → open (a file is active) → `close`.
After any exception but DiskFull the object must be thrown away: what is on the disk is unknown.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from meterd.actors.files.direct_file import page_memory
from meterd.actors.files.disk import Disk
from meterd.actors.log.wal_recovery import End, Owner
from meterd.actors.log.wal_spare import Spare
from meterd.core.kernels import sectors
from meterd.core.log.scan import NextBlock
from meterd.protocol import log_format
from meterd.protocol.errors import DiskFull, InvariantViolation
from meterd.protocol.log_format import (
    ACTIVE_NAME,
    BLOCK_HEADER_SIZE,
    FILE_HEADER_SIZE,
    FILE_SIZE_MULTIPLE,
    SECTOR_SIZE,
    BlockHeader,
    FileHeader,
    full_name,
    open_name,
)

# A block is closed when it has so many records or bytes: small enough to be written in about a
# millisecond, large enough that a sync costs little per record.  One larger record is a block.
RECORDS_PER_BLOCK_MAX = 1_000
BLOCK_FILL_SIZE = 4 * 1024 * 1024
# Memory kept for blocks has room for all but those of a single larger record.
BLOCK_MEMORY_SIZE = BLOCK_FILL_SIZE + SECTOR_SIZE

# Stands for the header while zero sectors are counted: a header is never all zero.
_HEADER_PLACE = b"\xff" * BLOCK_HEADER_SIZE


class Entry(NamedTuple):
    """One record to append."""

    sequence: int
    head: bytes
    payload: bytes | memoryview
    commits: bool = False  # it is committed as soon as it is durable here


class Log:
    """The log of one node.  Change it only through its public methods."""

    def __init__(
        self, disk: Disk, directory: str, spare: Spare, owner: Owner, now: Callable[[], int]
    ) -> None:
        self.file_number = 0
        self.file_count = 0
        self.place = NextBlock(FILE_HEADER_SIZE, 1, 0, 0)
        self.protected = True  # no damage to the last record can pass for a torn tail
        self.bytes_written = 0
        self._disk = disk
        self._directory = directory
        self._spare = spare
        self._owner = owner
        self._now = now
        self._descriptor: int | None = None
        # The next file, complete, when the active one is sealed and this has not its name yet.
        self._begun: tuple[int, int] | None = None
        self._capacity = 0
        self._file_crc = 0
        self._memory = page_memory(BLOCK_MEMORY_SIZE)  # blocks are put together here

    def open(self, end: End | None) -> None:
        """Be ready to append where recovery found the end; None begins the first file.

        Raises DiskFull, FsyncFailed, OSError.
        """
        if end is None:
            self._next_file(0)
            return
        self.file_number, self.file_count = end.file_number, end.file_count
        self.place, self.protected, self._file_crc = end.place, end.protected, end.file_crc
        self._disk.link(self._path(ACTIVE_NAME), self._path(open_name(end.file_number)))
        # A kill may have come before the sync that makes the active file's own name durable.
        self._disk.sync_directory(self._directory)
        self._descriptor = self._disk.open(self._path(ACTIVE_NAME))
        self._capacity = self._disk.size(self._descriptor)
        self._write_again(end.last_block)
        if end.file_version < log_format.FILE_VERSION:
            self._next_file(0)  # so an older program finds nothing in it that it misreads

    def _write_again(self, offset: int) -> None:
        """Make the last block durable: it was read, but a sync before may have failed.

        The kernel then takes for written what it has only in memory, and no later sync would write
        it.  No block before it can be so, for none is begun until the one before is durable.
        """
        assert self._descriptor is not None
        size = self.place.offset - offset
        if size:
            block = memoryview(page_memory(size))
            block[:] = self._disk.view(self._descriptor)[offset : offset + size]
            self._write_at(block, offset)

    def append(self, entries: Sequence[Entry]) -> bytes:
        """Write one block and put it on stable storage; no entries make an empty block.

        Returns (sequence, file number, offset, first row) of each record as u64.  Raises DiskFull
        when a new file is needed and cannot be made: nothing has happened then, and the same
        call may be repeated.
        """
        records_size = sum(len(entry.head) + len(entry.payload) for entry in entries)
        block_size = log_format.padded(BLOCK_HEADER_SIZE + records_size, SECTOR_SIZE)
        while self.place.offset + block_size > self._capacity:
            self._next_file(block_size)
        rows, durable = self._account(entries)
        block = self._assemble(entries, block_size)
        header = self._header(block, len(entries), rows)
        block[:BLOCK_HEADER_SIZE] = header
        self._write(block)
        self.bytes_written += block_size
        self.protected = not entries
        self.place = NextBlock(
            self.place.offset + block_size,
            self.place.block_seq + 1,
            self.place.row + rows,
            int.from_bytes(header[-4:], "little"),
        )
        self._spare.appended = self.place.offset
        return durable

    def _assemble(self, entries: Sequence[Entry], block_size: int) -> memoryview:
        """Return a block of these records, copied into place; only its header is missing."""
        memory = self._memory if block_size <= BLOCK_MEMORY_SIZE else page_memory(block_size)
        write = memory.write  # the quickest way to copy many small parts
        memory.seek(0)
        write(_HEADER_PLACE)
        for _, head, payload, _ in entries:
            write(head)
            write(payload)
        write(bytes(block_size - memory.tell()))
        return memoryview(memory)[:block_size]

    def _account(self, entries: Sequence[Entry]) -> tuple[int, bytes]:
        """Return how many rows the entries hold, and what `append` returns for them."""
        offset, row = self.place.offset + BLOCK_HEADER_SIZE, self.place.row
        words: list[int] = []
        for sequence, head, payload, _ in entries:
            record_size, _, rows = log_format.record_sizes(head)
            if record_size != len(head) + len(payload):
                raise InvariantViolation(f"record {sequence} has not the size its header names")
            words += (sequence, self.file_number, offset, row)
            offset += record_size
            row += rows
        return row - self.place.row, struct.pack(f"<{len(words)}Q", *words)

    def _header(self, block: memoryview, record_count: int, rows: int) -> bytes:
        zero_sectors = 0  # the header is in the first
        if len(block) > SECTOR_SIZE:
            words = np.frombuffer(block.toreadonly(), np.uint64)
            zero_sectors = sectors.count_zero_sectors(words)
        return log_format.encode_block_header(
            BlockHeader(
                block_seq=self.place.block_seq,
                block_size=len(block),
                record_count=record_count,
                row_count=rows,
                first_row=self.place.row,
                zero_sectors=zero_sectors,
                previous_crc=self.place.previous_crc,
                written_at=self._now(),
                file_number=self.file_number,
                file_crc=self._file_crc,
            )
        )

    def _write(self, block: memoryview) -> None:
        self._write_at(block, self.place.offset)

    def _write_at(self, block: memoryview, offset: int) -> None:
        assert self._descriptor is not None, "the log is not open"
        try:
            self._disk.write(self._descriptor, block, offset)
        except DiskFull as full:
            # The file was allocated whole, so this is no shortage that waiting can mend.
            raise OSError(errno.EIO, f"no room in an allocated file: {full}") from full
        self._disk.sync(self._descriptor)

    def begin_file(self) -> None:
        """Seal the active file, and begin the next.  Raises DiskFull, and can be repeated then."""
        self._next_file(0)

    def protect(self) -> None:
        """See to it that no damage to the last record can pass for a torn tail.

        By an empty block behind it or, where none fits, by sealing the file.  Raises DiskFull when
        a new file is needed and cannot be made; nothing has happened then.
        """
        if self.protected:
            return
        if self.place.offset + SECTOR_SIZE <= self._capacity:
            self.append([])
        else:
            self._next_file(0)
        self.protected = True

    def _next_file(self, block_size: int) -> None:
        """Seal the active file, if any, and begin the next, with room for a block of this size.

        Raises DiskFull, also in the middle: a directory may find no room for a name.  The call can
        be repeated then, and goes on where it was.
        """
        if self._begun is None:
            self._begun = self._begin(block_size)
        descriptor, file_crc = self._begun
        self._disk.rename(self._spare.path, self._path(ACTIVE_NAME))
        # Before anything is in it: a copy that has seen only the first name lacks nothing.
        self._disk.link(self._path(ACTIVE_NAME), self._path(open_name(self.file_number + 1)))
        self._disk.sync_directory(self._directory)
        self._spare.used()
        self._begun = None
        self._descriptor, self._capacity = descriptor, self._disk.size(descriptor)
        self._file_crc = file_crc
        self.place = self.place._replace(offset=FILE_HEADER_SIZE, row=0)
        self.file_number += 1
        self.file_count += 1

    def _begin(self, block_size: int) -> tuple[int, int]:
        """Make the next file complete under its spare name, and seal the active one.

        Returns its descriptor and the checksum of its header.
        """
        size = log_format.padded(FILE_HEADER_SIZE + block_size, FILE_SIZE_MULTIPLE)
        descriptor = self._spare.descriptor_for(size)
        header = log_format.encode_file_header(
            FileHeader(
                *self._owner[:3],
                file_number=self.file_number + 1,
                first_block_seq=self.place.block_seq,
                created=self._now(),
                previous_crc=self.place.previous_crc,
            )
        )
        first_page = memoryview(self._memory)[:FILE_HEADER_SIZE]
        first_page[:] = header
        self._disk.write(descriptor, first_page, 0)
        self._disk.sync(descriptor)
        if self._descriptor is not None:
            self._seal(self._descriptor)
        return descriptor, log_format.parse_file_header(header)[1]

    def _seal(self, descriptor: int) -> None:
        """Cut the active file behind its last block and give it the name of a full one."""
        self._capacity = self.place.offset  # whatever comes next finds no room here
        self._disk.truncate(descriptor, self.place.offset)
        self._disk.rename(self._path(ACTIVE_NAME), self._path(full_name(self.file_number)))
        self._disk.sync_directory(self._directory)
        self._disk.close(descriptor)
        self._descriptor = None

    def close(self) -> None:
        """Give the files back; every block appended is durable already."""
        if self._descriptor is not None:
            self._disk.close(self._descriptor)
            self._descriptor = None

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def block_count(waiting: Sequence[Entry]) -> int:
    """Return how many of the first entries make the next block; all of it commits, or none."""
    if len(waiting) == 1:
        return 1
    size, commits = 0, waiting[0].commits
    for count, entry in enumerate(waiting):
        size += len(entry.head) + len(entry.payload)
        if entry.commits != commits:
            return count
        if count == RECORDS_PER_BLOCK_MAX or (count and size > BLOCK_FILL_SIZE):
            return count
    return len(waiting)
