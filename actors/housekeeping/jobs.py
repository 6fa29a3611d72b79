"""Work that takes long: started by an operator or a service, one thread a lane, with progress.

A job's work is a function of its `Task`, which it tells how far it is; that is also where it ends
when somebody has cancelled it, so it must leave nothing half done when `Task.advance` raises.
Jobs of one lane wait for each other.  What became of a job is kept until many newer ones have
ended, or the actor ends: a job that a restart interrupts is gone, and safe to start again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meterd.actors.housekeeping.service import NEVER, Service
from meterd.actors.housekeeping.urgency import BACKGROUND_NICE, set_nice
from meterd.protocol.errors import Busy, FsyncFailed, MeterdError, NotFound

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper

# Jobs that are kept after they have ended, and that may wait.
ENDED_MAX = 100
WAITING_MAX = 16
# How often the actor looks whether a job has ended, while there are some.
LOOK_SECONDS = 0.05

logger = logging.getLogger(__name__)

Work = Callable[["Task"], dict[str, Any]]


class Cancelled(Exception):
    """The job was cancelled, or the actor ends."""


@dataclass
class Task:
    """What a job's work sees of its job.  Written by the job's thread, read by the actor's."""

    progress: float = 0.0  # 0 to 1
    cancelled: threading.Event = field(default_factory=threading.Event)

    def advance(self, progress: float) -> None:
        """Say how much is done, 0 to 1.  Raises Cancelled."""
        self.progress = min(1.0, max(self.progress, progress))
        if self.cancelled.is_set():
            raise Cancelled


@dataclass
class Job:
    """One job."""

    id: int
    kind: str
    lane: str
    work: Work
    task: Task
    asked: int  # UTC ns
    then: Callable[[Job], None] | None = None  # called in the actor's loop when it has ended
    own_priority: bool = False
    state: str = "waiting"
    began: float = 0.0  # monotonic seconds
    started: int | None = None  # UTC ns
    finished: int | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    failure: BaseException | None = None  # a bug: ends the actor
    thread: threading.Thread | None = None

    def to_map(self) -> dict[str, Any]:
        """Return the job as clients see it: it runs until what follows from it is done, too."""
        progress, eta = self.task.progress, None
        ended = self.finished is not None
        state = self.state if ended or self.thread is None else "running"
        if state == "running" and progress > 0:
            eta = (time.monotonic() - self.began) * (1 - progress) / progress
        return {
            "id": self.id,
            "kind": self.kind,
            "state": state,
            "progress": round(progress, 4),
            "eta_seconds": None if eta is None else round(eta, 1),
            "asked": self.asked,
            "started": self.started,
            "finished": self.finished,
            "result": self.result if ended else None,
            "error": self.error if ended else None,
        }


class Jobs(Service):
    """See the module."""

    requests = ("job_list", "job_show", "job_cancel")

    def __init__(self, sweeper: RetentionSweeper) -> None:
        super().__init__(sweeper)
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._lanes: dict[str, deque[Job]] = {}  # the first of a lane is the one that runs
        # The number of a job of an earlier process must not name one of this.
        self._next_id = time.time_ns() // 1_000_000_000
        self.due = NEVER

    def start(
        self,
        kind: str,
        lane: str,
        work: Work,
        then: Callable[[Job], None] | None = None,
        own_priority: bool = False,
    ) -> Job:
        """Start a job, or let it wait for the others of its lane.  Raises Busy.

        `own_priority`: the work chooses the priority of its thread itself.
        """
        line = self._lanes.setdefault(lane, deque())
        if len(line) > WAITING_MAX:
            raise Busy(f"{len(line)} jobs wait already; see job_list")
        job = Job(self._next_id, kind, lane, work, Task(), time.time_ns(), then, own_priority)
        self._next_id += 1
        self._jobs[job.id] = job
        line.append(job)
        if len(line) == 1:
            self._run(job)
        self.due = 0.0
        return job

    def active(self, kind: str) -> Job | None:
        """Return the job of a kind that runs or waits, if there is one."""
        return next(iter(self.unfinished(kind)), None)

    def unfinished(self, kind: str) -> list[Job]:
        """Return the jobs of a kind that run or wait."""
        return [job for line in self._lanes.values() for job in line if job.kind == kind]

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        if kind == "job_list":
            return {"jobs": [job.to_map() for job in reversed(self._jobs.values())]}
        job = self._jobs.get(fields["id"])
        if job is None:
            raise NotFound(f"no job {fields['id']}")
        if kind == "job_cancel":
            job.task.cancelled.set()
        return {"job": job.to_map()}

    def turn(self, now: float) -> None:
        """Finish what has ended, and start what waited for it."""
        for line in self._lanes.values():
            if line and line[0].thread is not None and not line[0].thread.is_alive():
                self._finish(line.popleft())
                if line:
                    self._run(line[0])
        self.due = now + LOOK_SECONDS if any(self._lanes.values()) else NEVER

    def drained(self, stopping: bool) -> bool:
        """Is no job running?  When the actor ends, all are cancelled."""
        if stopping:
            for line in self._lanes.values():
                for job in line:
                    job.task.cancelled.set()
        return not any(self._lanes.values())

    def close(self) -> None:
        self.drained(stopping=True)
        for line in self._lanes.values():
            for job in line:
                if job.thread is not None:
                    job.thread.join()

    def _run(self, job: Job) -> None:
        job.state, job.started, job.began = "running", time.time_ns(), time.monotonic()
        job.thread = threading.Thread(target=_guarded, args=(job,), name=job.kind)
        job.thread.start()

    def _finish(self, job: Job) -> None:
        if job.failure is not None:
            raise job.failure
        job.finished = time.time_ns()
        seconds = time.monotonic() - job.began
        fields = {"job": job.id, "state": job.state, "seconds": f"{seconds:.3f}"}
        level = logging.WARNING if job.state == "failed" else logging.INFO
        logger.log(level, "%s ended", job.kind, extra={"fields": fields | (job.error or {})})
        if job.then is not None:
            job.then(job)
        ended = [one for one in self._jobs.values() if one.finished is not None]
        for old in ended[:-ENDED_MAX]:
            del self._jobs[old.id]


def _guarded(job: Job) -> None:
    """Run a job's work and keep what became of it, for the actor's loop."""
    try:
        if not job.own_priority:
            set_nice(BACKGROUND_NICE)
        job.task.advance(0.0)
        job.result = job.work(job.task)
        job.task.progress, job.state = 1.0, "done"
    except Cancelled:
        job.state = "cancelled"
    except MeterdError as error:
        job.error = {"code": error.code, "message": str(error), "hint": error.hint}
        job.state = "failed"
        if isinstance(error, FsyncFailed):
            job.failure = error
    except BaseException as error:
        job.failure = error
