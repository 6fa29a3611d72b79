"""Checks all bytes of each kind of file in a data directory, for `fsck.py`.

Every function yields what it finds and goes on behind it as far as the format lets it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from meterd.actors.files import known_rows, totals_files
from meterd.actors.files.mapped import map_file
from meterd.actors.files.segment_files import SegmentFiles
from meterd.actors.keeping import erased_file
from meterd.actors.starting import claims, peer_copy, restored
from meterd.core.housekeeping import inventory
from meterd.core.log.scan import FileScan, NextBlock
from meterd.core.segments.check import damages, stray_byte
from meterd.protocol import checkpoint_format, log_format, refused_format, run_format
from meterd.protocol import segment_format as fmt
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import ACTIVE_NAME, SECTOR_SIZE, Damaged, full_name, number_of
from meterd.protocol.segment_format import SegmentName

# How bad it is: nothing to do · worth a look · an operator must act · not ours to judge.
NOTE, WARNING, DAMAGE, NEWER = "note", "warning", "damage", "newer"

CONTAINERS: Final = (
    "metric_registry.bin",
    "partition_map.bin",
    erased_file.FILE_NAME,
    "members.bin",  # of versions without totals files
    "archive.bin",
    "pins.bin",
    "disk_history.bin",
    "last_backup.bin",
)
REFUSED: Final = ("refused.log", "refused.1.log")
# What else is in a directory that `inventory` knows by no pattern of its own.
OTHERS: Final = ("node.json", claims.GRANTS_FILE, peer_copy.COPIED, "lost+found")
LEFTOVERS: Final = (".tmp", ".new", ".old", ".incomplete", ".partial")


class Finding(NamedTuple):
    """One thing that is not as it should be."""

    severity: str
    file: str  # its name; "": the directory
    offset: int | None
    reason: str


def of_corrupt(error: Corrupt) -> Finding:
    """Return what an error says."""
    return Finding(DAMAGE, os.path.basename(error.path), error.offset, error.reason)


# Containers: checkpoints, parts, and small files


def containers(directory: str) -> Iterator[Finding]:
    """Check the small files."""
    paths = [Path(directory, name) for name in CONTAINERS]
    for path in (*paths, *sorted(Path(directory).glob("totals-*.tot"))):
        if path.exists():
            yield from container(path)
    for name in REFUSED:
        path = Path(directory, name)
        if path.exists():
            yield from _refused(path)
    try:
        restored.read(directory)
    except Corrupt as error:
        yield of_corrupt(error)
    spare = Path(directory, log_format.SPARE_NAME)
    if spare.exists():
        yield from _spare(spare)


def container(path: Path) -> Iterator[Finding]:
    """Check a container: front, every section, and that nothing else is in it."""
    data = map_file(str(path))
    try:
        _, sections = checkpoint_format.read_front(data.data)
        start = checkpoint_format.front_size(data.data)
    except Damaged as damage:
        yield Finding(DAMAGE, path.name, damage.offset, damage.reason)
        return
    manifest = int.from_bytes(data[12:16].tobytes(), "little")
    spans, end = [(0, checkpoint_format.HEAD_SIZE + manifest)], start
    for section in sections:
        checksum = checkpoint_format.CRC_SIZE if section.crc is None else 0
        spans.append((section.offset, section.size + checksum))
        end = max(end, section.offset + section.whole_size)
        try:
            checkpoint_format.check_section(data.data, section)
        except Damaged as damage:
            yield Finding(DAMAGE, path.name, damage.offset, damage.reason)
    yield from _rest(path, data, spans, end)


def identities(path: Path) -> Iterator[Finding]:
    """Check what of a run or part its reader leaves out."""
    if path.suffix == ".part":
        yield from container(path)
        return
    data = map_file(str(path))
    header = run_format.parse_header(data[: run_format.PAGE].data, len(data))
    spans = [(0, run_format.PAGE), *zip(header.offsets, header.sizes, strict=True)]
    yield from _rest(path, data, spans, header.file_size)


def _rest(path: Path, data: Any, spans: list[tuple[int, int]], end: int) -> Iterator[Finding]:
    stray = stray_byte(data, spans)
    if stray is not None:
        yield Finding(DAMAGE, path.name, stray, "a byte that belongs to nothing is not zero")
    if len(data) != end:
        said = f"the file has {len(data)} bytes, not {end}"
        yield Finding(DAMAGE, path.name, min(len(data), end), said)


def _refused(path: Path) -> Iterator[Finding]:
    """Entries prove nothing and are not synced, so a bad end is no damage."""
    data = path.read_bytes()
    walk, last = refused_format.Walk(data), 0
    for offset, number in walk:
        if last and number != last + 1:
            said = f"entry {number} where {last + 1} belongs"
            yield Finding(WARNING, path.name, offset, said)
        last = number
    if walk.end < len(data):
        said = "what follows is no entry; a start cuts it off"
        yield Finding(WARNING, path.name, walk.end, said)


def _spare(path: Path) -> Iterator[Finding]:
    """The next log file is zeros, and perhaps the header of one; a start makes it anew."""
    data = map_file(str(path))
    begin = 0
    if data[:1].any():
        try:
            log_format.parse_file_header(data.data)
            begin = log_format.FILE_HEADER_SIZE
        except Damaged:
            pass
    stray = stray_byte(data, [(0, begin)])
    if stray is not None:
        yield Finding(WARNING, path.name, stray, "not zero; a start makes it anew")


# Log files


def log_files(directory: str) -> Iterator[Finding]:
    """Check every block and record of every log file, also behind damage."""
    found = sorted((number, name) for name in os.listdir(directory) if (number := number_of(name)))
    last: NextBlock | None = None
    last_number = 0
    for number, name in [*found, (0, ACTIVE_NAME)]:
        path = os.path.join(directory, name)
        if not os.path.exists(path):
            continue
        try:
            scan = FileScan(name, map_file(path).data, active=name == ACTIVE_NAME)
        except Corrupt as error:
            yield of_corrupt(error)
            last = None
            continue
        if number and scan.header.file_number != number:
            yield Finding(DAMAGE, name, 0, f"it is log file {scan.header.file_number}")
        begin = scan.end
        follows = last is not None and scan.header.file_number == last_number + 1
        if follows and last is not None and last[1::2] != begin[1::2]:
            yield Finding(DAMAGE, name, 0, "the file does not continue the one before")
        last_number = scan.header.file_number
        last = yield from _blocks(name, map_file(path).data, scan)


def _blocks(
    name: str, data: memoryview, scan: FileScan
) -> Generator[Finding, None, NextBlock | None]:
    """Check the blocks of a file; return its end, None when it is not known for damage."""
    whole = True
    while True:
        try:
            for _ in scan:
                pass
            return scan.end if whole else None
        except Corrupt as error:
            whole = False
            yield of_corrupt(error)
        place = _next_block(data, scan)
        if place is None:
            return None
        scan = FileScan(name, data, scan.is_active, place)


def _next_block(data: memoryview, scan: FileScan) -> NextBlock | None:
    """Return the place of the next block of a file behind damage."""
    magic = log_format.BLOCK_MAGIC.to_bytes(4, "little")
    for at in range(scan.end.offset + SECTOR_SIZE, len(data), SECTOR_SIZE):
        if data[at : at + 4] != magic:
            continue
        try:
            header, _ = log_format.parse_block(data, at)
        except Damaged:
            continue
        if header.file_crc == scan.crc:
            return NextBlock(at, header.block_seq, header.first_row, header.previous_crc)
    return None


# Segments


def segments(directory: str) -> Iterator[Finding]:
    """Check every byte of every segment, superseded ones included, and their log files' sums."""
    for file in sorted(os.listdir(directory)):
        parsed = fmt.parse_name(file)
        if parsed is not None and parsed[1] == ".idx":
            yield from _segment(directory, parsed[0])


