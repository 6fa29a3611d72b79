"""Keeps who was a member (`members.bin`) before the segments that say so are deleted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from meterd.actors.disk import atomic_write
from meterd.actors.log_files import LogFiles
from meterd.core.gathering import Gathering
from meterd.core.opening import FILE_NAME, question_of
from meterd.core.registry import Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.segment_format import SegmentName


def save_members(
    directory: str, files: LogFiles, registry: Registry, names: Sequence[SegmentName]
) -> None:
    """Add what segments (`names` rise) say about members, durably.  Raises StorageError.

    Only then may they go; adding them again after a crash changes nothing.
    """
    opening = files.opening()
    codes = dict.fromkeys(entry.code for entry in registry.entries)
    wanted = set(names)
    for segment in files.segments.complete():
        if segment.name not in wanted or not segment.header.has_operations:
            continue
        reader = files.segments.open(segment)
        for code in codes:
            entries = registry.versions(code)
            if any(entry.definition.aggregation == "unique" for entry in entries):
                gathering = Gathering(question_of(entries), entries, files.identity_key)
                for runs in reader.runs(gathering.wanted):
                    for chunk in reader.chunks(
                        runs, gathering.wanted, gathering.needs_properties, True
                    ):
                        gathering.count_matches(chunk.heap, chunk.matches)
                opening = opening.with_rows(gathering.partial(), segment.name.last)
    opening = replace(opening, through=max(opening.through, names[-1].last))
    atomic_write(os.path.join(directory, FILE_NAME), checkpoint_format.encode(*opening.to_file()))
