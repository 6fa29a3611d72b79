"""Control totals of a segment, which holds stored rows only."""

from __future__ import annotations

import numpy as np

from meterd.actors.files.segment_files import read_segment
from meterd.core.housekeeping.control_totals import ControlTotals
from meterd.core.kernels.gather import ENTRY, NUMBER, VALUE
from meterd.core.segments.reader import EVERYTHING
from meterd.protocol.backup_manifest import TotalsMap
from meterd.protocol.segment_format import SegmentName


def segment_totals(directory: str, name: SegmentName) -> TotalsMap:
    """Count a segment.  Raises Corrupt."""
    reader, counted = read_segment(directory, name), ControlTotals()
    for runs in reader.runs(EVERYTHING):
        for matches, _ in reader.found(runs, EVERYTHING):
            partition = runs.accounts.partition[matches[:, ENTRY] >> 32]
            number = matches[:, NUMBER].astype(np.uint16)
            counted.add(partition.astype(np.uint16), number, matches[:, VALUE])
    return counted.totals
