"""Reads the log at start, finishes what a crash interrupted, and refuses what is damaged.

Three things can be unfinished, and each shows by itself which it is: a block that was never
acknowledged (a torn tail; zeroed), a rotation between its two renames (no `wal.log`, but its
successor under the spare name; renamed), the very first file (nothing but perhaps a spare; made).
Everything else is corruption, and is reported with file and offset, never cut off.  A node alone
ends there.  A node with peers mends the block (core/log/mending.py) and has them give what is lost.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from meterd.actors.files.direct_file import page_memory
from meterd.actors.files.disk import Disk
from meterd.actors.starting import peer_copy
from meterd.actors.starting.identity import Identity
from meterd.core.log.block_headers import Surroundings, block_header
from meterd.core.log.group_logs import GroupLogs
from meterd.core.log.mending import Lost, mend
from meterd.core.log.scan import FileScan, Groups, NextBlock, Torn
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import (
    ACTIVE_NAME,
    SECTOR_SIZE,
    SPARE_NAME,
    Damaged,
    FileHeader,
    Record,
    full_name,
)
from meterd.protocol.raft_messages import member_id

logger = logging.getLogger(__name__)


class Owner(NamedTuple):
    """Whose log it is: stands in every file header."""

    node_id: int
    cluster_id: bytes
    identity_key: bytes
    donors: tuple[int, ...] = ()  # nodes of the cluster that files may be copies of

    @classmethod
    def of(cls, who: Identity, directory: str) -> Owner:
        """Return the owner of a directory's log.  Raises Corrupt."""
        donors = peer_copy.copied_from(directory)
        return cls(who.node_id, who.cluster_id, who.identity_key, donors)

    def owns(self, header: FileHeader) -> bool:
        """Whether a file with this header may be a part of the log."""
        same = (header.cluster_id, header.identity_key) == (self.cluster_id, self.identity_key)
        return same and (header.node_id == self.node_id or header.node_id in self.donors)


class Start(NamedTuple):
    """What a checkpoint holds; reading begins with the file that has its last record."""

    file_number: int
    log: Mapping[str, Any]  # as `Groups.packed` and, in a cluster, more (docs/STORAGE.md)
    offset: int = 0  # in that file: what lies before it was applied

    @classmethod
    def of(cls, file_number: int, groups: Groups) -> Start:
        """Return the start of a node that is alone."""
        return cls(file_number, groups.packed())

    @property
    def sequence(self) -> int:
        """The last record that the checkpoint covers."""
        return int(self.log["sequence"])


class End(NamedTuple):
    """Where the log ends, and what it has brought every group to."""

    file_number: int  # of the active file
    file_crc: int
    file_version: int
    last_block: int  # where it begins in the active file; `place.offset` when it has none
    place: NextBlock
    logs: GroupLogs
    protected: bool  # no damage to the last record can pass for a torn tail
    file_count: int
    torn: Torn | None  # what was zeroed
    damaged_blocks: int = 0  # that were mended, or that only readers need

    @property
    def groups(self) -> Groups:
        """Where each group ends."""
        return self.logs.groups


