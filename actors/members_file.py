"""Keeps who was a member (`members.bin`) before the log files that say so are deleted."""

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


def save_members(
    directory: str, files: LogFiles, registry: Registry, numbers: Sequence[int]
) -> None:
    """Add what full log files (`numbers` rise) say about members, durably.

    Only then may the files go; adding them again after a crash changes nothing.
    """
    opening = files.opening()
    codes = dict.fromkeys(entry.code for entry in registry.entries)
    for number in numbers:
        file = files.sealed(number)
        assert file.header is not None
        for code in codes if file.header.has_operations else ():
            entries = registry.versions(code)
            if any(entry.definition.aggregation == "unique" for entry in entries):
                gathering = Gathering(question_of(entries), entries, files.identity_key)
                gathering.count(file.rows, file.all_rows())
                opening = opening.with_rows(gathering.partial(), number)
    opening = replace(opening, through=max(opening.through, numbers[-1]))
    atomic_write(os.path.join(directory, FILE_NAME), checkpoint_format.encode(*opening.to_file()))
