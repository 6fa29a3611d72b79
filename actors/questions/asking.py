"""Answers questions for the usage actor: from memory at once, or by asking the query actor.

A question about one whole period of a metric that memory keeps is answered here when few cells are
concerned; many cells are handed to the query actor to be sorted and grouped.  Any other range is
handed over with how far the log is applied and which of its rows were not stored, so that the
answer is exactly what had been acknowledged when the question came.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.frames.sockets import Frame
from meterd.actors.questions.answering_where import AnsweringWhere, cursor_prefix
from meterd.actors.questions.zone_files import transitions
from meterd.core.questions.answers import AnswerContext, answer_usage
from meterd.core.questions.folded_cells import joined
from meterd.core.questions.memory_cells import collect
from meterd.core.questions.partial_cells import PartialCells
from meterd.core.questions.question import Question, resolve_question
from meterd.protocol import body as bodies
from meterd.protocol.envelope import RequestHeader, decode_request_header
from meterd.protocol.errors import MeterdError, Starting, UnknownMetric
from meterd.protocol.messages import check_request

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

# More cells than this are grouped and sorted by the query actor, to keep a turn short.
CELLS_HERE_MAX = 500
STARTING_RETRY_MS = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with where its answer goes."""

    rid: bytes
    header: RequestHeader
    raw_header: bytes
    body: Frame
    began: float
    added: dict[str, Any] = field(default_factory=dict)  # to the result
    parts: list[list[Any]] = field(default_factory=list)  # that other nodes answer (`sharing.py`)


