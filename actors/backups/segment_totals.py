"""Control totals of a segment, which holds stored rows only."""

from __future__ import annotations

from meterd.protocol.backup_manifest import TotalsMap
from meterd.protocol.errors import Internal


def segment_totals(directory: str, first: int, last: int) -> TotalsMap:
    """Count the segment that covers these log files.  Raises Corrupt."""
    raise Internal(f"{directory}: log files {first} to {last} lie in a segment of a later version")
