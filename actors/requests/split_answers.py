"""Answers requests that ingest has split over several leaders, for the usage actor.

Here at the origin: what is out, in a table; the outcomes of this node's own parts and those that
came from others; and the answers once all parts are there, or are not known.  At a leader: the
outcome of a forwarded part goes back to the node that waits for it.

The events of a request are counted where it is answered; those refused are kept (`refused.log`)
where they were judged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.actors.frames.sockets import Frame
from meterd.actors.requests.answering import Answers
from meterd.actors.requests.outcomes import Origin, Reply, parse_origin
from meterd.core.cluster.forwarded import encode_outcome, join_outcomes
from meterd.core.split_requests import Part, Split, SplitTable
from meterd.protocol.errors import DeadlineExceeded, MeterdError, error_body, exception_of

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

# A split is some hundred bytes, and its rows; the router admits fewer requests than this.
SPLITS_MAX = 10_000
# How long a part is waited for when its partition has another leader.  The old one, if it lives,
# says what became of it; then clients need not send it again.
GONE_SECONDS, HANDED_OVER_SECONDS = 0.25, 2.0
# How often to look for parts that are due.
LOOK_SECONDS = 0.05
# Answers that wait for the registry that they promise, and for how long.
WAITING_MAX = 1_000
PROMISED_SECONDS = 30.0
UNDECIDED = "a part of it is not known to be done; it may still happen"


class Events(NamedTuple):
    """Requests of events that were split."""

    origin: Origin
    sizes: list[tuple[int, int]]  # rows and refused rows of each part


class Commands(NamedTuple):
    """A request that is one command, or several."""

    rid: bytes
    request_id: int
    kind: str


class Promised(NamedTuple):
    """An answer that may leave when this node's registry has its version."""

    registry_version: int
    until: float
    frames: list[Frame]


