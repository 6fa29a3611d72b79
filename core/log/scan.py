"""Reads log files block by block and tells their end, a torn tail and corruption apart.

No block is begun before the last one is on stable storage, and the files are zero-filled before
they are used.  So whatever a crash leaves behind is this: durable blocks, then at most one block
some of whose 512-byte sectors are still zero, then zeros.  Anything else is damage, and damage is
never cut off (docs/STORAGE.md, "The end of the log, and damage").

Invariants:
  * a block is yielded only after all of it has checked: header, chain to the block before,
    every record, the padding
  * `end` is always the place behind the last block yielded

Does not know: files, clocks, what records mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import chain, sectors
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import (
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    EVENTS,
    FILE_HEADER_SIZE,
    GROUP_COUNT,
    SECTOR_SIZE,
    TIMED,
    BlockHeader,
    Damaged,
    Record,
)

SLICE_FAULTS = {
    sectors.BAD_ORDER: "slices are not in the order of their partitions",
    sectors.BAD_COUNT: "slices and record disagree about the number of rows",
    sectors.BAD_HEAP: "slices and record disagree about the size of the heap",
    sectors.BAD_INDEX: "a slice's index does not follow the last one of its group",
    sectors.BAD_TERM: "a slice's term is older than the last one of its group",
}


# Repairs are rare, and lie in few files; of more than this the oldest are forgotten.
REPAIRED_MAX = 1_024


class NextBlock(NamedTuple):
    """Where in a file the next block belongs, and what it must say to belong there."""

    offset: int
    block_seq: int
    row: int  # number of its first row in the file
    previous_crc: int


class Block(NamedTuple):
    """One block, all of which has checked."""

    offset: int
    header: BlockHeader
    crc: int
    records: list[Record]


class Torn(NamedTuple):
    """Bytes of a block that was not written whole: from its beginning to its last sector."""

    start: int
    end: int


class Groups:
    """The last term, index, digest and time of each group, and the last record's time and number.

    And the log files, rising, with repairs of ops: what they hold lies behind newer ops of its
    group.  And up to which file the ops of a group count for nothing, because it was adopted from a
    peer since.  Changes only through `follow`, `take`, `adopt` and `note_repair`.
    """

    def __init__(self) -> None:
        self.term: NDArray[np.uint32] = np.zeros(GROUP_COUNT, np.uint32)
        self.index: NDArray[np.uint64] = np.zeros(GROUP_COUNT, np.uint64)
        self.digest: NDArray[np.uint64] = np.zeros((GROUP_COUNT, 2), np.uint64)
        self.time: NDArray[np.int64] = np.zeros(GROUP_COUNT, np.int64)
        self.leader_time = 0  # the latest of all
        self.sequence = 0
        self.repaired: list[int] = []
        self.void: dict[int, int] = {}  # of a group: the number of the last such file

    def packed(self) -> dict[str, Any]:
        """Return everything as plain values, for a message or a checkpoint."""
        used = np.flatnonzero(self.index).tolist()
        return {
            "leader_time": self.leader_time,
            "sequence": self.sequence,
            "groups": {
                group: [int(self.term[group]), int(self.index[group]), self.digest[group].tobytes()]
                for group in used
            },
            "times": {group: int(self.time[group]) for group in used},
            "repaired": self.repaired,
            "void": self.void,
        }

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> Self:
        """Return the groups that `packed` described; older versions knew one time for all."""
        groups = cls()
        groups.leader_time, groups.sequence = packed["leader_time"], packed["sequence"]
        times = packed.get("times", {})
        for group, (term, index, digest) in packed["groups"].items():
            groups.term[group], groups.index[group] = term, index
            groups.digest[group] = np.frombuffer(digest, np.uint64)
            groups.time[group] = times.get(group, groups.leader_time)
        groups.repaired = list(packed.get("repaired", []))
        groups.void = dict(packed.get("void", {}))
        return groups

    def follow(self, record: Record) -> None:
        """Move on by one record.  Raises Damaged when it does not follow the last one.

        Slices that are not here, and those that repair others, move nothing.
        """
        self.count(record)
        slices = record.slices
        self.take_time(record, slices["partition"][slices["flags"] == 0])
        fault = sectors.follow_slices(frozen(slices), self.term, self.index, self.digest)
        if fault:
            raise Damaged(record.offset, SLICE_FAULTS[fault])

    def count(self, record: Record) -> None:
        """Take the number of a record.  Raises Damaged when it does not rise."""
        if record.sequence <= self.sequence:
            raise Damaged(record.offset, "a record's sequence is not after the last one's")
        self.sequence = record.sequence

    def take_time(self, record: Record, groups: NDArray[np.uint16]) -> None:
        """Take a record's time for some groups.  Raises Damaged when it does not rise in one."""
        if record.kind not in TIMED or not len(groups):
            return
        if record.leader_time <= self.time[groups].max():
            raise Damaged(record.offset, "a record's time is not after the last one's of its group")
        self.time[groups] = record.leader_time
        self.leader_time = max(self.leader_time, record.leader_time)

    def take(self, record: Record, slices: NDArray[np.void]) -> None:
        """Move on by slices of a record that are applied, whatever their flags.

        The number of the last record stays.  Raises Damaged when one does not follow its group's.
        """
        self._take(record, slices, plain=False)

    def take_plain(self, record: Record) -> bool:
        """Do so with all slices of a record; False, and nothing moves, when one has a flag."""
        return self._take(record, record.slices, plain=True)

    def adopt(self, other: Groups, group: int, file_number: int) -> None:
        """Go on with a group where another replica of it is; the log has its ops behind a file."""
        self.void[group] = file_number
        for mine, theirs in zip(self._columns, other._columns, strict=True):
            mine[group] = theirs[group]
        self.leader_time = max(self.leader_time, int(other.time[group]))

    def note_repair(self, file_number: int) -> None:
        """A log file has the content of an op again that was damaged before."""
        if file_number not in self.repaired:
            self.repaired = sorted([*self.repaired, file_number])[-REPAIRED_MAX:]

    @property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self.term, self.index, self.digest, self.time

    def _take(self, record: Record, slices: NDArray[np.void], plain: bool) -> bool:
        timed = record.kind in TIMED
        fault = sectors.take_slices(frozen(slices), plain, self._columns, timed, record.leader_time)
        if fault == sectors.FLAGGED:
            return False
        if fault:
            raise Damaged(record.offset, SLICE_FAULTS[fault])
        if timed:
            self.leader_time = max(self.leader_time, record.leader_time)
        return True


