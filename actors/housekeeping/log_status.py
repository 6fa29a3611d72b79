"""Answers what log files there are, and what holds them (`wal_status`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meterd.actors.housekeeping.archive import Archive
from meterd.actors.housekeeping.log_retention import Assessment, LogRetention
from meterd.actors.housekeeping.pins import Pins
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.core.log_holds import HOLDERS
from meterd.protocol.log_format import ACTIVE_NAME, SPARE_NAME

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

# Files that one answer lists; the oldest, which are those that should go.
FILES_MAX = 10_000


class LogStatus(Service):
    """See the module."""

    requests = ("wal_status",)

    def __init__(
        self, sweeper: RetentionSweeper, retention: LogRetention, archive: Archive, pins: Pins
    ) -> None:
        super().__init__(sweeper)
        self._retention = retention
        self._archive = archive
        self._pins = pins
        self.due = NEVER

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        assessment = self._retention.assess()
        files = assessment.files
        answer: dict[str, Any] = {
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "open_bytes": self._size_of(ACTIVE_NAME),
            "spare_bytes": self._size_of(SPARE_NAME),
            "first": files[0].number if files else None,
            "last": files[-1].number if files else None,
            "oldest": files[0].sealed if files else None,
            "held": _by_holder(assessment),
            "pins": [pin._asdict() for pin in self._pins.active],
            "archive": self._archive.status(),
        }
        if fields["holders"]:
            answer["segments"] = [
                {
                    "number": file.number,
                    "bytes": file.size,
                    "sealed": file.sealed,
                    "held_by": list(assessment.held[file.number]),
                }
                for file in files[:FILES_MAX]
            ]
        return answer

    def _size_of(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):  # between two renames
            return os.stat(os.path.join(self.directory, name)).st_size
        return 0


def _by_holder(assessment: Assessment) -> list[dict[str, Any]]:
    """Return what each holder holds, alone or with others; those that hold nothing are left out."""
    rows: list[dict[str, Any]] = []
    for holder in HOLDERS:
        sizes: Sequence[int] = [
            file.size for file in assessment.files if holder in assessment.held[file.number]
        ]
        if sizes:
            rows.append({"holder": holder, "files": len(sizes), "bytes": sum(sizes)})
    return rows
