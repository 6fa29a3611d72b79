"""Sees to it that an answer holds all that was acknowledged before the question came.

For what this node leads that is so while it has the lease, once it has applied what is committed
(`frames/lease_words.py`), else after a read round of its replication.  For what others lead their
nodes are asked for an index, which is then waited for here: any node answers from its own replicas,
and nothing it answers is old.

The lease is looked at once, before the answer is computed: what is computed later is from a state
at least as new, so the answer was right at that moment, which is after the question came.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.actors.frames import lease_words
from meterd.actors.frames.sockets import Frame
from meterd.core.questions.read_waits import ReadWaits
from meterd.protocol.errors import DeadlineExceeded, MeterdError, NotLeader, Overloaded
from meterd.protocol.log_format import GROUP_COUNT

if TYPE_CHECKING:
    from meterd.actors.usage import Usage

# Questions that wait; the router admits no more requests than that by default.
WAITS_MAX = 10_000
# Another node's question for an index waits no longer.
INDEX_SECONDS = 5.0


class Waiting(NamedTuple):
    """What to do when a question may be answered, or cannot be."""

    ready: Callable[[], None]
    failed: Callable[[MeterdError], None]


class Reads:
    """The usage actor tells it what was asked, said and applied."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._words = lease_words.shared()
        self._waits: ReadWaits[Waiting] = ReadWaits()
        self._boot = os.urandom(8)

    def __len__(self) -> int:
        return len(self._waits)

    @property
    def _applied(self) -> NDArray[np.int64]:
        return self._usage.groups.index.astype(np.int64)

    def holds(self, group: int) -> bool:
        """May a question about a group that this node leads be answered at once?"""
        if self._usage.leader_map.alone:
            return True
        groups = np.array([group])
        return bool(lease_words.held(self._words, groups, self._applied[groups])[0])

    def when_fresh(self, groups: Sequence[int], until: float, waiting: Waiting) -> None:
        """Call `ready` when this node has applied all that was acknowledged in these groups.

        groups: ascending.  until: monotonic seconds.  It may be called at once.
        """
        leaders = self._usage.leader_map
        if leaders.alone:
            waiting.ready()
            return
        wanted = np.array(groups, np.intp)
        nodes = leaders.nodes[wanted]
        mine = nodes == leaders.own
        index = np.full(len(wanted), lease_words.NO_LEASE, np.int64)
        index[mine] = lease_words.must_see(self._words, wanted[mine])
        settled = index != lease_words.NO_LEASE
        if settled.all() and (self._applied[wanted] >= index).all():
            waiting.ready()
        elif not nodes.all():
            waiting.failed(NotLeader("no leader is known at the moment: one is being elected"))
        elif len(self._waits) >= WAITS_MAX:
            waiting.failed(Overloaded())
        else:
            number = self._waits.add(waiting, wanted, until, time.monotonic())
            self._waits.know(number, wanted[settled].tolist(), index[settled].tolist())
            self._ask(number, wanted[~settled], nodes[~settled])

    def _ask(self, number: int, groups: NDArray[np.intp], nodes: NDArray[np.uint8]) -> None:
        """Ask whoever leads them up to where groups must be seen."""
        for node in np.unique(nodes).tolist():
            packed = groups[nodes == node].astype(np.uint16).tobytes()
            cause = number.to_bytes(8, "little")
            if node == self._usage.leader_map.own:
                self._usage.send("replication", [b"read", cause, packed])
            else:
                frames = [b"ask_index", bytes([node]), self._boot + cause, packed]
                self._usage.send("replication", frames)

    # From replication

    def on_ready(self, frames: Sequence[Frame]) -> None:
        """A read round is over: cause, groups, index of each."""
        _, cause, groups, index = frames
        self._know(int.from_bytes(cause, "little"), groups, index)

    def on_refused(self, frames: Sequence[Frame]) -> None:
        """There is no read round for a cause: this node does not lead, or not yet."""
        self._fail(int.from_bytes(frames[1], "little"))

    def on_index(self, frames: Sequence[Frame]) -> None:
        """Another node has said an index for each group asked for, or nothing: token, groups,
        index."""
        _, token, *said = frames
        if bytes(token[:8]) != self._boot:
            return
        number = int.from_bytes(token[8:], "little")
        if len(said) == 2 and 4 * len(said[0]) == len(said[1]):
            self._know(number, *said)
        else:
            self._fail(number)

    def on_ask_index(self, frames: Sequence[Frame]) -> None:
        """Another node asks for an index of groups that this one should lead."""
        _, node, token, packed = frames
        groups = np.frombuffer(packed, np.uint16).astype(np.intp)
        nodes = self._usage.leader_map.nodes
        good = bool(len(groups)) and bool((groups < GROUP_COUNT).all())
        good = good and bool((np.diff(groups) > 0).all())
        if not good or not (nodes[groups] == self._usage.leader_map.own).all():
            self._say(node, token, [])
            return

        def ready() -> None:
            index = self._applied[groups].astype(np.uint64).tobytes()
            self._say(node, token, [bytes(packed), index])

        waiting = Waiting(ready, lambda error: self._say(node, token, []))
        self.when_fresh(groups.tolist(), time.monotonic() + INDEX_SECONDS, waiting)

    def _say(self, node: Frame, token: Frame, said: list[bytes]) -> None:
        self._usage.send("replication", [b"index", node, token, *said])

    def _know(self, number: int, groups: Frame, index: Frame) -> None:
        found = np.frombuffer(groups, np.uint16).tolist(), np.frombuffer(index, np.uint64).tolist()
        self._waits.know(number, *found)
        self.applied()

    def _fail(self, number: int) -> None:
        for waiting in self._waits.fail(number):
            waiting.failed(NotLeader("the leader has changed: ask again"))

    # From usage

    def applied(self) -> None:
        """More is applied, or said: answer what may be answered."""
        if len(self._waits):
            for waiting in self._waits.ready(self._applied):
                waiting.ready()

    def turn(self, now: float) -> None:
        """Give up what has waited for too long; ask again where nothing was said."""
        if len(self._waits):
            for number, groups in self._waits.silent(now):
                nodes = self._usage.leader_map.nodes[groups]
                if nodes.all():
                    self._ask(number, groups, nodes)
                else:
                    self._fail(number)
            for waiting in self._waits.expire(now):
                waiting.failed(DeadlineExceeded("the replicas could not agree in time"))