def verify_chain(record: Record, groups: Groups) -> None:
    """Recompute the digest of every slice that is here, from the digests before.

    Raises Damaged.
    """
    slices = record.slices
    broken = first_broken(record, slices["flags"] == 0, groups.digest[slices["partition"]])
    if broken >= 0:
        partition = slices["partition"][broken]
        raise Damaged(record.offset, f"the hash chain of partition {partition} is broken")


def first_broken(record: Record, look: NDArray[np.bool_], before: NDArray[np.uint64]) -> int:
    """Return the place of the first slice whose digest does not follow from the one before, or -1.

    `look`: which slices count; `before`: u64[k, 2], a digest for each slice.
    """
    fields = [record.kind, record.registry_version, record.leader_time]
    return int(
        chain.first_broken(
            frozen(record.slices),
            frozen(look),
            frozen(np.frombuffer(record.payload, np.uint8)),
            log_format.payload_layout(record.row_count, record.heap_size)[:6],
            np.array(fields, np.int64).view(np.uint64),
            frozen(before),
        )
    )


def check_slices(record: Record) -> None:
    """Check the slice table of a record against its header.  Raises Damaged."""
    rows, heap_size = record.row_count, record.heap_size
    if record.kind != EVENTS:
        rows, heap_size = len(record.slices), 0
    fault = sectors.check_slices(frozen(record.slices), GROUP_COUNT, rows, heap_size)
    if fault:
        raise Damaged(record.offset, SLICE_FAULTS[fault])


def read_block(buffer: memoryview, offset: int) -> Block:
    """Return the block at `offset`, its records checked one by one.  Raises Damaged."""
    header, crc = log_format.parse_block(buffer, offset)
    end = offset + header.block_size
    if end > len(buffer):
        raise Damaged(offset, "block reaches beyond the end of the file")
    view = buffer[:end]
    records = []
    at = offset + BLOCK_HEADER_SIZE
    rows = 0
    for _ in range(header.record_count):
        record = log_format.parse_record(view, at)
        check_slices(record)
        records.append(record)
        rows += record.row_count
        at += record.size
    if end - at >= SECTOR_SIZE or bytes(view[at:]).strip(b"\0"):
        raise Damaged(at, "what follows the last record of a block is not its padding")
    if rows != header.row_count:
        raise Damaged(offset, f"a block of {header.row_count} rows holds {rows}")
    return Block(offset, header, crc, records)


