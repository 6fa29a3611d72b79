"""Asks other nodes for their part of an answer, for the query actor.

A question about all accounts that this node's replicas alone cannot answer goes, for the rest of
the partitions, to nodes that have them, as a client of theirs would ask it.  Whoever asks waits by
yielding `WAITING`; the query actor goes on with it when something has come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from meterd.actors.frames.sockets import Frame
from meterd.actors.requests.passing_on import Listening, PassingOn
from meterd.core.questions import partition_sets
from meterd.core.questions.answers import Ranking
from meterd.core.questions.joined_ranking import Columns, join
from meterd.core.questions.question import Question
from meterd.protocol import body as bodies
from meterd.protocol.envelope import RequestHeader, decode_answer_header, encode_request
from meterd.protocol.errors import MeterdError, RemoteProtocolError, Restarting, exception_of
from meterd.protocol.limits import PAGE_SIZE_MAX

# What a question yields that cannot go on before another node has answered.
WAITING: Final = True

# What a page of another node has.
FEED_KEYS: Final = ("events", "next")
ROW_KEYS: Final = ("rows", "next", "position", "digits")

Answer = dict[str, Any] | MeterdError


@dataclass(slots=True)
class Part:
    """Another node, what it is asked for, and what came so far."""

    node: int
    address: str
    partitions: bytes
    cursor: str | None = None
    position: str = ""
    columns: Columns = field(default_factory=Columns)


class OtherNodes:
    """Questions that are out, and answers that nobody has fetched yet."""

    def __init__(self, actor: Listening, arrived: Callable[[], None]) -> None:
        self._passing_on = PassingOn(actor, self._deliver)
        self._arrived = arrived
        self._out: dict[bytes, float] = {}  # by ticket: until when it is waited for
        self._answers: dict[bytes, tuple[float, Answer]] = {}  # by ticket: kept until
        self._count = 0

    def ask(
        self, node: int, address: str, kind: str, fields: Mapping[str, Any], until: float
    ) -> bytes:
        """Send a question; return the ticket that `take` wants.  until: monotonic seconds."""
        self._count += 1
        ticket = self._count.to_bytes(8, "little")
        left_ms = max(0, int((until - time.monotonic()) * 1000))
        header = RequestHeader(self._count, kind, left_ms)
        self._out[ticket] = until
        parts = encode_request(header, bodies.pack(dict(fields)))
        self._passing_on.pass_on(node, address, ticket, until, parts)
        return ticket

    def take(self, ticket: bytes, keys: Collection[str]) -> dict[str, Any] | None:
        """Return what was answered, which has these keys; None: nothing yet.

        Raises the error that was answered, RemoteProtocolError.
        """
        _, answer = self._answers.pop(ticket, (0.0, None))
        if isinstance(answer, MeterdError):
            raise answer
        if answer is not None and not answer.keys() >= set(keys):
            raise RemoteProtocolError("malformed", "an answer of another node lacks something")
        return answer

    def has_answer(self, ticket: bytes) -> bool:
        """Would `take` find something?  What cannot be sent is answered at once."""
        return ticket in self._answers

    def feed_page(
        self, part: Part, fields: Mapping[str, Any], until: float
    ) -> Generator[bool, None, dict[str, Any]]:
        """Ask for a page of a feed and wait; return it.  Raises MeterdError."""
        ticket = self.ask(part.node, part.address, "feed", fields, until)
        while (result := self.take(ticket, FEED_KEYS)) is None:
            yield WAITING
        return result

    def _deliver(self, ticket: bytes, parts: Sequence[Frame]) -> None:
        until = self._out.pop(ticket, None)
        if until is not None:
            self._answers[ticket] = until, _read(parts)
            self._arrived()

    def __len__(self) -> int:
        return len(self._out) + len(self._answers)

    def led_by(self, nodes: set[int]) -> None:
        """Only these nodes lead anything now: of others nothing is expected any more."""
        self._passing_on.led_by(nodes)

    def expire(self, now: float) -> None:
        """Forget what nobody waits for any more."""
        self._out = {ticket: until for ticket, until in self._out.items() if until > now}
        self._passing_on.forget(self._out)
        self._answers = {t: kept for t, kept in self._answers.items() if kept[0] > now}

    def close(self) -> None:
        self._passing_on.close()


def _read(parts: Sequence[Frame]) -> Answer:
    """Return the result that another node has sent, or the error."""
    try:
        header = decode_answer_header(bytes(parts[0]))
        body = bodies.unpack_answer(bytes(parts[1]))
    except RemoteProtocolError as error:
        return error
    if header.status == "ok" and isinstance(body, dict):
        return body
    return exception_of(body)


class OtherRows:
    """The rows of other nodes that belong to an `accounts` question: asked for at once, page by
    page, while this node finds its own."""

    def __init__(
        self,
        others: OtherNodes,
        parts: Sequence[Part],
        question: Question,
        context: dict[str, Any],
    ) -> None:
        """context: `until` (monotonic seconds) and what is `added` to the result."""
        self._others = others
        self._parts = parts
        self._context = context
        self._digits: set[int] = set()
        self._fields = {
            "metric": question.metric,
            "start": question.start,
            "end": question.end,
            "filters": {key: list(wanted) for key, wanted in question.filters},
            "limit": PAGE_SIZE_MAX,
            "consistency": consistency(context),
        }
        self._out = [(part, self._ask(part)) for part in parts]

    def _ask(self, part: Part) -> bytes:
        asked = self._fields | {"partitions": part.partitions, "after": part.cursor}
        return self._others.ask(part.node, part.address, "accounts", asked, self._context["until"])

    def joined(self, own: Ranking) -> Generator[Any, None, Ranking]:
        """Wait for all rows and return them together with this node's own.

        Raises MeterdError: what another node said, or Restarting when a new version of the metric
        came in between, so that amounts differ.
        """
        while self._out:
            out, self._out = self._out, []
            for part, ticket in out:
                page = self._others.take(ticket, ROW_KEYS)
                if page is None:
                    self._out.append((part, ticket))
                else:
                    self._take(part, page)
            if self._out:
                yield not any(self._others.has_answer(ticket) for _, ticket in self._out)
        if not self._digits <= {own.text.digits}:
            raise Restarting("the metric was changed while its accounts were added up: ask again")
        return (yield from join(own, [part.columns for part in self._parts]))

    def _take(self, part: Part, page: Mapping[str, Any]) -> None:
        part.columns.add(page["rows"])
        part.position, part.cursor = page["position"], page["next"]
        self._digits.add(page["digits"])
        note_age(self._context["added"], page)
        if part.cursor is not None:
            self._out.append((part, self._ask(part)))

    def position(self, own: str) -> str:
        """Return the positions of all nodes; own: this node's, as NODE@POSITION."""
        return " ".join([own, *(f"{part.node}@{part.position}" for part in self._parts)])


def consistency(context: Mapping[str, Any]) -> str:
    """Return how fresh the parts of an answer have to be: as the whole."""
    return "local" if "as_of" in context["added"] else "exact"


def note_age(added: dict[str, Any], page: Mapping[str, Any]) -> None:
    """A joined answer is as old as its oldest part; None: it is not known how old."""
    if "as_of" in page and "as_of" in added:
        ages = (added["as_of"], page["as_of"])
        added["as_of"] = None if None in ages else min(ages)


def part_of(fields: Sequence[Any]) -> Part:
    """Read a part as usage packs it: node, address, partitions."""
    return Part(*fields)


def chosen(part: Part) -> tuple[int, ...]:
    """Return the partitions of a part."""
    return partition_sets.unpack(part.partitions)
