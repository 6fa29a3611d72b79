"""Gives the engine and its followers the ops that are only on disk, for the replication actor.

  * what the engine asks for (`ReadOps`) comes back as an event of it
  * an envelope with ops that the log held at the start (`OnDisk`) goes without those messages;
    each follows when its ops are read, as if the network had been slower
  * ops that no file has any more, or that cannot be read, are an event of it, too (`OpsGone`); for
    whom only a copy of a peer helps then, it says

Reading is done by a thread (`op_reader.py`), of what is durable.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from meterd.actors.replicating.op_reader import Asked, OpReader, Unfilled
from meterd.core.cluster.replicas import OnDisk
from meterd.core.log.op_places import OpPlace
from meterd.core.raft.events import Damaged, OpsGone, OpsRead, ReadOps
from meterd.core.raft.node import Request
from meterd.protocol.raft_messages import Append, Envelope, RepairReply

logger = logging.getLogger(__name__)


class Taken(NamedTuple):
    """What has been read: events for the engine, envelopes for peers."""

    events: list[Request]
    envelopes: list[Envelope]


class CatchingUp:
    """See the module."""

    def __init__(
        self, directory: str, file_number: int, offset: int, void: Mapping[int, int] | None = None
    ) -> None:
        """The log is durable up to this place; `void`: see `OpReader`."""
        self._end = OpPlace(file_number, offset)
        self._reader = OpReader(directory, void=void)
        self._has_asked = False

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
        """Have ops read that the engine asks for; `go` comes soon."""
        self._reader.ask(Asked(wanted, self._end))
        self._has_asked = True

    def go(self) -> None:
        """All is asked for that can be read together."""
        if self._has_asked:
            self._has_asked = False
            self._reader.go()

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
        self._has_asked = True
        rest = tuple([one for one in envelope.messages if not _is_unfilled(one)])
        return envelope._replace(messages=rest)

    def take(self) -> Taken:
        """Return what has been read since the last call."""
        taken = Taken([], [])
        for answer in self._reader.take():
            asked, found = answer.asked, answer.found
            if found is None:
                _tell_gone(asked, taken)
            elif isinstance(asked, Unfilled) and not isinstance(found, Damaged | OpsRead):
                taken.envelopes.append(asked.envelope._replace(messages=(found,)))
            else:
                assert isinstance(found, Damaged | OpsRead)
                group = asked.wanted.group if isinstance(asked, Asked) else asked.message.group
                taken.events.append(Request(group, found))
                if isinstance(found, Damaged):
                    logger.error("op %d of group %d has become unreadable", found.index, group)
                    _tell_gone(asked, taken)  # a copy of another node may have it
        return taken

    def close(self) -> None:
        self._reader.close()


def _tell_gone(asked: Asked | Unfilled, taken: Taken) -> None:
    """Tell the engine that a member cannot have from here what it lacks."""
    if isinstance(asked, Asked):
        wanted = asked.wanted
        taken.events.append(Request(wanted.group, OpsGone(wanted.to, wanted.term, wanted.first)))


def _is_unfilled(message: Any) -> bool:
    """Whether a message has ops that are only on disk."""
    return isinstance(message, Append | RepairReply) and any(
        isinstance(op.body, OnDisk) for op in message.ops
    )
