"""Makes a copied directory one that a node can start on.

`rsync -a` or `cp -a` of a running node's directory copies each file at another moment.  What was
never written in place is whole; three things may not fit together, and are put right here:

  * the log's last file was read while it was written: a sector that had not been written yet ends
    it, with a warning; everything behind it was acknowledged after the copy had begun
  * `wal.log` may be a later file than the one after the last full one, which then lies under its
    second name (`wal-….open`); what is behind a gap is left out
  * a checkpoint may name files that the copy lacks, reach further than its log, or leave to a
    segment that the copy lacks which rows were stored: then the one before is taken, or, when the
    log goes back to its beginning, none

Nothing else is forgiven: any other damage is corruption, here as at every start.  All of it happens
before `node.json` is written anew, so a crash in between repeats it.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from meterd.actors import endings
from meterd.actors.files import known_rows
from meterd.actors.files.disk import atomic_write, sync_data, sync_directory, write_all
from meterd.actors.keeping import run_files
from meterd.actors.keeping.held_checkpoint import IN_TURN, PREFIX
from meterd.core.housekeeping import inventory
from meterd.core.log.scan import FileScan, NextBlock
from meterd.protocol import checkpoint_format, log_format
from meterd.protocol.errors import BootFailed, Corrupt
from meterd.protocol.log_format import (
    ACTIVE_NAME,
    SPARE_NAME,
    Damaged,
    FileHeader,
    full_name,
    number_of,
    number_of_open,
)

CHECKPOINTS = ("checkpoint.bin", "checkpoint.prev.bin")
INCOMPLETE = ".incomplete"
ZEROS = bytes(1 << 20)

logger = logging.getLogger(__name__)


class _Found(NamedTuple):
    """What a log file of the copy holds."""

    name: str
    header: FileHeader
    end: NextBlock
    size: int
    sequence: int  # of its last record; 0 without one


def settle(directory: str) -> None:
    """Make a copied directory startable.  Raises BootFailed, DiskFull, FsyncFailed, OSError."""
    logger.warning("this directory is a copy of another; its log ends where the copy caught it")
    try:
        last = _settle_log(Path(directory))
        if last is not None:
            _settle_checkpoints(Path(directory), last)
    except Corrupt as corrupt:
        raise BootFailed(endings.CORRUPT, f"{corrupt}; {corrupt.hint}") from corrupt
    sync_directory(directory)


# The log


def _settle_log(directory: Path) -> _Found | None:
    """Leave one unbroken log, the last file of which is the active one; return that."""
    names = sorted(os.listdir(directory))
    full = sorted(number for name in names if (number := number_of(name)) is not None)
    previous = _scan(directory, full_name(full[-1]), False) if full else None
    tail = list(_tail(directory, names, previous))
    if not tail and previous is None:
        return None
    for found, following in pairwise(tail):
        _cut(directory / found.name, found.end.offset)
        os.rename(directory / found.name, directory / full_name(found.header.file_number))
        assert following.header.file_number == found.header.file_number + 1
    last = tail[-1] if tail else _empty(previous)
    for name in names:
        stale = name == ACTIVE_NAME and name != last.name
        if stale or name == SPARE_NAME or (number_of_open(name) and name != last.name):
            (directory / name).unlink(missing_ok=True)
    if tail:
        _finish(directory, last)
    else:
        _make_file(directory / ACTIVE_NAME, last.header)
    _drop_later(directory, last.header.file_number)
    known = [found.sequence for found in (previous, *tail) if found is not None]
    return last._replace(sequence=max(known))


def _tail(directory: Path, names: list[str], previous: _Found | None) -> Iterator[_Found]:
    """Yield the files behind the last full one, as far as each continues the one before."""
    aliases = {n: name for name in names if (n := number_of_open(name)) is not None}
    active = _scan(directory, ACTIVE_NAME, True) if ACTIVE_NAME in names else None
    if previous is not None:
        number = previous.header.file_number + 1
    else:
        number = min([*aliases, *([active.header.file_number] if active else [])], default=0)
    before = previous
    while True:
        copies = [_scan(directory, aliases[number], True)] if number in aliases else []
        if active is not None and active.header.file_number == number:
            copies.append(active)
        if not copies:
            return
        # Of two copies of one file the later reaches further.
        found = max(copies, key=lambda one: one.end.offset)
        if before is not None and not _continues(before, found):
            return
        yield found
        before, number = found, number + 1


def _continues(before: _Found, found: _Found) -> bool:
    header = found.header
    return (header.first_block_seq, header.previous_crc) == (
        before.end.block_seq,
        before.end.previous_crc,
    )


def _scan(directory: Path, name: str, copied: bool) -> _Found:
    """Read a log file to its end.  Raises Corrupt."""
    path = directory / name
    with _mapped(path) as buffer:
        scan = FileScan(str(path), buffer, copied=copied)
        sequence = 0
        for block in scan:
            sequence = block.records[-1].sequence if block.records else sequence
        if scan.torn is not None:
            logger.warning(
                "the copy caught a log file while it was written",
                extra={"fields": {"path": str(path), "offset": scan.torn.start}},
            )
        return _Found(name, scan.header, scan.end, len(buffer), sequence)


def _empty(previous: _Found | None) -> _Found:
    """Return the file that follows a full one, with nothing in it yet."""
    assert previous is not None, "there is a full file"
    end = previous.end
    header = previous.header._replace(
        file_number=previous.header.file_number + 1,
        first_block_seq=end.block_seq,
        previous_crc=end.previous_crc,
    )
    place = end._replace(offset=log_format.FILE_HEADER_SIZE, row=0)
    return _Found(ACTIVE_NAME, header, place, log_format.FILE_HEADER_SIZE, 0)


def _make_file(path: Path, header: FileHeader) -> None:
    atomic_write(path, log_format.encode_file_header(header))


def _finish(directory: Path, last: _Found) -> None:
    """Make a file the active one, with zeros behind its last block."""
    path = directory / last.name
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset in range(last.end.offset, last.size, len(ZEROS)):
            write_all(descriptor, ZEROS[: last.size - offset], offset)
        sync_data(descriptor)
    finally:
        os.close(descriptor)
    if last.name != ACTIVE_NAME:
        os.rename(path, directory / ACTIVE_NAME)


def _cut(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        sync_data(descriptor)
    finally:
        os.close(descriptor)


def _drop_later(directory: Path, active: int) -> None:
    """Remove what was derived from log files that this copy holds less of."""
    for name in os.listdir(directory):
        kind = inventory.kind_of(name)
        if kind.folder == "wal" and name.endswith(".idx") and inventory.log_number(name) >= active:
            (directory / name).unlink()
        segment = inventory.segment_of(name)
        if segment is not None and segment.last >= active:
            (directory / name).unlink()


# Checkpoints


def _settle_checkpoints(directory: Path, last: _Found) -> None:
    """Put away checkpoints that this copy cannot use.  Raises BootFailed."""
    reasons = []
    for name in CHECKPOINTS:
        path = directory / name
        if not path.exists():
            continue
        reason = _why_not(directory, path, last)
        if reason is None:
            return
        logger.warning("%s of the copy cannot be used: %s", name, reason)
        reasons.append(f"{name}: {reason}")
        os.rename(path, path.with_name(name + INCOMPLETE))
    if _take_held(directory, last):
        return
    first = min((n for name in os.listdir(directory) if (n := number_of(name))), default=1)
    if reasons and first > 1:
        raise BootFailed(
            endings.CORRUPT,
            f"the copy has no complete checkpoint ({'; '.join(reasons)}), and its log no longer"
            " begins at the beginning; copy again, after meterctl backup hold",
        )


def _take_held(directory: Path, last: _Found) -> bool:
    """Use a checkpoint that was kept for copies, the newest that the copy has whole."""
    kept = [(prefix, directory / (prefix + CHECKPOINTS[0])) for prefix in (PREFIX, *IN_TURN)]
    kept = [one for one in kept if one[1].exists()]
    for prefix, path in sorted(kept, key=lambda one: -one[1].stat().st_mtime):
        if _why_not(directory, path, last, prefix) is not None:
            continue
        logger.warning("%s, kept for copies, is used", path.name)
        held = [name for name in os.listdir(directory) if name.startswith(prefix)]
        # The checkpoint last: a crash before leaves it to be found again.
        for name in sorted(held, key=lambda name: name == path.name):
            os.rename(directory / name, directory / name.removeprefix(prefix))
        return True
    return False


def _why_not(directory: Path, path: Path, last: _Found, prefix: str = "") -> str | None:
    """Say why a checkpoint, whose files have a prefix, cannot be used; None when it can."""
    try:
        with _mapped(path) as buffer:
            state = checkpoint_format.read_state(bytes(_front(buffer)))
    except Damaged as damage:
        return damage.reason
    if state["log"]["sequence"] > last.sequence:
        return "it reaches further than the log"
    for number in range(state["log"]["file_number"], last.header.file_number):
        if not (directory / full_name(number)).exists():
            return f"{full_name(number)} is missing"
    for name in inventory.identity_files(state):
        if not (_is_whole(directory / name) or _is_whole(directory / (prefix + name))):
            return f"{name} is missing"
    for number in known_rows.unknown(str(directory), state):
        return f"it does not say which rows of log file {number} were stored"
    return None


def _is_whole(path: Path) -> bool:
    """Is a file of identities there, as long as it says?"""
    try:
        if path.suffix == ".run":
            run_files.open_run(path, check=False)
            return True
        with _mapped(path) as buffer:
            _, sections = checkpoint_format.read_front(_front(buffer))
            return all(one.offset + one.whole_size <= len(buffer) for one in sections)
    except (Corrupt, Damaged, FileNotFoundError):
        return False


def _front(buffer: memoryview) -> memoryview:
    if len(buffer) < checkpoint_format.HEAD_SIZE:
        raise Damaged(0, "shorter than its head")
    return buffer[: checkpoint_format.front_size(buffer[: checkpoint_format.HEAD_SIZE])]


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield memoryview(b"")
            return
        mapped: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        yield memoryview(mapped)
