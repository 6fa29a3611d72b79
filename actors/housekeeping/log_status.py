"""Answers what log files there are, and what holds them (`wal_status`)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from meterd.actors.housekeeping.log_holding import Assessment
from meterd.actors.housekeeping.log_retention import LogRetention
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.protocol.log_format import ACTIVE_NAME, SPARE_NAME

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

# Files that one answer lists; the oldest, which are those that should go.
FILES_MAX = 10_000


class LogStatus(Service):
    """See the module."""

    requests = ("wal_status",)

    def __init__(self, sweeper: RetentionSweeper, retention: LogRetention) -> None:
        super().__init__(sweeper)
        self._retention = retention
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
            "pins": [pin._asdict() for pin in self.sweeper.pins.active],
            "archive": self.sweeper.archive.status(),
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
    return [
        {"holder": holder, "files": len(files), "bytes": sum(file.size for file in files)}
        for holder, files in assessment.by_holder().items()
        if files
    ]
