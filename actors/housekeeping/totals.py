"""Keeps the totals files: folds segments before they go, merges, coarsens and rewrites the files.

What is to be done follows from the files and from what the usage actor said last (`expiry`), so
a job that was interrupted is begun again and nothing is remembered.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.files import totals_files
from meterd.actors.files.totals_files import Covered, Making, TotalsFiles
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.actors.questions.log_files import LogFiles
from meterd.core.questions.totals_file import TotalsFile
from meterd.core.state.erasures import Erasure, Erasures
from meterd.core.state.registry import Registry
from meterd.protocol.errors import Busy, DiskFull, MeterdError, StorageError
from meterd.protocol.segment_format import SegmentName

if TYPE_CHECKING:
    from meterd.actors.housekeeping.jobs import Job, Task
    from meterd.actors.retention_sweeper import RetentionSweeper

FOLD, KIND = "fold", "totals"
LANE = "totals"
RETRY_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Totals(Service):
    """See the module."""

    messages = (b"expiry",)

    def __init__(self, sweeper: RetentionSweeper) -> None:
        super().__init__(sweeper)
        self._making: Making | None = None  # until the usage actor has said
        # The erasures of which a file holds nothing, as `Erasures.latest` says it.
        self._checked: dict[Covered, dict[int, int]] = {}
        self._is_behind = True  # what was folded or told since is still to be applied to the files
        self._superseded_go = False  # they may hold what was erased
        self._refusals_stay = False  # those of accounts erased since are still there
        for path in Path(self.directory).glob("totals-*.tmp"):
            path.unlink()
        self.due = NEVER

    def handle(self, frames: list[Any]) -> None:
        said = msgpack.unpackb(frames[1])
        erasures = Erasures(
            map(Erasure.from_list, said["erasures"]), self.sweeper.files.identity_key
        )
        before, self._making = self._making, Making(said["totals_horizon"], erasures)
        changed = before is None or before.horizon != self._making.horizon
        # The usage actor may have started anew, and know others than before instead of more.
        if not erasures.is_same(() if before is None else before.erasures):
            self._superseded_go = self._refusals_stay = changed = True
        if changed:
            self._ask_for_work()

    def _ask_for_work(self) -> None:
        self._is_behind, self.due = True, 0.0

    @property
    def through(self) -> int:
        """The last log file that totals files stand for; 0 when they cannot be read."""
        try:
            stand = self.sweeper.files.totals()
        except MeterdError as error:
            logger.error("nothing past the retention can go: %s", error)
            return 0
        return stand[-1].last if stand else 0

    @property
    def erasures(self) -> Erasures | None:
        """What was erased; None until the usage actor has said."""
        return None if self._making is None else self._making.erasures

    @property
    def is_folding(self) -> bool:
        return self.sweeper.jobs.active(FOLD) is not None

    def fold(
        self, names: Sequence[SegmentName], registry: Registry, then: Callable[[Job], None]
    ) -> bool:
        """Begin to fold segments (`names` rise) that may go; `then` hears of the end.

        Those that totals files cover then may go.  False: not before it is known what was erased,
        or because too many jobs wait.
        """
        making = self._making
        if making is None:
            return False

        def work(task: Task) -> dict[str, Any]:
            stand = LogFiles(self.directory, making.erasures.key.tobytes()).totals()
            through = stand[-1].last if stand else 0
            events = 0
            for place, name in enumerate(names):
                if name.last <= through:
                    continue
                if name.first != through + 1:
                    raise StorageError(f"no totals file covers log file {name.first - 1}")

                def step(place: int = place) -> None:
                    task.advance(place / len(names))

                events += totals_files.fold(self.directory, name, registry, making, step)
                through = name.last
            return {"segments": len(names), "events": events}

        def ended(job: Job) -> None:
            then(job)
            self._ask_for_work()

        try:
            self.sweeper.jobs.start(FOLD, LANE, work, ended)
        except Busy:
            logger.warning("segments past the retention stay: too many jobs wait")
            return False
        return True

    def turn(self, now: float) -> None:
        self.due = now + self.sweeper.options.retention.sweep_interval
        if self._making is None or self.sweeper.jobs.active(KIND) is not None:
            return
        if self.sweeper.holds_still:  # only what makes room may write
            self.due = now + RETRY_SECONDS
            return
        self._forget_refusals(now)
        if not self._is_behind or not totals_files.standing(os.listdir(self.directory)):
            self._remove_superseded()
            return
        try:
            self.sweeper.jobs.start(KIND, LANE, self._work, self._finished)
            self._is_behind = False
        except Busy:
            logger.warning("totals files wait: too many jobs do")

    def _forget_refusals(self, now: float) -> None:
        """Forget the refused events of erased accounts; not while there is no room for the rest."""
        if self._refusals_stay and self._making is not None:
            try:
                self.sweeper.forget_refused(self._making.erasures)
            except DiskFull:
                self.due = now + RETRY_SECONDS
            else:
                self._refusals_stay = False

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
        return {"rewritten": rewritten, "merged": merged}

    def _needs(self, file: TotalsFile, making: Making) -> bool:
        """Does a file hold what belongs to the opening state now, or what was erased?"""
        if file.next_timestamp < making.horizon:
            return True
        covered = Covered(file.first, file.last)
        newer = making.erasures.since(file.applied).since(self._checked.get(covered, {}))
        if not len(newer):
            return False
        if any(newer.touches(file.account(n).decode()) for n in range(file.account_count)):
            return True
        self._checked[covered] = making.erasures.latest
        return False

    def _finished(self, job: Job) -> None:
        if self._is_behind:
            self.due = 0.0  # something was told meanwhile
        if job.state != "done":
            self._is_behind = True
            self.due = min(self.due, time.monotonic() + RETRY_SECONDS)
            return
        if any((job.result or {}).values()):
            self.sweeper.files.refresh()
            self.sweeper.send("query", [b"removed"])
        self._remove_superseded()

    def _remove_superseded(self) -> None:
        """Delete files that others cover; those that may hold what was erased at once.

        Not while somebody copies: what a copy has listed must stay, and for as long as it is held,
        unless it may hold what was erased.
        """
        is_pinned = bool(self.sweeper.pins.active)
        if is_pinned and not self._superseded_go:
            return
        at_once = self._superseded_go and not is_pinned
        stand = totals_files.standing(os.listdir(self.directory))
        grace = self.sweeper.options.storage.copy_grace
        removed = totals_files.remove_superseded(self.directory, stand, 0.0 if at_once else grace)
        self._superseded_go = self._superseded_go and not at_once
        if self._superseded_go:
            self.due = min(self.due, time.monotonic() + RETRY_SECONDS)
        if removed:
            self.sweeper.files.refresh()
            self.sweeper.send("query", [b"removed"])
