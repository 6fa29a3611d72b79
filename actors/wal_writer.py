"""The WAL-writer actor: makes records durable, many at once, and says so.

All that waits when a turn ends becomes one block, written and synced once; what arrives meanwhile
waits in the inbox and becomes the next block.  So the time a sync takes sets the size of the batch,
and there is no timer.  What happens to files is in `log/wal_log.py` and `log/wal_recovery.py`.

When there is no room for the next file, the records that wait are kept, unacknowledged, router and
sweeper are told that new requests must be refused, and making the file is tried again every
second.  Any other error of the disk ends the node: what is on it is then known only by reading it
again.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

import msgpack

from meterd.actors.actor import Actor
from meterd.actors.endings import IO_ERROR
from meterd.actors.files.disk import Disk, LocalDisk
from meterd.actors.log.wal_log import Entry, Log, block_count
from meterd.actors.log.wal_recovery import End, Owner, Recovery
from meterd.actors.log.wal_spare import BackgroundSpare
from meterd.actors.machine.journal import timed
from meterd.actors.starting import identity, start_checks
from meterd.core.log.group_logs import GroupLogs
from meterd.protocol.errors import BootFailed, DiskFull

TICK_SECONDS = 1.0
# After so long without an append the last record is protected (`Log.protect`).
PROTECT_SECONDS = 1.0
RETRY_AFTER_MS = 1_000
# What committed as it became durable nobody waits for in replication: it is told so many records,
# or so many seconds, later, in one message.  Far fewer than the ops it lets a group have under way
# (`core/raft/steady.py`).
TELL_RECORDS = 64
TELL_SECONDS = 0.01

APPENDS = "wal_appends_total"
BYTES_WRITTEN = "wal_bytes_written_total"
DAMAGED_BLOCKS = "wal_damaged_blocks_total"
FSYNC_DURATION = "wal_fsync_duration_seconds"
OFFSET = "wal_offset_bytes"
ROTATIONS = "wal_rotations_total"
SEGMENTS = "wal_segments"
TRUNCATED = "wal_truncated_bytes_total"

# What a block is when it is durable: committed, too, or that is for replication to say.
COMMITTED, DURABLE = b"\x01", b"\x00"

# Where the next block belongs: file number, offset, block_seq, row, previous_crc.
PLACE = struct.Struct("<5Q")

logger = logging.getLogger(__name__)


class MeasuredDisk(LocalDisk):
    """The file system, and how long each sync of the log took."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        super().__init__()
        self._observe = observe

    def sync(self, descriptor: int) -> None:
        began = time.perf_counter()
        super().sync(descriptor)
        self._observe(time.perf_counter() - began)


