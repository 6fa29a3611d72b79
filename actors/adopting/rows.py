"""Segments of a node that adopts: with the rows of a peer's partitions, and without its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.actors.adopting.loaded import Loaded
from meterd.actors.files.mapped import map_file
from meterd.actors.housekeeping.segment_merger import SegmentMerger
from meterd.core.log.record_cut import rows_of
from meterd.core.log.scan import FileScan
from meterd.protocol.log_format import ACTIVE_NAME, EVENTS, full_name
from meterd.protocol.segment_format import FILE, SegmentName

Mask = NDArray[np.bool_]

# What becomes one segment: it is written in one go, and ordinals have 32 bits.
SEGMENTS_TOGETHER: Final = 64
ORDINALS_TOGETHER: Final = 1 << 30


class Sealed(NamedTuple):
    """A log file without events, whose number a segment may have."""

    number: int
    crc: int  # of its last block
    size: int


def bundles(donor: Loaded) -> list[list[SegmentName]]:
    """Return the donor's segments, those together that become one."""
    found: list[list[SegmentName]] = []
    ordinals = 0
    for name in donor.segments():
        count = donor.open(name).header.ordinal_count
        full = found and len(found[-1]) >= SEGMENTS_TOGETHER
        if not found or full or ordinals + count > ORDINALS_TOGETHER:
            found.append([])
            ordinals = 0
        found[-1].append(name)
        ordinals += count
    return found


def take(
    donor: Loaded, bundle: Sequence[SegmentName], groups: Mask, sealed: Sealed, target: str
) -> tuple[SegmentName, int]:
    """Write a segment of the rows of some groups (bool[257]); return its name, and how many.

    Erased rows that are still there are among them, for their ids stay used; they go with the next
    compaction here, as they do there.  Raises Corrupt, DiskFull, FsyncFailed, OSError.
    """
    files = np.array([(0, sealed.crc, sealed.size)], FILE)
    name = SegmentName(sealed.number, sealed.number)
    merger = SegmentMerger(donor.directory, target)
    done = merger.choose(bundle, groups, name, files)
    return name, done.rows


def leave_out(own: Loaded, groups: Mask, target: str) -> list[SegmentName]:
    """Write the own segments that hold rows of some groups again, without these.

    Returns which ones another takes the place of.  Raises Corrupt, DiskFull, FsyncFailed, OSError.
    """
    replaced = []
    merger = SegmentMerger(own.directory, target)
    for name in own.segments():
        reader = own.open(name)
        if reader.header.row_count and groups[reader.all_accounts().partition].any():
            again = name._replace(generation=name.generation + 1)
            merger.choose([name], ~groups, again)
            replaced.append(name)
    return replaced


def refuse(own: Loaded, groups: Mask) -> None:
    """Have rows of some groups in log files that have no segment yet count as not stored.

    Raises Corrupt.
    """
    refused = own.replayer.applier.refused
    for number in refused.files():
        end = refused.rows(number)
        for first, gone in _rows_in_log(own.directory, number, groups):
            kept = gone[: max(0, end - first)]
            if kept.any():
                refused.note_some(number, first, kept, True)


def _rows_in_log(directory: str, number: int, groups: Mask) -> Iterator[tuple[int, Mask]]:
    """Yield of each record of events its first row in the file, and which rows are of the groups.

    Raises Corrupt.
    """
    path = Path(directory, full_name(number))
    active = not path.exists()
    if active:
        path = Path(directory, ACTIVE_NAME)
    scan = FileScan(str(path), map_file(str(path)).data, active)
    if scan.header.file_number != number:
        return  # it has gone, and its segment is there
    for block in scan:
        row = block.header.first_row
        for record in block.records:
            if record.kind == EVENTS:
                yield row, rows_of(record, groups[record.slices["partition"]])
            row += record.row_count


def parts_of(name: SegmentName) -> list[str]:
    """Return the files of a segment."""
    return [name.file(suffix) for suffix in (".idx", ".seg", ".props")]
