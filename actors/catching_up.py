"""Gives the engine and its followers the ops that are only on disk, for the replication actor.

  * what the engine asks for (`ReadOps`) comes back as an event of it
  * an envelope with ops that the log held at the start (`OnDisk`) goes without those messages;
    each follows when its ops are read, as if the network had been slower
  * ops that no file has any more, or that cannot be read, are told once a while: only a copy of a
    peer helps there

Reading is done by a thread (`op_reader.py`), of what is durable.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final, NamedTuple

from meterd.actors.op_reader import Asked, OpReader, Unfilled
from meterd.core.op_places import OpPlace
from meterd.core.raft.events import Damaged, OpsGone, OpsRead, ReadOps
from meterd.core.raft.node import Request
from meterd.core.raft.repair import FOR_REPAIR
from meterd.core.replicas import OnDisk
from meterd.protocol.raft_messages import Append, Envelope, RepairReply, node_of

# How often it is said of a follower that files do not reach back far enough.
TELL_SECONDS: Final = 60.0
# And how often it is told that node.
NOTE_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


class Behind(NamedTuple):
    """A node lacks ops of a group that cannot be read here any more, from `first` on."""

    node: int
    group: int
    first: int


class Taken(NamedTuple):
    """What has been read: events for the engine, envelopes for peers."""

    events: list[Request]
    envelopes: list[Envelope]
    behind: list[Behind]  # who lacks what cannot be read here; each now and then


class CatchingUp:
    """See the module."""

    def __init__(self, directory: str, file_number: int, offset: int) -> None:
        """The log is durable up to this place."""
        self._end = OpPlace(file_number, offset)
        self._reader = OpReader(directory)
        self._told: dict[int, float] = {}  # by node
        self._logged: dict[int, float] = {}

    @property
    def descriptor(self) -> int:
        """Readable when `take` has something."""
        return self._reader.descriptor

    @property
    def file_number(self) -> int:
        """The number of the active log file."""
        return self._end.file_number

    def durable(self, file_number: int, offset: int) -> None:
        """The log is durable up to here now."""
        self._end = OpPlace(file_number, offset)

    def ask(self, wanted: ReadOps) -> None:
        """Have ops read that the engine asks for."""
        self._reader.ask(Asked(wanted, self._end))

    def hold(self, envelope: Envelope) -> Envelope:
        """Return what of an envelope can go at once; the rest follows."""
        unfilled = [one for one in envelope.messages if _is_unfilled(one)]
        if not unfilled:
            return envelope
        for message in unfilled:
            places = {
                op.index: OpPlace(op.body.file_number, op.body.offset)
                for op in message.ops
                if isinstance(op.body, OnDisk)
            }
            self._reader.ask(Unfilled(envelope._replace(messages=()), message, places))
        rest = tuple([one for one in envelope.messages if not _is_unfilled(one)])
        return envelope._replace(messages=rest)

    def take(self) -> Taken:
        """Return what has been read since the last call."""
        taken = Taken([], [], [])
        for answer in self._reader.take():
            asked, found = answer.asked, answer.found
            if found is None:
                self._tell_gone(asked, taken)
            elif isinstance(asked, Unfilled) and not isinstance(found, Damaged | OpsRead):
                taken.envelopes.append(asked.envelope._replace(messages=(found,)))
            else:
                assert isinstance(found, Damaged | OpsRead)
                group = asked.wanted.group if isinstance(asked, Asked) else asked.message.group
                taken.events.append(Request(group, found))
                if isinstance(found, Damaged):
                    logger.error("op %d of group %d has become unreadable", found.index, group)
                    self._tell_behind(asked, taken)  # a copy of another node may have it
        return taken

    def close(self) -> None:
        self._reader.close()

    def _tell_behind(self, asked: Asked | Unfilled, taken: Taken) -> None:
        """Say that a follower cannot have from here what it lacks."""
        if isinstance(asked, Unfilled) or asked.wanted.term == FOR_REPAIR:
            return
        wanted = asked.wanted
        taken.events.append(Request(wanted.group, OpsGone(wanted.to, wanted.term, wanted.first)))
        node, now = node_of(wanted.to), time.monotonic()
        if now - self._told.get(node, -NOTE_SECONDS) >= NOTE_SECONDS:
            self._told[node] = now
            taken.behind.append(Behind(node, wanted.group, wanted.first))

    def _tell_gone(self, asked: Asked | Unfilled, taken: Taken) -> None:
        self._tell_behind(asked, taken)
        member = asked.wanted.to if isinstance(asked, Asked) else asked.envelope.target
        node, now = node_of(member), time.monotonic()
        if now - self._logged.get(node, -TELL_SECONDS) >= TELL_SECONDS:
            self._logged[node] = now
            logger.warning("node %d lacks ops that no log file has any more", node)


def _is_unfilled(message: Any) -> bool:
    """Whether a message has ops that are only on disk."""
    return isinstance(message, Append | RepairReply) and any(
        isinstance(op.body, OnDisk) for op in message.ops
    )
