"""The query actor: answers what memory cannot, from segments and log files, and what takes long.

The usage actor passes questions on together with what they must see (`ask`): how far the log was
applied when the question came, and which rows of log files without a segment were not stored.  So
an answer holds exactly what had been acknowledged, whatever is written meanwhile.

Questions take turns, a piece of a segment or log file at a time, so a long invoice run neither
holds up a short question nor the beat.  The rows of an invoice run stay in memory until its last
page was fetched or nobody has come for a while; a cursor names run and row, so pages belong to one
log position.  A question that other nodes have a part of (`questions/other_nodes.py`) is set aside
until something of it has come.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import msgpack

from meterd.actors.actor import BEAT_SECONDS, Actor
from meterd.actors.files.mapped import JustDeleted
from meterd.actors.questions import feed, joined_feed, reading, stable_feed
from meterd.actors.questions.log_files import LogFiles, View
from meterd.actors.questions.other_nodes import OtherNodes, OtherRows, part_of
from meterd.actors.questions.reading import Steps
from meterd.actors.requests.answering import Answers
from meterd.actors.starting import identity
from meterd.core.questions.answers import (
    AnswerContext,
    PartialCells,
    Ranking,
    answer_accounts,
    answer_usage,
)
from meterd.core.questions.folded_cells import joined
from meterd.core.questions.question import Question, known_versions
from meterd.core.state.erasures import Erasure, Erasures, none_erased
from meterd.core.state.registry import Registry
from meterd.protocol.envelope import RequestHeader, decode_request_header
from meterd.protocol.errors import (
    BadRequest,
    DeadlineExceeded,
    MeterdError,
    Restarting,
    StorageError,
)

# Work done in one go before the inbox is looked at again.
TURN_SECONDS = 0.05
# How often to look whether what waits for other nodes has waited for too long.
LOOK_SECONDS = 0.05
# Accounts in open invoice runs, about 150 bytes each (one run is always kept), and how long a run
# waits for its next page.
ACCOUNTS_KEPT_MAX = 4_000_000
RUN_SECONDS = 600.0
# How often a question looks again for files that went while it was read.
LOOKS_MAX = 3

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """One question on its way."""

    rid: bytes
    header: RequestHeader
    steps: Steps
    added: dict[str, Any]  # to the result
    cursor: str  # what cursors of this node begin with
    began: float  # monotonic seconds
    expires: float


@dataclass(slots=True)
class Run:
    """An invoice run: its rows in order, computed once."""

    ranking: Ranking
    position: str
    used_at: float


class Query(Actor):
    """See the module."""

    name = "query"

    def open(self) -> None:
        node = self.options.node
        self.answers = Answers(self)
        self._files = LogFiles(node.data_dir, identity.read(node.data_dir).identity_key)
        self._registry = Registry()
        self._erasures = none_erased(self._files.identity_key)
        self._jobs: deque[Job] = deque()
        self._aside: list[Job] = []  # they wait for other nodes
        self._others = OtherNodes(self, self._go_on)
        self._places = stable_feed.Places()
        self._runs: OrderedDict[str, Run] = OrderedDict()
        # Cursors of an earlier process must not name a run of this one.
        self._run_prefix = f"{time.time_ns():x}"
        self._runs_begun = 0
        for actor in ("usage", "router"):
            self.send(actor, [b"hello", self.name.encode()])
        self.ready()

    def handle(self, frames: list[bytes]) -> None:
        if frames[0] == b"ask":
            self._on_ask(frames)
        elif frames[0] == b"segmented":
            self._files.segmented(int(frames[1]))
        elif frames[0] == b"removed":
            self._files.refresh()
        elif frames[0] == b"leaders":
            self._others.led_by(set(frames[1]))

    def flush(self) -> None:
        self._work()
        self.tick_by(time.monotonic() + self._wait())

    def tick(self, now: float) -> float:
        self._work()
        if self._aside or len(self._others):
            self._look_aside(now)
        while self._runs:
            oldest = next(iter(self._runs))
            if now - self._runs[oldest].used_at < RUN_SECONDS:
                break
            del self._runs[oldest]
        return self._wait()

    def _wait(self) -> float:
        """Return the seconds until there is more to do, if nothing comes."""
        if self._jobs:
            return 0.0
        return LOOK_SECONDS if self._aside or len(self._others) else BEAT_SECONDS

    def drained(self) -> bool:
        return not self._jobs and not self._aside

    def close(self) -> None:
        self._others.close()

    # Questions that wait for other nodes

    def _go_on(self) -> None:
        """Something has come of other nodes: whoever waits looks whether it was that."""
        self._jobs.extend(self._aside)
        self._aside.clear()

    def _look_aside(self, now: float) -> None:
        """Give up what has waited for too long."""
        late = [job for job in self._aside if now > job.expires]
        self._aside = [job for job in self._aside if now <= job.expires]
        for job in late:
            self._finish(job, error=DeadlineExceeded("another node did not answer in time"))
        self._others.expire(now)
        self.answers.send()

    # Questions

    def _on_ask(self, frames: list[bytes]) -> None:
        _, rid, raw_header, _, packed, *arrays = frames
        header = decode_request_header(raw_header)  # the router has checked it
        context = msgpack.unpackb(packed, strict_map_key=False)
        now = time.monotonic()
        if "registry" in context:
            self._registry = Registry.from_bytes(context["registry"])
            self._take_erasures(context["erased"])
        until = context["until"] = now + header.deadline_ms / 1000
        steps = self._steps(context, arrays)
        job = Job(rid, header, steps, context["added"], context.get("cursor", ""), now, until)
        if [context["registry_version"], context["erasures"]] != [
            self._registry.version,
            len(self._erasures),
        ]:
            # We have started again since the registry was sent; it comes with the next question.
            self._finish(job, error=Restarting("the query actor was restarted"))
            return
        self._jobs.append(job)

    def _take_erasures(self, erased: list[Any]) -> None:
        """Know which accounts are erased; what was computed before may still name them."""
        found = Erasures(map(Erasure.from_list, erased), self._files.identity_key)
        # A usage actor that has started anew may know others than before, and as many.
        if not found.is_same(self._erasures):
            self._runs.clear()
        self._erasures = found

    def _work(self) -> None:
        """Let the questions take turns for a while, and send the answers there are."""
        until = time.monotonic() + TURN_SECONDS
        while self._jobs and time.monotonic() < until:
            job = self._jobs.popleft()
            if time.monotonic() > job.expires:
                self._finish(job, error=DeadlineExceeded())
                continue
            try:
                waits = next(job.steps)
            except StopIteration as done:
                self._finish(job, result=done.value)
            except MeterdError as error:
                self._finish(job, error=error)
            else:
                (self._aside if waits else self._jobs).append(job)
        self.answers.send()

    def _finish(
        self, job: Job, result: dict[str, Any] | None = None, error: MeterdError | None = None
    ) -> None:
        kind = job.header.kind
        if error is None:
            assert result is not None
            if job.cursor and result.get("next") is not None:
                result["next"] = job.cursor + result["next"]
            result |= job.added
            self.answers.result(job.rid, job.header.id, kind, result)
        else:
            if isinstance(error, StorageError):  # the client is not told which file
                logger.error("a question cannot be answered: %s", error)
            self.answers.error(job.rid, job.header.id, kind, error)
        outcome = "ok" if error is None else "error"
        self.telemetry.add(f'queries_total{{kind="{kind}",result="{outcome}"}}')
        seconds = time.monotonic() - job.began
        self.telemetry.observe(f'query_duration_seconds{{kind="{kind}"}}', seconds)

    def _steps(self, context: dict[str, Any], arrays: list[bytes]) -> Steps:
        """Answer a question, yielding between the steps."""
        question = Question.from_map(context["question"])
        registry, horizon = self._registry, context["horizon"]
        if question.kind == "accounts" and question.after is not None:
            return self._next_page(question, question.after)
        parts = [part_of(fields) for fields in context.get("parts", ())]
        if parts and question.kind == "feed":

            def read(asked: Question) -> Steps:
                return self._read(context, asked)

            return (yield from joined_feed.read_feed(self._others, read, question, parts, context))
        rest = OtherRows(self._others, parts, question, context) if parts else None
        if "refused" not in context:
            partial = PartialCells.from_frames(arrays)
        else:
            found = yield from self._read(context, question)
            if isinstance(found, dict):
                return found
            partial = joined([found, PartialCells.from_frames(arrays)]) if arrays else found
        yield
        entries = known_versions(registry, question.metric)
        if question.kind == "accounts":
            ranking = yield from answer_accounts(question, entries, partial)
            position = context["position"]
            if rest is not None:
                ranking = yield from rest.joined(ranking)
                position = rest.position(context["cursor"] + position)
            return self._first_page(ranking, position)
        return answer_usage(question, entries, partial, AnswerContext(context["position"], horizon))

    def _read(self, context: dict[str, Any], question: Question) -> Steps:
        """Read the log: return a page, or partial cells."""
        for _ in range(LOOKS_MAX - 1):
            try:
                return (yield from self._read_once(context, question))
            except JustDeleted:
                self._files.refresh()
        return (yield from self._read_once(context, question))

    def _read_once(self, context: dict[str, Any], question: Question) -> Steps:
        """The same; raises JustDeleted when a file went meanwhile."""
        registry, horizon = self._registry, context["horizon"]
        refused = {number: (raw[0], raw[1]) for number, raw in context["refused"].items()}
        end = (context["end"][0], context["end"][1])
        view = View(self._files, end, refused, self._erasures)
        if question.kind == "events":
            return (yield from reading.read_events(view, question, registry, horizon))
        if question.kind == "feed" and "applied" in context:
            places, log = self._places, stable_feed.applied_log(context)
            steps = stable_feed.read_feed(view, question, registry, horizon, places, log)
            return (yield from steps)
        if question.kind == "feed":
            return (yield from feed.read_feed(view, question, registry, horizon))
        return (yield from reading.read_cells(view, question, registry))

    # Invoice runs

    def _first_page(self, ranking: Ranking, position: str) -> dict[str, Any]:
        self._runs_begun += 1
        name = f"{self._run_prefix}-{self._runs_begun}"
        run = Run(ranking, position, time.monotonic())
        page = self._page(name, run, 0, ranking.question.limit)
        if page["next"] is not None:
            self._runs[name] = run
            while self._kept() > ACCOUNTS_KEPT_MAX and len(self._runs) > 1:
                self._runs.popitem(last=False)
        return page

    def _kept(self) -> int:
        return sum(len(run.ranking.accounts) for run in self._runs.values())

    def _next_page(self, question: Question, cursor: str) -> dict[str, Any]:
        kind, _, rest = cursor.partition(".")
        name, _, first = rest.partition(".")
        run = self._runs.get(name)
        if kind != "a" or not first.isdecimal():
            raise BadRequest("after: not a cursor that this kind of question gave")
        if run is None:
            raise BadRequest("after: this run is over; begin again without a cursor")
        run.used_at = time.monotonic()
        self._runs.move_to_end(name)
        return self._page(name, run, int(first), question.limit)

    def _page(self, name: str, run: Run, first: int, limit: int) -> dict[str, Any]:
        ranking = run.ranking
        end = first + limit
        digits = {} if ranking.question.partitions is None else {"digits": ranking.text.digits}
        return digits | {
            "metric": ranking.question.metric,
            "start": ranking.question.start,
            "end": ranking.question.end,
            "rows": ranking.rows(first, limit),
            "next": f"a.{name}.{end}" if end < len(ranking.accounts) else None,
            "position": run.position,
        }