def _segment(directory: str, name: SegmentName) -> Iterator[Finding]:
    idx, seg, props = (
        _bytes(directory, name.file(suffix)) for suffix in (".idx", ".seg", ".props")
    )
    try:
        index = fmt.parse_index(idx.data)
    except Damaged as damage:
        yield Finding(DAMAGE, name.file(".idx"), damage.offset, damage.reason)
        return
    header = index.header
    for suffix, data, size, crc in (
        (".seg", seg, header.seg_size, header.seg_crc),
        (".props", props, header.props_size, header.props_crc),
    ):
        try:
            found, found_crc = fmt.parse_file_header(suffix, data[: fmt.HEADER_SIZE].data)
        except Damaged as damage:
            yield Finding(DAMAGE, name.file(suffix), damage.offset, damage.reason)
            continue
        if (found.set_id, found_crc) != (header.set_id, crc):
            yield Finding(DAMAGE, name.file(suffix), 0, "it does not belong to its index")
        if len(data) != size:
            said = f"the file has {len(data)} bytes, not {size}"
            yield Finding(DAMAGE, name.file(suffix), min(size, len(data)), said)
    for place in damages(index, idx, seg, props):
        yield Finding(DAMAGE, name.file(place.suffix), place.offset, place.reason)
    yield from _log_sizes(directory, name, index.files)


