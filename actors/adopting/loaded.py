"""A data directory that no node runs on, loaded: its state, and where each group stands in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from meterd.actors.backups.replaying import Replayer
from meterd.actors.files.disk import LocalDisk, sync_directory
from meterd.actors.housekeeping.segment_making import SegmentMaker
from meterd.actors.log import replay
from meterd.actors.log.wal_recovery import End, Owner, Recovery
from meterd.actors.options import Limits
from meterd.actors.questions.log_files import LogFiles
from meterd.actors.starting import start_checks
from meterd.actors.starting.identity import Identity
from meterd.core.questions.totals_file import TotalsFile
from meterd.core.segments.reader import SegmentReader
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import ACTIVE_NAME, FILE_HEADER_SIZE, META_GROUP, full_name
from meterd.protocol.segment_format import SegmentName

Say = Callable[[str], None]
EVERY_FILE = 1 << 62


@dataclass(frozen=True, slots=True)
class Loaded:
    """See the module."""

    directory: str
    node: int  # whose it is
    replayer: Replayer
    end: End  # of its log
    files: LogFiles

    @property
    def member(self) -> int:
        """Who that node is in its groups; 0: it does not know itself yet, and is in none."""
        known = self.replayer.state.members.nodes.get(self.node)
        return 0 if known is None else known.member

    def holds(self) -> NDArray[np.bool_]:
        """Return the partitions (bool[256]) of which it has a replica by its configurations."""
        found = np.zeros(META_GROUP, np.bool_)
        for group, configuration in self.replayer.applier.facts.configurations.items():
            if group < META_GROUP and self.member in configuration.members:
                found[group] = True
        return found

    @property
    def totals(self) -> tuple[TotalsFile, ...]:
        """The totals files that stand."""
        return self.files.totals()

    def segments(self) -> list[SegmentName]:
        """Return the segments that are read: those behind the totals files."""
        stand = self.totals
        through = stand[-1].last if stand else 0
        return [one.name for one in self.files.segments.chosen(EVERY_FILE, through)]

    def open(self, name: SegmentName) -> SegmentReader:
        """Return the reader of a segment.  Raises Corrupt."""
        found = {one.name: one for one in self.files.segments.complete()}
        return self.files.segments.open(found[name])


def load(directory: str, who: Identity, node: int, limits: Limits, say: Say) -> Loaded:
    """Load a directory as its newest checkpoint has it; nothing of its log is applied.

    who: the node that reads it; node: whose it is.  Raises Corrupt.
    """
    disk, owner = LocalDisk(), Owner.of(who, directory)
    start = start_checks.check_checkpoints(disk, directory)
    end = Recovery(disk, directory, owner, start, say, who, mends=True).run()
    if end is None:
        raise Corrupt(os.path.join(directory, ACTIVE_NAME), 0, "there is no log")
    replayer = Replayer(directory, say, who, limits)
    return Loaded(directory, node, replayer, end, LogFiles(directory, who.identity_key))


def bring_up(found: Loaded, committed: NDArray[np.uint64]) -> None:
    """Apply its log as far as it is committed (u64[257]), and make segments of all log files.

    It takes no more records then: the active file gets the name of a full one.  Raises Corrupt,
    DiskFull, OSError.
    """
    replayer: Any = found.replayer
    end, directory = found.end, found.directory
    replay.replay(replayer, end.groups.sequence, committed)
    for ready in replayer.queue.waiting():  # their rows are not stored
        replayer.applier.wait(ready)
    replayer.finish()
    active = os.path.join(directory, ACTIVE_NAME)
    os.truncate(active, end.place.offset)
    os.rename(active, os.path.join(directory, full_name(end.file_number)))
    sync_directory(directory)
    found.files.refresh()
    maker = SegmentMaker(directory, found.files.identity_key)
    refused = replayer.applier.refused
    for number in found.files.waiting():
        packed, rows = refused.packed(number)
        if rows != maker.count_rows(number):
            reason = f"which of its rows were stored is known of {rows} only"
            raise Corrupt(os.path.join(directory, full_name(number)), 0, reason)
        maker.make(number, lz4.block.decompress(packed), rows, lambda _done: None)
    found.files.refresh()


def first_ops(found: Loaded) -> NDArray[np.uint64]:
    """Return the least index of each group in the log files that are there (u64[257]; 0: none).

    Raises Corrupt.
    """
    first = min(found.files.full_numbers, default=found.end.file_number)
    position = replay.Position(first, FILE_HEADER_SIZE, 0, 0, 0)
    reader = replay.LogReader(found.directory, position, found.end.groups.sequence)
    return reader.first_index()
