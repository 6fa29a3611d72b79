"""Makes the segment of a full log file, from the file and the bitmap of its rows not stored.

The file is read once, in windows of whole blocks, around the page cache; the segment is written so
too.  `.idx` is written last: until it is there, nothing counts, and making it again replaces what
was left behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from meterd.actors.files.direct_file import Staging, Window, begin_direct
from meterd.actors.files.disk import atomic_write
from meterd.core.frozen import frozen
from meterd.core.kernels.scan import whole_blocks
from meterd.core.segments.encoder import SegmentEncoder
from meterd.core.segments.intake import IntakeRoom, LogIntake
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import (
    BLOCK_HEADER_SIZE,
    FILE_HEADER_SIZE,
    Bytes,
    Damaged,
    full_name,
    parse_block,
    parse_file_header,
)
from meterd.protocol.segment_format import FileHeader, SegmentHeader, SegmentName

# Many times a usual block, so that little is read twice.
WINDOW_SIZE = 4 * 1024 * 1024
_BLOCK_SIZE_AT = slice(16, 20)

# Told how much is done, 0 to 1; ends the work by raising.
Progress = Callable[[float], None]


class SegmentMaker:
    """Makes the segments of one directory, one at a time; may be used in a thread of its own."""

    def __init__(self, directory: str, identity_key: NDArray[np.uint64]) -> None:
        self._directory = directory
        self._key = identity_key
        self._window = Window()
        self._staging = Staging()
        self._room: IntakeRoom | None = None  # while files follow each other

    def rest(self) -> None:
        """Give the memory back that files were taken into; none is being made."""
        self._room = None

    def count_rows(self, number: int) -> int:
        """Return how many rows a full log file holds.  Raises Corrupt, OSError."""
        path = os.path.join(self._directory, full_name(number))
        rows = 0
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            at = FILE_HEADER_SIZE
            while at < size:
                try:
                    header, _ = parse_block(os.pread(file.fileno(), BLOCK_HEADER_SIZE, at), 0)
                except Damaged as damage:
                    raise Corrupt(path, at, damage.reason) from damage
                rows += header.row_count
                at += header.block_size
        return rows

    def make(self, number: int, bitmap: bytes, row_count: int, progress: Progress) -> SegmentHeader:
        """Make the segment of a full log file of so many rows, durably.

        Raises Corrupt, DiskFull, FsyncFailed, OSError, and what `progress` raises.
        """
        intake = self._take(number, bitmap, row_count, progress)
        batch, log = intake.finish()
        created = time.time_ns()
        set_id = int.from_bytes(os.urandom(8), "little")
        encoder = SegmentEncoder(FileHeader(set_id, number, number, created))
        name = SegmentName(number, number)

        def seg() -> Iterator[Bytes]:
            yield encoder.begin()
            for piece in encoder.add(batch):
                progress(0.75)
                yield piece

        self._write(name, ".seg", seg())
        encoded = encoder.finish(log)
        self._write(name, ".props", encoded.props)
        self._write(name, ".idx", encoded.idx)
        return encoded.header

    def _write(self, name: SegmentName, suffix: str, pieces: Iterable[Bytes]) -> None:
        atomic_write(os.path.join(self._directory, name.file(suffix)), pieces, self._staging)

    def _take(self, number: int, bitmap: bytes, row_count: int, progress: Progress) -> LogIntake:
        """Read a file, checking all of it."""
        path = os.path.join(self._directory, full_name(number))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            begin_direct(descriptor)
            size = os.fstat(descriptor).st_size
            self._check_header(path, descriptor, number)
            refused = np.frombuffer(bitmap, np.uint8)
            self._room = self._room or IntakeRoom()
            intake = LogIntake(path, size, row_count, refused, self._key, self._room)
            at = FILE_HEADER_SIZE
            while at < size:
                progress(0.5 * at / size)
                data = self._blocks(descriptor, at)
                intake.take(data, at)
                at += len(data)
                if intake.block_end != at:
                    raise Corrupt(path, at - len(data), "no block of a log (segment)")
        finally:
            os.close(descriptor)
        return intake

    def _check_header(self, path: str, descriptor: int, number: int) -> None:
        try:
            header, _ = parse_file_header(self._window.read(descriptor, 0, FILE_HEADER_SIZE))
            if header.file_number != number:
                raise Damaged(0, f"it is log file {header.file_number}")
        except Damaged as damage:
            raise Corrupt(path, damage.offset, damage.reason) from damage

    def _blocks(self, descriptor: int, at: int) -> NDArray[np.uint8]:
        """Return whole blocks, or what lies there instead."""
        data = _array(self._window.read(descriptor, at, WINDOW_SIZE))
        count = int(whole_blocks(frozen(data)))
        if count == 0 and len(data) >= BLOCK_HEADER_SIZE:
            wanted = int.from_bytes(data[_BLOCK_SIZE_AT].tobytes(), "little")
            if wanted > len(data):  # the size of what is no block is bounded by the file's
                data = _array(self._window.read(descriptor, at, wanted))
        return data[:count] if count else data


def _array(view: memoryview) -> NDArray[np.uint8]:
    return np.frombuffer(view.toreadonly(), np.uint8)
