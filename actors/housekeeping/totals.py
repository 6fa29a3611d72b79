"""Keeps the totals files: folds log files before they go, merges, coarsens and rewrites the files.

What is to be done follows from the files and from what the usage actor said last (`standing`), so
a job that was interrupted is begun again and nothing is remembered.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors import totals_files
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.actors.log_files import LogFiles
from meterd.actors.totals_files import Covered, Making, TotalsFiles
from meterd.core.erasures import Erasure, Erasures
from meterd.core.registry import Registry
from meterd.core.totals_file import TotalsFile
from meterd.protocol.errors import Busy

if TYPE_CHECKING:
    from meterd.actors.housekeeping.jobs import Job, Task
    from meterd.actors.retention_sweeper import RetentionSweeper

FOLD, KIND = "fold", "totals"
LANE = "totals"

logger = logging.getLogger(__name__)


class Totals(Service):
    """See the module."""

    messages = (b"standing",)

    def __init__(self, sweeper: RetentionSweeper) -> None:
        super().__init__(sweeper)
        self._making: Making | None = None  # until the usage actor has said
        self._checked: dict[Covered, int] = {}  # erasures after which a file holds nothing of them
        self._superseded_go = False  # they may hold what was erased
        self.due = NEVER

    def handle(self, frames: list[Any]) -> None:
        said = msgpack.unpackb(frames[1])
        erasures = Erasures(
            map(Erasure.from_list, said["erasures"]), self.sweeper.files.identity_key
        )
        before, self._making = self._making, Making(said["totals_horizon"], erasures)
        changed = before is None or before.horizon != self._making.horizon
        if before is None or len(before.erasures) != len(erasures):
            self.sweeper.forget_refused(erasures)
            self._superseded_go = changed = True
        if changed:
            self.due = 0.0

    def fold(self, numbers: Sequence[int], registry: Registry, then: Callable[[Job], None]) -> None:
        """Begin to fold full log files (`numbers` rise) that may go; `then` hears of the end.

        Only when the job is done may they go.  Nothing is begun while another one folds, or before
        it is known what was erased: the next sweep asks again.
        """
        making = self._making
        if making is None or self.sweeper.jobs.active(FOLD) is not None:
            return

        def work(task: Task) -> dict[str, Any]:
            files = LogFiles(self.directory, making.erasures.key.tobytes())
            files.refresh()
            stand = files.totals()
            through = stand[-1].last if stand else 0
            events = 0
            for place, number in enumerate(numbers):
                task.advance(place / len(numbers))
                if number > through:
                    file = files.sealed(number)
                    events += totals_files.fold(self.directory, file, registry, making)
            return {"files": len(numbers), "events": events}

        def ended(job: Job) -> None:
            then(job)
            self.due = 0.0

        try:
            self.sweeper.jobs.start(FOLD, LANE, work, ended)
        except Busy:
            logger.warning("log files past the retention stay: too many jobs wait")

    def turn(self, now: float) -> None:
        self.due = now + self.sweeper.options.retention.sweep_interval
        if self._making is None or self.sweeper.jobs.active(KIND) is not None:
            return
        try:
            self.sweeper.jobs.start(KIND, LANE, self._work, self._finished)
        except Busy:
            logger.warning("totals files wait: too many jobs do")

    def _work(self, task: Task) -> dict[str, Any]:
        """Bring the files up to what is to be applied to them.  Runs in a thread."""
        making = self._making
        assert making is not None
        reader = TotalsFiles(self.directory)
        stand = reader.snapshot(os.listdir(self.directory))
        rewritten = merged = 0
        for place, file in enumerate(stand):
            task.advance(0.5 * place / len(stand))
            if self._needs(file, making):
                totals_files.rewrite(self.directory, [file], making)
                rewritten += 1
        while chosen := totals_files.to_merge(reader.snapshot(os.listdir(self.directory))):
            task.advance(0.5)
            totals_files.rewrite(self.directory, chosen, making)
            merged += len(chosen)
        left = [Covered(one.first, one.last) for one in reader.snapshot(os.listdir(self.directory))]
        removed = totals_files.remove_superseded(self.directory, left, self._superseded_go)
        self._superseded_go = False
        return {"rewritten": rewritten, "merged": merged, "removed": len(removed)}

    def _needs(self, file: TotalsFile, making: Making) -> bool:
        """Does a file hold what belongs to the opening state now, or what was erased?"""
        if file.next_timestamp < making.horizon:
            return True
        covered = Covered(file.first, file.last)
        known = max(file.erasures, self._checked.get(covered, 0))
        newer = making.erasures.since(known)
        if not len(newer):
            return False
        if any(newer.touches(file.account(n).decode()) for n in range(file.account_count)):
            return True
        self._checked[covered] = len(making.erasures)
        return False

    def _finished(self, job: Job) -> None:
        result = job.result or {}
        if any(result.values()):
            self.sweeper.files.refresh()
            self.sweeper.send("query", [b"removed", msgpack.packb({"files": []})])
