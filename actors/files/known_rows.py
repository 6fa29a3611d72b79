"""Says of which log files of a directory nobody knows any more which rows were stored.

A segment says it, or the checkpoint's bitmap of refused rows until the segment is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from meterd.actors.files.mapped import map_file
from meterd.actors.files.segment_files import SegmentFiles
from meterd.actors.files.totals_files import standing
from meterd.protocol import log_format
from meterd.protocol.log_format import Damaged, number_of


def unknown(directory: str, state: dict[str, Any]) -> Iterator[int]:
    """Yield full log files that neither segments, totals files nor a checkpoint's state know."""
    names = os.listdir(directory)
    found = SegmentFiles(directory)
    found.refresh(names)
    covered = in_segments(found, names)
    stand = standing(names)
    through = stand[-1].last if stand else 0
    for name in sorted(names):
        number = number_of(name)
        if number is None or number <= through or number in covered or number in state["refused"]:
            continue
        if number < state["position"][0] and _has_rows(os.path.join(directory, name)):
            yield number


def in_segments(found: SegmentFiles, names: list[str]) -> set[int]:
    """Return the log files that segments cover, but for one of which totals files hold a part."""
    stand = standing(names)
    through = stand[-1].last if stand else 0
    return {
        number
        for one in (*found.chosen(through + 1), *found.chosen(1 << 62, through))
        for number in range(one.name.first, one.name.last + 1)
    }


def _has_rows(path: str) -> bool:
    data = map_file(path).data
    at = log_format.FILE_HEADER_SIZE
    while at < len(data):
        try:
            header, _ = log_format.parse_block(data, at)
        except Damaged:
            return False  # whoever reads it says so
        if header.row_count:
            return True
        at += header.block_size
    return False