class Asking:
    """Serves the kinds of request that the usage actor answers."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._sent = (-1, 0)  # registry version and erasures that the query actor knows
        self._where = AnsweringWhere(usage, self)

    def forget_registry(self) -> None:
        """The query actor has started anew: send it the registry with the next question."""
        self._sent = (-1, 0)

    def on_request(self, rid: bytes, raw_header: bytes, body: Frame) -> None:
        """Answer a question, or see that it is answered."""
        header = decode_request_header(raw_header)  # the router has checked it
        began = time.perf_counter()
        try:
            if not self._usage.answers_questions:
                raise Starting(retry_after_ms=STARTING_RETRY_MS)
            fields = check_request(header.kind, body, header.lz4_size)
            asked = Asked(rid, header, raw_header, body, began)
            if self._usage.leader_map.alone:
                if fields.get("consistency") == "local":
                    asked.added["as_of"] = time.time_ns()  # a node alone has all there is
                self.try_answering(asked, fields)
            else:
                self._where.see(asked, fields)
        except MeterdError as error:
            self.refuse(rid, header, error)

    def refuse(self, rid: bytes, header: RequestHeader, error: MeterdError) -> None:
        """Answer a question with an error."""
        self._usage.answers.error(rid, header.id, header.kind, error)
        self._usage.telemetry.add(f'queries_total{{kind="{header.kind}",result="error"}}')

    def answer_now(self, asked: Asked, fields: dict[str, Any]) -> None:
        """Answer from what is applied here."""
        try:
            self.try_answering(asked, fields)
        except MeterdError as error:
            self.refuse(asked.rid, asked.header, error)

    def try_answering(self, asked: Asked, fields: dict[str, Any]) -> None:
        """The same; raises MeterdError where there is no answer."""
        rid, header = asked.rid, asked.header
        result = self._result(asked, fields)
        if result is not None:
            self._usage.answers.ok(rid, header.id, header.kind, bodies.pack(result | asked.added))
            self._usage.telemetry.observe(
                f'query_duration_seconds{{kind="{header.kind}"}}', time.perf_counter() - asked.began
            )
            self._usage.telemetry.add(f'queries_total{{kind="{header.kind}",result="ok"}}')

    def _result(self, asked: Asked, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Return the result, or None when the query actor has been asked."""
        kind, registry = asked.header.kind, self._usage.state.registry
        if kind == "metric_list":
            codes = dict.fromkeys(entry.code for entry in registry.entries)
            newest = [registry.versions(code)[-1] for code in codes]
            return {"metrics": [e.definition.to_map() for e in newest if not e.deleted]}
        if kind == "metric_show":
            versions = registry.versions(fields["code"])
            if not versions or versions[-1].deleted:
                raise UnknownMetric(f"no metric {fields['code']} is registered")
            maps = [entry.definition.to_map() for entry in versions]
            return {"metric": maps[-1], "versions": maps}
        if kind == "status":
            return self._status()
        if kind == "checkpoint":
            self._usage.ask_checkpoint(asked.rid, asked.header.id)
            return None
        if kind == "retention_set":
            self._usage.horizons.propose(asked.rid, asked.header.id, fields["days"])
            return None
        if kind == "clock_accept":
            return self._usage.horizons.accept_clock(asked.rid, asked.header.id)
        question = resolve_question(kind, fields, registry, time.time_ns(), transitions)
        return self._answer(asked, question)

    def _answer(self, asked: Asked, question: Question) -> dict[str, Any] | None:
        state = self._usage.state
        # A later page of an invoice run is cut from what the first one made.
        begins = question.from_totals and question.after is None
        partial = collect(state, question) if begins else None
        balances = None
        if question.metric and question.kind != "events" and question.after is None:
            balances = state.balances.partial(question, state.registry.versions(question.metric))
        if partial is not None and balances is not None:
            # Whose members come and go only the whole history tells.
            has_seats = balances.seats is not None and len(balances.seats.rows)
            partial = None if has_seats else joined([partial, balances])
        if partial is not None and question.kind == "usage" and len(partial.dims) <= CELLS_HERE_MAX:
            entries = state.registry.versions(question.metric)
            return answer_usage(question, entries, partial, self._context())
        self._ask(asked, question, partial, balances)
        return None

    def _context(self) -> AnswerContext:
        """Return what every answer says about itself: how far it knows."""
        return AnswerContext(str(self._usage.groups.sequence), self._usage.state.horizon)

    def _ask(
        self,
        asked: Asked,
        question: Question,
        partial: PartialCells | None,
        balances: PartialCells | None,
    ) -> None:
        """Have the query actor answer: from the partial cells, or from the log and balances."""
        usage = self._usage
        registry, erasures = usage.state.registry, usage.state.erasures
        context: dict[str, Any] = {
            "question": question.to_map(),
            "registry_version": registry.version,
            "erasures": len(erasures),
            "end": list(usage.read_end[:2]),
            "position": str(usage.groups.sequence),
            "horizon": usage.state.horizon,
            "added": asked.added,
            "parts": asked.parts,
        }
        alone, waits = usage.leader_map.alone, usage.position
        if question.kind == "feed" and alone:
            # It goes on from here later, so it must not step over rows that wait.
            context["end"] = list(waits[:2])
        elif question.kind == "feed":
            context["applied"] = usage.groups.index.tobytes()
            context["waits"] = [waits.file_number, waits.row]
            context["repaired"] = usage.groups.repaired
        elif not alone:
            context["cursor"] = cursor_prefix(usage.leader_map.own)
        if (registry.version, len(erasures)) != self._sent:
            context["registry"] = registry.to_bytes()
            context["erased"] = erasures.to_lists()
            self._sent = (registry.version, len(erasures))
        frames: list[Any] = []
        if partial is None:
            frames = [] if balances is None else balances.to_frames()
            usage.note_waiting()
            files = usage.refused.files()
            context["refused"] = {number: list(usage.refused.packed(number)) for number in files}
        else:
            frames = partial.to_frames()
        usage.send(
            "query",
            [b"ask", asked.rid, asked.raw_header, asked.body, msgpack.packb(context), *frames],
        )

    def _status(self) -> dict[str, Any]:
        usage = self._usage
        place = usage.position
        return {
            "node": {
                "node_id": usage.who.node_id,
                "cluster_id": usage.who.cluster_id_hex,
                "incarnation": usage.who.incarnation,
                "state": "active",
            },
            "log": {
                "file_number": place.file_number,
                "offset": place.offset,
                "records": usage.groups.sequence,
                "leader_time": usage.groups.leader_time,
            },
            "totals": usage.state.counts(),
            "registry_version": usage.state.registry.version,
            "horizon": usage.state.horizon,
            "totals_horizon": usage.state.totals_horizon,
            "erasures": len(usage.state.erasures),
            "balances": usage.state.balances.count,
            "newest_event": usage.state.newest_event if usage.state.stored else None,
            "checkpoint": usage.checkpoint_facts(),
        }
