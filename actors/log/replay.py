"""Replays the log: hands the records behind the position of the checkpoint to the commit queue.

The log is looked through first for slices that replace earlier ones, headers and slice tables only;
then its records are read as they are applied, so that a long log is not held in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.actors.files.mapped import map_descriptor
from meterd.actors.frames.sockets import Frame
from meterd.actors.log.opened_log import open_log
from meterd.core.log.commit_queue import Location, Words, everything, find_cuts
from meterd.core.log.scan import FileScan, NextBlock
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import (
    ACTIVE_NAME,
    BLOCK_HEADER_SIZE,
    FILE_HEADER_SIZE,
    GROUP_COUNT,
    NOT_HERE,
    RECORD_HEADER_SIZE,
    SLICE,
    Damaged,
    Record,
)

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

STATUS_SECONDS = 0.5
# Hold so many records until replication says for the first time what is committed.
HELD_MAX = 4_096

Cut = tuple[int, int, int]  # group, sequence of the record, first index that is gone


class Position(NamedTuple):
    """Where the next block is expected: all before it is applied."""

    file_number: int
    offset: int
    block_seq: int
    row: int
    previous_crc: int


# Of an empty directory: the first file does not exist yet.
BEGINNING = Position(1, FILE_HEADER_SIZE, 1, 0, 0)


class LoggedBlock(NamedTuple):
    """A block of the log, and where the next one belongs."""

    records: Sequence[tuple[Location, Record]]
    end: Position


# No index of any group is known to be committed.
NOTHING: Final = bytes(8 * GROUP_COUNT)
# An index that no op has.
NEVER: Final = 2**64 - 1


class LogReader:
    """The log from a position to a record.

    The WAL-writer has checked and repaired it before, and may be writing behind that record by now.
    """

    def __init__(self, directory: str, position: Position, last_sequence: int) -> None:
        self._directory = Path(directory)
        self._position = position
        self._last = last_sequence

    def survey(self) -> tuple[Words, list[Cut]]:
        """Return each group's last index there (u64[257]; 0: none), and all cuts.

        Raises Corrupt.
        """
        last_index = np.zeros(GROUP_COUNT, np.uint64)
        cuts: list[Cut] = []
        for sequence, slices in self._tables():
            found = find_cuts(slices, last_index)
            cuts += [(group, sequence, index) for group, index in found]
        return last_index, cuts

    def first_index(self) -> Words:
        """Return each group's least index there (u64[257]; 0: none).  Raises Corrupt."""
        least = np.full(GROUP_COUNT, NEVER, np.uint64)
        for _, slices in self._tables():
            here = slices[slices["flags"] & NOT_HERE == 0]
            groups = here["partition"]
            least[groups] = np.minimum(least[groups], here["index"])
        least[least == NEVER] = 0
        return least

    def _tables(self) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Yield sequence and slice table of each record that has one.  Raises Corrupt."""
        number, offset, sequence = *self._position[:2], 0
        while sequence < self._last:
            path, view, active = self._open(number)
            while sequence < self._last and offset < len(view):
                try:
                    header, _ = log_format.parse_block(view, offset)
                except Damaged as damage:
                    raise Corrupt(str(path), damage.offset, damage.reason) from damage
                at = offset + BLOCK_HEADER_SIZE
                for _ in range(header.record_count):
                    size, count, _ = log_format.record_sizes(view[at : at + RECORD_HEADER_SIZE])
                    sequence = log_format.record_sequence(view, at)
                    if count:
                        yield sequence, np.frombuffer(view, SLICE, count, at + RECORD_HEADER_SIZE)
                    at += size
                offset += header.block_size
            if active and sequence < self._last:
                raise Corrupt(str(path), offset, f"ends before record {self._last}")
            number, offset = number + 1, FILE_HEADER_SIZE

    def blocks(self) -> Iterator[LoggedBlock]:
        """Yield the blocks.  Raises Corrupt."""
        position, sequence = self._position, 0
        while sequence < self._last:
            number = position.file_number
            path, view, active = self._open(number)
            start = NextBlock(*position[1:])
            scan = FileScan(str(path), view, active, start)
            for block in scan:
                rows, row = [], block.header.first_row
                for record in block.records:
                    rows.append(((record.sequence, number, record.offset, row), record))
                    row += record.row_count
                    sequence = record.sequence
                yield LoggedBlock(rows, Position(number, *scan.end))
                if sequence >= self._last:
                    return
            if active:
                raise Corrupt(str(path), scan.end.offset, f"ends before record {self._last}")
            first_block, crc = scan.end.block_seq, scan.end.previous_crc
            position = Position(number + 1, FILE_HEADER_SIZE, first_block, 0, crc)

    def _open(self, number: int) -> tuple[Path, memoryview, bool]:
        """Return a file's path and bytes, and whether it is the active one, which may become full
        at this moment.  Raises Corrupt.
        """
        try:
            name, descriptor = open_log(str(self._directory), number)
        except FileNotFoundError as gone:
            path = self._directory / ACTIVE_NAME
            raise Corrupt(str(path), 0, f"log file {number} is missing") from gone
        try:
            return self._directory / name, map_descriptor(descriptor).data, name == ACTIVE_NAME
        finally:
            os.close(descriptor)


class Replay:
    """A replay that is under way; call `turn` whenever more may be applied."""

    def __init__(self, usage: Usage, last_sequence: int, committed: Frame) -> None:
        """Replay up to `last_sequence`, which must not be before the position.

        committed: u64[257], what is known to be, of each group: what a checkpoint has applied.
        Raises Corrupt.
        """
        self._usage = usage
        self.events = 0
        self._blocks: Iterator[LoggedBlock] = iter(())
        self._status_due = 0.0
        self.last_index = np.zeros(GROUP_COUNT, np.uint64)
        self.cuts: list[Cut] = []
        if usage.groups.sequence < last_sequence:
            directory = usage.options.node.data_dir
            reader = LogReader(directory, Position(*usage.position), last_sequence)
            self.last_index, self.cuts = reader.survey()
            self._blocks = reader.blocks()
        usage.queue.replay(last_sequence, self.last_index, self.cuts)
        usage.queue.add_committed(*everything(np.frombuffer(committed, np.uint64)))

    def turn(self, heard: bool) -> bool:
        """Go on; return whether the log has been read to its end.

        heard: replication has said what is committed, so what waits is no more than was under way.
        """
        usage = self._usage
        usage.apply_ready()
        while heard or usage.queue.unresolved < HELD_MAX:
            block = next(self._blocks, None)
            if block is None:
                usage.queue.end_replay()
                usage.apply_ready()
                return True
            usage.queue.add_logged(block.records, block.end, None)
            usage.apply_ready()
            self.events += sum(record.row_count for _, record in block.records)
            usage.maybe_save()
            self._say(block.end.file_number)
        return False

    def _say(self, number: int) -> None:
        now = time.monotonic()
        if now >= self._status_due:
            self._usage.lifeline.say(f"status replayed {self.events} events, in log file {number}")
            self._status_due = now + STATUS_SECONDS


def replay(usage: Usage, last_sequence: int, committed: Words | None = None) -> int:
    """Apply the records up to `last_sequence` as far as they are committed; return how many events
    were read.

    committed: u64[257], up to where each group is; None: all of it is.  Raises Corrupt.
    """
    work = Replay(usage, last_sequence, NOTHING)
    usage.queue.add_committed(*everything(work.last_index if committed is None else committed))
    work.turn(heard=True)
    return work.events
