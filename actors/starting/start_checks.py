"""Checks the files of a data directory before they are used: what a start does, in order.

| check | by | what |
|---|---|---|
| data directory writable and locked | `node` | it is ours alone (`directory.py`) |
| identity checked | `node` | it belongs to this node and version (`identity.py`) |
| checkpoint checked | `wal_writer` | magic, version, checksums; a damaged newest falls back |
| log checked | `wal_writer` | checksums, hash chain behind the checkpoint (`log/wal_recovery.py`) |
| segments checked | `wal_writer` | size and header of all log files, segments, totals files |

Each is logged with its duration; the first that fails ends the start and names file and offset.
Only then is the log announced, so nothing is served and nothing is appended before.
"""

from __future__ import annotations

import logging
import os

from meterd.actors.files.disk import Disk
from meterd.actors.files.segment_files import SegmentFiles
from meterd.actors.files.totals_files import standing
from meterd.actors.log.wal_recovery import Owner, Start
from meterd.protocol import checkpoint_format, log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import FILE_HEADER_SIZE, SECTOR_SIZE, Damaged

DIRECTORY = "data directory writable and locked"
IDENTITY = "identity checked"
CHECKPOINT = "checkpoint checked"
LOG = "log checked"
SEGMENTS = "segments checked"
ORDER = (DIRECTORY, IDENTITY, CHECKPOINT, LOG, SEGMENTS)

# The newest first.
CHECKPOINTS = ("checkpoint.bin", "checkpoint.prev.bin")

logger = logging.getLogger(__name__)


def check_checkpoints(disk: Disk, directory: str) -> Start | None:
    """Return what the newest checkpoint that checks says about the log; None when there is none.

    Raises Corrupt when there are some and none checks; OSError.
    """
    damaged: Corrupt | None = None
    for name in CHECKPOINTS:
        path = os.path.join(directory, name)
        try:
            descriptor = disk.open(path)
        except FileNotFoundError:
            continue
        try:
            state = checkpoint_format.decode(disk.view(descriptor))[0]
            log, position = state["log"], state.get("position", (0, 0))
            return Start(log["file_number"], log, position[1])
        except Damaged as damage:
            damaged = Corrupt(path, damage.offset, damage.reason)
            logger.warning("%s; the one before is used", damaged)
        finally:
            disk.close(descriptor)
    if damaged is not None:
        raise damaged
    return None


def check_segments(disk: Disk, directory: str, owner: Owner, start: Start | None) -> int:
    """Check sizes and headers of segments, and of full log files before where reading began.

    Returns how many log files there are.  A damaged segment is made again as long as its log files
    are there.  Raises Corrupt, OSError.
    """
    first = 1 if start is None else start.file_number
    names = disk.names(directory)
    numbers = [log_format.number_of(name) for name in names]
    older = sorted(number for number in numbers if number is not None and number < first)
    for number in older:
        path = os.path.join(directory, log_format.full_name(number))
        _check_full_file(disk, path, number, owner)
    segments = SegmentFiles(directory)
    segments.refresh(names)
    stand = standing(names)
    held = {number for number in numbers if number is not None}
    # A segment that was folded may be deleted by half.
    held |= {number for one in stand for number in range(one.first, one.last + 1)}
    damage = segments.lost(held)
    if damage is not None:
        raise damage
    for covered in stand:
        _check_totals(disk, os.path.join(directory, covered.name))
    return len(older)


def _check_totals(disk: Disk, path: str) -> None:
    descriptor = disk.open(path)
    try:
        checkpoint_format.check_front(disk.view(descriptor))
    except Damaged as damage:
        raise Corrupt(path, damage.offset, damage.reason) from damage
    finally:
        disk.close(descriptor)


def _check_full_file(disk: Disk, path: str, number: int, owner: Owner) -> None:
    descriptor = disk.open(path)
    try:
        size = disk.size(descriptor)
        if size < FILE_HEADER_SIZE or size % SECTOR_SIZE:
            raise Corrupt(path, size, "not a size that a full log file has")
        header, _ = log_format.parse_file_header(disk.view(descriptor)[:FILE_HEADER_SIZE])
    except Damaged as damage:
        raise Corrupt(path, damage.offset, damage.reason) from damage
    finally:
        disk.close(descriptor)
    if not owner.owns(header):
        raise Corrupt(path, 0, "the file belongs to another node or cluster")
    if header.file_number != number:
        raise Corrupt(path, 0, f"file {header.file_number} where file {number} belongs")