class SplitAnswers:
    """The usage actor tells it what came, what was applied, and that time has passed."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._table: SplitTable[Events | Commands] = SplitTable(SPLITS_MAX)
        self._promised: list[Promised] = []
        self._leaders: Sequence[int] = ()  # by group, as they were said last

    def __len__(self) -> int:
        return len(self._table) + len(self._promised)

    # From replication

    def on_split(self, frames: Sequence[Frame]) -> None:
        """Wait for the parts of what ingest has split."""
        _, packed, kind, frame = frames
        due, table = msgpack.unpackb(packed)
        parts = [Part(token, node, groups) for token, node, groups, _, _ in table]
        asked: Events | Commands
        if kind == b"events":
            sizes = [(rows, refused) for _, _, _, rows, refused in table]
            asked = Events(parse_origin(frame), sizes)
        else:
            asked = Commands(*msgpack.unpackb(frame))
        self._wait(asked, parts, due)
        for part in parts:
            if part.node == 0:  # it was sent to nobody
                self.settle(part.token, None)

    def on_record(self, asked: Any, rows: int) -> None:
        """Wait for a gathering that was not split, because this node leads all of it."""
        if not isinstance(asked, Origin) or asked.wait is None or asked.reply is None:
            return
        refused = 0 if asked.refusals is None else len(asked.refusals.rows)
        due, groups = asked.wait
        part = Part(asked.reply.token, self._usage.leader_map.own, groups)
        self._wait(Events(asked, [(rows, refused)]), [part], due)

    def _wait(self, asked: Events | Commands, parts: Sequence[Part], due: float) -> None:
        """Wait for parts; not for long for those of who had lost the lead when they were split.

        Ingest may hear of a new leader later than usage: nobody would end the wait then.
        """
        self._end(self._table.add(asked, parts, due))
        stale = self._leaders and any(
            self._leaders[group] != part.node for part in parts for group in part.groups
        )
        if stale:
            self.led(self._leaders)

    def on_outcome(self, frames: Sequence[Frame]) -> None:
        """Take the outcome of a part that another node leads; without a body it was not sent."""
        self.settle(bytes(frames[1]), frames[2] if len(frames) > 2 else None)

    def settle(self, token: bytes, body: Frame | None) -> None:
        """Take the outcome of a part; None: it is not known."""
        ended = self._table.settle(token, None if body is None else bytes(body))
        if ended is not None:
            self._end([ended])

    def led(self, leaders: Sequence[int]) -> None:
        """Groups have other leaders now: node numbers by group."""
        self._leaders = leaders
        now = time.monotonic()
        self._table.led(leaders, now + GONE_SECONDS, now + HANDED_OVER_SECONDS)

    def turn(self, now: float) -> None:
        """Answer what is due."""
        self._end(self._table.expire(now))
        self._promised = [one for one in self._promised if one.until > now]

    # From apply

    def decided(
        self, origin: Origin, outcome: NDArray[np.uint8], judged: NDArray[np.uint8] | None
    ) -> None:
        """A part that this node leads was applied, or replaced: `outcome` may be UNKNOWN."""
        assert origin.reply is not None
        self._tell(origin.reply, encode_outcome(outcome, judged))

    def command_done(self, reply: Reply, result: dict[str, Any] | None) -> None:
        """A command of a split was applied; None: it was replaced."""
        if result is None:
            self._tell(reply, None)
            return
        # What the answer promises must hold here first: see `ExpiryNotices`.
        version = self._usage.state.registry.version
        self._tell(reply, msgpack.packb({"result": result, "registry_version": version}))

    def refused(self, reply: Reply, error: MeterdError | None) -> None:
        """Nothing was taken of a part: its events are not known (their clients ask again), and a
        command has failed with this error."""
        if error is None:
            self._tell(reply, None)
        else:
            self.command_done(reply, {"error": error_body(error)})

    def _tell(self, reply: Reply, body: bytes | None) -> None:
        if reply.node == 0:
            self.settle(reply.token, body)
            return
        rest = [] if body is None else [body]
        self._usage.send("replication", [b"outcome", bytes([reply.node]), reply.token, *rest])

    def registry_moved(self) -> list[Frame]:
        """Return the answers that may go out with this node's new registry."""
        version, frames = self._usage.state.registry.version, []
        for one in self._promised:
            if one.registry_version <= version:
                frames += one.frames
        self._promised = [one for one in self._promised if one.registry_version > version]
        return frames

    # Answers

    def _end(self, ended: Sequence[Split[Events | Commands]]) -> None:
        for split in ended:
            if isinstance(split.asked, Events):
                outcome, judged = join_outcomes(split.asked.sizes, split.outcomes)
                self._usage.answer_requests(split.asked.origin, outcome, judged)
            else:
                self._answer_commands(split.asked, split.outcomes)

    def _answer_commands(self, asked: Commands, bodies: Sequence[bytes | None]) -> None:
        """Answer with the last command's result, or with the first error."""
        rid, request_id, kind = asked
        answers, version = Answers(self._usage), 0
        result: dict[str, Any] = {}
        error: MeterdError | None = None
        for body in bodies:
            found = _result_of(body)
            if found is None:
                error = error or DeadlineExceeded(UNDECIDED)
                continue
            result, version = found[0], max(version, found[1])
            if "error" in result:
                error = error or exception_of(result["error"])
        if error is not None:
            answers.error(rid, request_id, kind, error)
        else:
            answers.result(rid, request_id, kind, result)
        if version > self._usage.state.registry.version:
            until = time.monotonic() + PROMISED_SECONDS
            promised = Promised(version, until, answers.take())
            self._promised = [*self._promised[-WAITING_MAX:], promised]
        else:
            self._usage.answer_commands(kind, answers.take())


def _result_of(body: bytes | None) -> tuple[dict[str, Any], int] | None:
    """Return result and registry version of a command's outcome; None when they are not known."""
    try:
        found = {} if body is None else msgpack.unpackb(body)
        result, version = found["result"], found["registry_version"]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        return None
    return (result, version) if isinstance(result, dict) and type(version) is int else None
