"""Keeps the lease words true and holds read rounds, for the replication actor.

A lease that has ended by itself needs nobody; one that ends early (another leader, a transfer) is
ended here before anything of that leaves this node, and what has been committed is written here
before any other node can know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from meterd.actors.frames import lease_words
from meterd.actors.frames.sockets import Frame
from meterd.core.raft.events import Read, ReadReady, Refused, RoleChanged
from meterd.core.raft.node import Request
from meterd.core.raft.reading import FOREVER
from meterd.protocol.raft_messages import Envelope, TimeoutNow
from meterd.protocol.raft_slices import Ints

if TYPE_CHECKING:
    from meterd.actors.replication import Replication

# How often leases are written anew; beats come every 150 ms, and a lease is 600 ms long.
RENEW_MS = 100
MS = 1_000_000


class ReadRounds:
    """See the module."""

    def __init__(self, actor: Replication) -> None:
        self._actor = actor
        self._words = lease_words.shared()
        self._renew_due = 0
        lease_words.clear(self._words)

    def ask(self, frames: Sequence[Frame]) -> None:
        """Begin read rounds for usage: cause, groups."""
        _, cause, packed = frames
        for group in np.frombuffer(packed, np.uint16).tolist():
            refused = self._actor.request(Request(group, Read(Cause(bytes(cause)))))
            if any(isinstance(one.cause, Cause) for one in refused):
                return  # usage is told, and asks for nothing more of this

    def note(self, action: Any) -> None:
        """Take what the engine says: a round is over, or a group has another leader."""
        if isinstance(action, ReadReady) and isinstance(action.cause, Cause):
            group, index = action.group.to_bytes(2, "little"), action.index.to_bytes(8, "little")
            self._actor.send("usage", [b"read_ready", action.cause.name, group, index])
        elif isinstance(action, RoleChanged):
            self._words[action.group, lease_words.UNTIL] = 0
            self._renew_due = 0

    def refused(self, refused: Sequence[Refused]) -> None:
        """Tell usage of rounds that there are not."""
        for one in refused:
            if isinstance(one.cause, Cause):
                self._actor.send("usage", [b"read_refused", one.cause.name])

    def committed(self, groups: Ints, index: Ints) -> None:
        """From now on an answer must hold this; to be said before other nodes can know it."""
        seen = self._words[groups, lease_words.INDEX]
        self._words[groups, lease_words.INDEX] = np.maximum(seen, index)

    def leaving(self, envelope: Envelope) -> None:
        """End the lease of every group whose next leader is asked to campaign by this."""
        for message in envelope.messages:
            if type(message) is TimeoutNow:
                self._words[message.group, lease_words.UNTIL] = 0

    def renew(self, now_ms: int) -> None:
        """Write until when each lease holds."""
        if now_ms < self._renew_due:
            return
        self._renew_due = now_ms + RENEW_MS
        node = self._actor.replicas.node
        groups, term_start, sent_at = node.leases(now_ms)
        until = np.maximum(0, sent_at + node.settings.lease_ms) * MS
        self.committed(groups, term_start)
        self._words[groups, lease_words.UNTIL] = np.where(
            sent_at == FOREVER, lease_words.FOREVER, until
        )


class Cause:
    """A read of usage, by the name that it gave it."""

    __slots__ = ("name",)

    def __init__(self, name: bytes) -> None:
        self.name = name