class Recovery:
    """Reads one log; call `run` once."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        owner: Owner,
        start: Start | None,
        report: Callable[[str], None],
        who: Identity | None = None,
        mends: bool = False,
    ) -> None:
        """`who`: the node, with the members of its cluster; by default a single one, `owner`.

        `mends`: blocks that are damaged are mended, where peers can give what they held.
        """
        self._disk = disk
        self._directory = directory
        self._owner = owner
        self._report = report
        self._mends = mends
        self._damaged_blocks = 0
        self._first = 1 if start is None else start.file_number
        self._first_offset = 0 if start is None else start.offset
        member = member_id(owner.node_id, 0) if who is None else who.member
        first = () if who is None else who.beginning.configurations
        self._logs = (
            GroupLogs(member, None, first)
            if start is None
            else GroupLogs.at(member, start.log, first)
        )
        self._known_sequence = 0 if start is None else start.sequence  # in the checkpoint
        self._last_sequence = 0
        self._protected = True
        self._last_block = 0  # where it begins in the file that was read last; 0: there is none
        self._scan: FileScan | None = None

    def run(self) -> End | None:
        """Return the end of the log, repaired; None when there is no log yet.

        `report` hears which file is read.  Raises Corrupt, FsyncFailed, OSError.
        """
        names = self._disk.names(self._directory)
        full = sorted(n for n in map(log_format.number_of, names) if n is not None)
        if ACTIVE_NAME not in names:
            if not full and self._first == 1 and not self._known_sequence:
                return None
            self._finish_rotation(names)
        for number in full:
            if number >= self._first:
                self._read(full_name(number))
        scan = self._read(ACTIVE_NAME)
        if self._last_sequence < self._known_sequence:
            reason = f"ends before record {self._known_sequence} of the checkpoint"
            raise Corrupt(scan.path, scan.end.offset, reason)
        if self._logs.doubt is not None:
            number, offset, reason = self._logs.doubt
            name = ACTIVE_NAME if number == scan.header.file_number else full_name(number)
            raise Corrupt(self._path(name), offset, reason)
        return End(
            scan.header.file_number,
            scan.crc,
            scan.version,
            self._last_block or scan.end.offset,
            scan.end,
            self._logs,
            self._protected,
            len(full) + 1,
            scan.torn,
            self._damaged_blocks,
        )

    def _finish_rotation(self, names: list[str]) -> None:
        """Give the successor of the last full file the name that a crash kept from it."""
        active = self._path(ACTIVE_NAME)
        if SPARE_NAME not in names:
            raise Corrupt(active, 0, "the active log file is missing")
        logger.warning("the crash came between two log files; the next one is begun")
        self._disk.rename(self._path(SPARE_NAME), active)
        self._disk.sync_directory(self._directory)

    def _read(self, name: str) -> FileScan:
        """Read one file to its end and repair it.  Raises Corrupt."""
        self._report(f"reading {name}")
        descriptor = self._disk.open(self._path(name))
        try:
            self._protected = True  # the file before is full: it has no torn tail
            self._last_block = 0
            path, active = self._path(name), name == ACTIVE_NAME
            scan = FileScan(path, self._disk.view(descriptor), active)
            self._check_header(scan, name)
            while (damage := self._read_blocks(scan)) is not None:
                start = self._go_on(descriptor, scan, damage)
                if start is None:
                    raise damage
                scan = FileScan(path, self._disk.view(descriptor), active, start)
            self._scan = scan
            if scan.torn is not None:
                self._repair(descriptor, scan.path, scan.torn)
            return scan
        finally:
            self._disk.close(descriptor)

    def _read_blocks(self, scan: FileScan) -> Corrupt | None:
        """Follow the blocks of a file; return what ended that before the file did."""
        blocks = iter(scan)
        while True:
            try:
                block = next(blocks, None)
            except Corrupt as damage:
                return damage
            if block is None:
                return None
            for record in block.records:
                self._follow(scan, record)
            self._protected = not block.records
            self._last_block = block.offset

    def _go_on(self, descriptor: int, scan: FileScan, damage: Corrupt) -> NextBlock | None:
        """Return where to go on behind damage: at the block, mended, or, when it is only for
        readers, behind it.  None when this is not the way.
        """
        place, number = scan.end, scan.header.file_number
        if not self._mends or self._logs.is_alone:
            return None
        around = Surroundings(place, number, scan.crc, self._last_sequence)
        view = self._disk.view(descriptor)
        fields = {"path": damage.path, "offset": damage.offset, "reason": damage.reason}
        if number == self._first and place.offset < self._first_offset:
            found = block_header(view, around, scan.fits)
            if found is None:
                return None
            header, crc = found
            end, row = place.offset + header.block_size, place.row + header.row_count
            if end > self._first_offset:
                return None
            logger.error("damage in the log, before the checkpoint", extra={"fields": fields})
            self._damaged_blocks += 1
            if end == self._first_offset:
                self._last_sequence = self._known_sequence
            return NextBlock(end, place.block_seq + 1, row, crc)
        mended = mend(view, around, scan.fits)
        if mended is None or not all(map(self._may_lose, mended.lost)):
            return None
        fields["records"] = [lost.sequence for lost in mended.lost]
        logger.error("damage in the log; peers have what is lost", extra={"fields": fields})
        block = memoryview(page_memory(len(mended.data)))
        block[:] = mended.data
        self._disk.write(descriptor, block, place.offset)
        self._disk.sync(descriptor)
        self._damaged_blocks += 1
        return place

    def _may_lose(self, lost: Lost) -> bool:
        """Whether peers can give the content of a record, and nobody here has applied it."""
        return lost.sequence > self._known_sequence and self._logs.may_lose(lost.slices)

    def _check_header(self, scan: FileScan, name: str) -> None:
        """Check that a file belongs to this log, and to the file before it."""
        header, last = scan.header, self._scan
        if not self._owner.owns(header):
            raise Corrupt(scan.path, 0, "the file belongs to another node or cluster")
        number = self._first if last is None else last.header.file_number + 1
        if header.file_number != number:
            raise Corrupt(
                scan.path, 0, f"file {header.file_number} where file {number} of the log belongs"
            )
        if name not in (ACTIVE_NAME, full_name(number)):
            raise Corrupt(scan.path, 0, f"file {number} of the log has a wrong name")
        expected = NextBlock(scan.end.offset, 1, 0, 0) if last is None else last.end
        if last is None and number > 1:
            return
        if (scan.end.block_seq, scan.end.previous_crc) != (
            expected.block_seq,
            expected.previous_crc,
        ):
            raise Corrupt(scan.path, 0, "the file does not continue the one before")

    def _follow(self, scan: FileScan, record: Record) -> None:
        self._last_sequence = record.sequence
        if record.sequence <= self._known_sequence:
            return
        try:
            self._logs.follow(record, scan.header.file_number)
        except Damaged as damage:
            raise Corrupt(scan.path, record.offset, damage.reason) from damage

    def _repair(self, descriptor: int, path: str, torn: Torn) -> None:
        """Zero a torn tail, so that it is as if it had never been begun.

        The first sector last: while any other is left, the block shows that it is torn.
        """
        logger.warning(
            "the last write to the log was torn; it was never acknowledged and is removed",
            extra={"fields": {"path": path, "offset": torn.start, "end": torn.end}},
        )
        second = torn.start + SECTOR_SIZE
        zeros = memoryview(page_memory(torn.end - torn.start))
        self._disk.write(descriptor, zeros[: torn.end - second], second)
        self._disk.sync(descriptor)
        self._disk.write(descriptor, zeros[:SECTOR_SIZE], torn.start)
        self._disk.sync(descriptor)

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)