class DiskErrors:
    """End the node on an error of the disk that waiting cannot mend."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise BootFailed(IO_ERROR, f"the log's disk fails: {error}") from error


disk_errors = DiskErrors()


class WalWriter(Actor):
    """Owns the active log file."""

    name = "wal_writer"

    def open(self) -> None:
        directory = self.options.node.data_dir
        who = identity.read(directory)
        owner = Owner.of(who, directory)
        disk = self.make_disk()
        self._waiting: deque[Entry] = deque()  # bounded by what the router admits
        self._full = False
        self._untold: list[bytes] = []  # what replication has still to hear is durable
        self._untold_records = 0
        self._place = b""  # where the next block belongs
        self._look_at = 0.0  # when to look after files again
        self._appended_at = time.monotonic()
        # In a cluster replication passes on what is durable, together with what is committed.
        self._alone = not self.options.node.peers
        self._spare = BackgroundSpare(disk, directory, self.options.wal.segment_size)
        self._log = Log(disk, directory, self._spare, owner, time.time_ns)
        with disk_errors:
            with timed(start_checks.CHECKPOINT):
                start = start_checks.check_checkpoints(disk, directory)
            with timed(start_checks.LOG):
                report = self._report_reading
                end = Recovery(disk, directory, owner, start, report, who, mends=True).run()
            with timed(start_checks.SEGMENTS):
                start_checks.check_segments(disk, directory, owner, start)
            self._log.open(end)
            self._spare.prepare()
        self._count_from(end)
        new = GroupLogs(who.member, None, who.beginning.configurations)
        self._announce(new if end is None else end.logs)
        self._admit(None)  # an earlier process may have said something else
        self.ready()

    def make_disk(self) -> Disk:
        """Return the disk to write to."""
        return MeasuredDisk(lambda seconds: self.telemetry.observe(FSYNC_DURATION, seconds))

    def _report_reading(self, text: str) -> None:
        self.lifeline.say(f"status {text}")

    def _count_from(self, end: End | None) -> None:
        """Make every number exist from the start."""
        self._file_number = self._log.file_number
        torn = end.torn if end is not None else None
        self.telemetry.add(TRUNCATED, torn.end - torn.start if torn is not None else 0)
        self.telemetry.add(DAMAGED_BLOCKS, end.damaged_blocks if end is not None else 0)
        for name in (APPENDS, BYTES_WRITTEN, ROTATIONS):
            self.telemetry.add(name, 0)
        self._measure()

    def _announce(self, logs: GroupLogs) -> None:
        """Tell replication where the log ends, and what each group has of it."""
        opened = {
            "file_number": self._log.file_number,
            "offset": self._log.place.offset,
            "block_seq": self._log.place.block_seq,
            "row": self._log.place.row,
            **logs.groups.packed(),
        }
        self.send("replication", [b"opened", msgpack.packb(opened), msgpack.packb(logs.packed())])

    def handle(self, frames: list[bytes]) -> None:
        kind, sequence, head, payload = frames
        assert kind in (b"append", b"append_commit"), f"wal_writer takes no {kind!r}"
        commits = kind == b"append_commit"
        self._waiting.append(Entry(int.from_bytes(sequence, "little"), head, payload, commits))

    def flush(self) -> None:
        """Write what waits, a block at a time, and report each block."""
        if self._full:
            return  # `tick` tries again
        try:
            while self._waiting:
                self._write_block()
        except DiskFull as full:
            self._full = True
            logger.error("no room for the next log file, so requests are refused: %s", full)
            self._admit("disk_stop")

    def _write_block(self) -> None:
        """Make the first records that wait durable.  Raises DiskFull, and they still wait."""
        count = block_count(self._waiting)
        written = self._log.bytes_written
        with disk_errors:
            entries = list(islice(self._waiting, count))
            durable = self._log.append(entries)
        place = PLACE.pack(self._log.file_number, *self._log.place)
        commits = entries[0].commits
        flag = COMMITTED if commits else DURABLE
        self.send("usage" if self._alone else "replication", [b"commit", durable, place, flag])
        for _ in range(count):
            self._waiting.popleft()
        self._appended_at = time.monotonic()
        if self._alone:
            self._note_durable(durable, place, count, at_once=not commits)
        self.telemetry.add(APPENDS, count)
        self.telemetry.add(BYTES_WRITTEN, self._log.bytes_written - written)
        if self._log.file_number != self._file_number:
            self._count_rotation()

    def _note_durable(self, durable: bytes, place: bytes, count: int, at_once: bool) -> None:
        """Tell replication, at once where it has to commit what is durable."""
        self._untold.append(durable)
        self._untold_records += count
        self._place = place
        if at_once or self._untold_records >= TELL_RECORDS:
            self._tell_durable()
        elif len(self._untold) == 1:
            self.tick_by(self._appended_at + TELL_SECONDS)

    def _tell_durable(self) -> None:
        if self._untold:
            self.send("replication", [b"durable", b"".join(self._untold), self._place])
            self._untold, self._untold_records = [], 0

    def tick(self, now: float) -> float:
        self._tell_durable()
        if now < self._look_at:
            return self._look_at - now
        self._look_at = now + TICK_SECONDS
        with disk_errors:
            if self._full:
                self._retry()
            else:
                self._spare.prepare()
            idle = now - self._appended_at >= PROTECT_SECONDS
            if idle and not self._waiting and not self._log.protected:
                self._protect()
        self._measure()
        return TICK_SECONDS

    def _protect(self) -> None:
        with contextlib.suppress(
            DiskFull
        ):  # it has waited so long, it can wait until there is room
            self._log.protect()
        self._count_rotation()

    def _count_rotation(self) -> None:
        self.telemetry.add(ROTATIONS, self._log.file_number - self._file_number)
        self._file_number = self._log.file_number
        self._spare.prepare()

    def _retry(self) -> None:
        """Try again to go on; say again how it stands, for the router may have restarted."""
        try:
            while self._waiting:
                self._write_block()
        except DiskFull:
            self._admit("disk_stop")
            return
        self._full = False
        logger.warning("there is room for log files again")
        self._admit(None)

    def _admit(self, code: str | None) -> None:
        admission = {"source": self.name, "code": code, "retry_after_ms": RETRY_AFTER_MS}
        self.send("router", [b"admission", msgpack.packb(admission)])
        waits, room = (b"0", b"1") if code is None else (b"1", b"0")
        self.send("retention_sweeper", [b"no_room", self.name.encode(), waits])
        if not self._alone:
            self.send("replication", [b"room", room])

    def _measure(self) -> None:
        place, files = self._log.place, self._log.file_number - 1
        self.telemetry.set(OFFSET, files * self.options.wal.segment_size + place.offset)
        self.telemetry.set(SEGMENTS, self._log.file_count)

    def drained(self) -> bool:
        return not self._waiting

    def close(self) -> None:
        self._tell_durable()
        with disk_errors:
            self._protect()
            self._log.close()
            self._spare.close()
