"""Fetches a copy of a peer while the node runs, when a leader says that this node lacks something.

When the files have come the other nodes are asked for leave, so that not many are away at once;
then the node ends, and its next start uses the copy (`starting/copying.py`).  A job of its own
lane: it shows among the jobs, and can be cancelled.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from meterd.actors import endings
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.actors.starting import identity, peer_copy
from meterd.actors.starting.fetching import Fetching, NoCopy
from meterd.protocol.errors import BootFailed, Busy, DiskFull, StorageError

if TYPE_CHECKING:
    from meterd.actors.housekeeping.jobs import Job, Task
    from meterd.actors.retention_sweeper import RetentionSweeper

KIND: Final = "copy"
LANE: Final = "copy"
# Others that do not answer are not waited for longer than this.
PATIENCE_SECONDS: Final = 60.0
ASK_AGAIN_SECONDS: Final = 1.0
# After a job that has failed, or was cancelled; each time later, because it may long be so, and is
# said each time.  What has not failed for longer than the most of it begins anew.
RETRY_SECONDS: Final = 10.0
RETRY_SECONDS_MAX: Final = 300.0

logger = logging.getLogger(__name__)


class PeerCopies(Service):
    """See the module."""

    messages = (b"behind",)

    def __init__(self, sweeper: RetentionSweeper) -> None:
        super().__init__(sweeper)
        self.due = NEVER
        self._whole = False  # have all files come?
        self._retry_at, self._retry_after = 0.0, RETRY_SECONDS

    def handle(self, frames: list[Any]) -> None:
        jobs = self.sweeper.jobs
        if self._whole or self.sweeper.holds_still or jobs.active(KIND) is not None:
            return
        if time.monotonic() < self._retry_at or time.time() < peer_copy.not_before(self.directory):
            return
        try:
            jobs.start(KIND, LANE, self._work, self._ended)
        except Busy:
            logger.warning("a copy of a peer waits: too many jobs do")

    def _work(self, task: Task) -> dict[str, Any]:
        """Fetch all files of a peer.  Runs in a thread."""
        who = identity.read(self.directory)
        fetching = Fetching(self.sweeper.options, who, lambda _count: task.advance(0.5))
        for donor in fetching.donors():
            try:
                fetching.fetch(donor)
            except NoCopy as why:
                logger.warning("no copy of node %d yet: %s", donor, why)
                continue
            except DiskFull:  # others have taken space meanwhile, and this node works without it
                peer_copy.drop(self.directory)
                raise
            self._await_leave(fetching, task)
            peer_copy.note_fetched(self.directory, donor)
            return {"node": donor}
        raise StorageError("no peer gives a copy now")

    def _await_leave(self, fetching: Fetching, task: Task) -> None:
        """Wait until the others can do without this node for a moment."""
        waited = 0.0
        while not fetching.may_leave(is_patient=waited < PATIENCE_SECONDS):
            task.cancelled.wait(ASK_AGAIN_SECONDS)
            task.advance(0.9)
            waited += ASK_AGAIN_SECONDS

    def _ended(self, job: Job) -> None:
        if job.state == "done":
            self._whole, self.due = True, 0.0
            return
        now = time.monotonic()
        if now > self._retry_at + RETRY_SECONDS_MAX:
            self._retry_after = RETRY_SECONDS
        self._retry_at = now + self._retry_after
        self._retry_after = min(2 * self._retry_after, RETRY_SECONDS_MAX)

    def turn(self, now: float) -> None:
        self.due = NEVER
        if self._whole:
            raise BootFailed(endings.TEMPORARY, "a copy of a peer has come; the next start uses it")