def _log_sizes(directory: str, name: SegmentName, files: Any) -> Iterator[Finding]:
    """Compare what a segment says of its log files with those that are still there."""
    for number, size in enumerate(files["log_size"].tolist(), name.first):
        path = os.path.join(directory, full_name(number))
        if os.path.exists(path) and os.stat(path).st_size != size:
            said = f"{name.file('.idx')} was made of a file of {size} bytes"
            yield Finding(DAMAGE, full_name(number), os.stat(path).st_size, said)


def _bytes(directory: str, name: str) -> Any:
    try:
        return map_file(os.path.join(directory, name))
    except FileNotFoundError:
        return np.frombuffer(b"", np.uint8)


# The directory


def coverage(directory: str, named: list[dict[str, Any]]) -> Iterator[Finding]:
    """Check that log files and segments together hold the log up to its end."""
    files = os.listdir(directory)
    held = {number for name in files if (number := number_of(name))}
    found = SegmentFiles(directory)
    found.refresh(files)
    held |= known_rows.in_segments(found, files)
    for covered in totals_files.standing(files):
        held |= set(range(covered.first, covered.last + 1))
    yield from map(of_corrupt, found.damaged())
    active = _active_number(directory)
    if active is not None:
        held.add(active)
    first_needed = min((state["log"]["file_number"] for state in named), default=1)
    if not held:
        if named:
            yield Finding(DAMAGE, ACTIVE_NAME, 0, "there is a checkpoint and no log")
        return
    first, last = min(held), max(held)
    for number in range(first, last + 1):
        if number not in held:
            said = "neither the log file nor a segment or totals file that covers it is there"
            yield Finding(DAMAGE, full_name(number), 0, said)
    deleted = first - 1
    if deleted > 0:
        said = f"no totals file says what log files up to {deleted} held"
        yield Finding(DAMAGE, full_name(deleted), 0, said)
    for number in known_rows.unknown(directory, named[0]) if named else ():
        said = "its segment is gone, and with it which of its events were stored"
        yield Finding(DAMAGE, full_name(number), 0, said)
    if first_needed > last:
        yield Finding(DAMAGE, full_name(first_needed), 0, "a checkpoint needs it; it is missing")


def _active_number(directory: str) -> int | None:
    for name in (ACTIVE_NAME, log_format.SPARE_NAME):
        try:
            header, _ = log_format.parse_file_header(_bytes(directory, name).data)
        except Damaged:
            continue
        return header.file_number
    return None


def names(directory: str, named: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """Name what no node knows, and what a crash has left; nothing is ever deleted here."""
    wanted = {file[0] for state in named for kind in ("runs", "parts") for file in state[kind]}
    present = sorted(os.listdir(directory))
    for name in present:
        parsed = fmt.parse_name(name)
        if name in (*CONTAINERS, *REFUSED, *OTHERS):
            continue
        if not inventory.is_known(name):
            yield Finding(WARNING, name, None, "no node makes such a file; it is left alone")
        elif name.startswith("ids-") and name not in wanted:
            yield Finding(NOTE, name, None, "no checkpoint names it; a node removes it")
        elif name.endswith(LEFTOVERS):
            yield Finding(NOTE, name, None, "left behind; it is replaced, or kept for an operator")
        elif parsed is not None and parsed[0].file(".idx") not in present:
            yield Finding(NOTE, name, None, "of a segment that was not finished")