class FileScan:
    """Iterates over the blocks of one file; afterwards `end` and `torn` say how it ends.

    An `active` file is preallocated and may end in zeros or in a torn block; any other ends with
    its last block, and a reader of a file that is still written passes a buffer that does.
    """

    def __init__(
        self,
        path: str,
        buffer: memoryview,
        active: bool = False,
        start: NextBlock | None = None,
        copied: bool = False,
    ) -> None:
        """Read the header of the file; begin at its first block or at `start`.  Raises Corrupt.

        With `copied` the file was read while it was written: a sector that had not been written
        ends it, although later ones had.
        """
        try:
            self.header, self.crc = log_format.parse_file_header(buffer)
        except Damaged as damage:
            raise Corrupt(path, damage.offset, damage.reason) from damage
        first_block, previous_crc = self.header.first_block_seq, self.header.previous_crc
        self.path = path
        self.version = log_format.file_version(buffer)
        self.end = start or NextBlock(FILE_HEADER_SIZE, first_block, 0, previous_crc)
        self.torn: Torn | None = None
        self._buffer = buffer
        self.is_active = active or copied
        self._copied = copied

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks.  Raises Corrupt."""
        while self.end.offset < len(self._buffer):
            offset = self.end.offset
            try:
                block = read_block(self._buffer, offset)
                self._check(block.header, offset)
            except Damaged as damage:
                self.torn = self._classify(offset, damage)
                return
            self.end = NextBlock(
                offset + block.header.block_size,
                self.end.block_seq + 1,
                self.end.row + block.header.row_count,
                block.crc,
            )
            yield block

    def fits(self, header: BlockHeader) -> bool:
        """Whether a header says what the block at `end` must."""
        try:
            self._check(header, self.end.offset)
        except Damaged:
            return False
        return True

    def _check(self, header: BlockHeader, offset: int) -> None:
        """Check that a block belongs where it lies."""
        place = self.end
        if header.file_crc != self.crc or header.file_number != self.header.file_number:
            raise Damaged(offset, "block of another file")
        if header.block_seq != place.block_seq:
            raise Damaged(offset, f"block {header.block_seq} where {place.block_seq} belongs")
        if header.previous_crc != place.previous_crc:
            raise Damaged(offset, "block does not continue the one before (previous_crc)")
        if header.first_row != place.row:
            raise Damaged(offset, f"block begins with row {header.first_row}, not {place.row}")

    def _classify(self, offset: int, damage: Damaged) -> Torn | None:
        """Say what a block that does not check is: the end (None) or torn.  Raises Corrupt."""
        corrupt = Corrupt(self.path, damage.offset, damage.reason)
        if not self.is_active or (not self._copied and self._later_block(offset)):
            raise corrupt from damage
        if not any(self._buffer[offset : offset + BLOCK_HEADER_SIZE]):
            return self._classify_headless(offset, corrupt)
        try:
            header, _ = log_format.parse_block(self._buffer, offset)
            self._check(header, offset)
        except Damaged as found:
            raise corrupt from found  # its first sector was written: whoever wrote it wrote this
        end = offset + header.block_size
        last = _nonzero_end(self._buffer, end) if end <= len(self._buffer) else end
        if end > len(self._buffer) or (last > end and not self._copied):
            raise corrupt
        words = _words(self._buffer[offset:end])
        if sectors.count_zero_sectors(words) <= header.zero_sectors:
            raise corrupt
        return Torn(offset, last)

    def _classify_headless(self, offset: int, corrupt: Corrupt) -> Torn | None:
        """A header of zeros: the end of the log, or a block whose first sector was not written."""
        end = _nonzero_end(self._buffer, offset)
        if end == offset:
            return None
        if any(self._buffer[offset : offset + SECTOR_SIZE]):
            raise corrupt
        return Torn(offset, end)

    def _later_block(self, offset: int) -> bool:
        """Is there a block of this file behind `offset`?  Then the one at `offset` was durable."""
        start = offset + SECTOR_SIZE
        left = (len(self._buffer) - start) // SECTOR_SIZE * SECTOR_SIZE
        if left <= 0:
            return False
        words = np.frombuffer(self._buffer, np.uint32, left // 4, start)
        for sector in np.flatnonzero(words[:: SECTOR_SIZE // 4] == BLOCK_MAGIC).tolist():
            try:
                header, _ = log_format.parse_block(self._buffer, start + sector * SECTOR_SIZE)
            except Damaged:
                continue
            if header.file_crc == self.crc:
                return True
        return False


def _words(view: memoryview) -> NDArray[np.uint64]:
    return np.frombuffer(view, np.uint64, len(view) // 8)


def _nonzero_end(buffer: memoryview, start: int) -> int:
    """Return the end of the last sector from `start` on that is not all zero, or `start`."""
    words = _words(buffer[start:])
    first = int(sectors.first_nonzero(words))
    if first == len(words):
        return start
    last = len(words) - int(sectors.first_nonzero(words[::-1]))
    return start + log_format.padded(8 * last, SECTOR_SIZE)
