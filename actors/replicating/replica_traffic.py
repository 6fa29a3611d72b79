"""What this node's engine says to other nodes, and what they say to it.

Outgoing envelopes of one turn to one peer become one: small messages by the control connection,
ops by the bulk one.  Of what comes everything is checked before the engine sees it.

Does not know: terms, leaders, who is asked for what.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from meterd.actors.frames.sockets import Frame
from meterd.actors.replicating.peers import MALFORMED, Peers
from meterd.core.cluster.wire_check import DigestAt, check_envelope
from meterd.core.cluster.wire_envelopes import ready_to_send
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.raft_frames import ENVELOPE, Note, decode_note
from meterd.protocol.raft_messages import Envelope, node_of
from meterd.protocol.raft_wire import Content, decode_envelope, encode_content

logger = logging.getLogger(__name__)


class ReplicaTraffic:
    """See the module."""

    def __init__(self, peers: Peers, digest_at: DigestAt) -> None:
        self._peers = peers
        self._digest_at = digest_at
        self._outgoing: dict[int, Envelope] = {}  # by target

    def add(self, envelope: Envelope) -> None:
        """Have an envelope sent at the end of this turn."""
        waiting = self._outgoing.get(envelope.target)
        if waiting is not None:
            envelope = envelope._replace(messages=waiting.messages + envelope.messages)
        self._outgoing[envelope.target] = envelope

    def flush(self) -> None:
        """Send what this turn has left; what does not go at once is lost."""
        if not self._outgoing:
            self._peers.flush()
            return
        outgoing, self._outgoing = self._outgoing, {}
        # What several peers get is made ready and encoded once.
        made: dict[tuple[int, ...], list[tuple[bool, Content]]] = {}
        for envelope in outgoing.values():
            same = tuple(map(id, envelope.messages))
            if same not in made:
                made[same] = [
                    (ready.is_bulk, encode_content(ready.envelope.messages))
                    for ready in ready_to_send(envelope)
                ]
            for is_bulk, content in made[same]:
                self._peers.send(envelope, is_bulk, content)
        self._peers.flush()

    def take(self, frames: Sequence[Frame]) -> Envelope | Note | None:
        """Return what `Peers.receive` has taken, or drop and count it."""
        arrived = self._peers.accept(frames)
        if arrived is None:
            return None
        try:
            if arrived.header.kind != ENVELOPE:
                return decode_note(arrived.header, arrived.frames)
            envelope = decode_envelope(arrived.header, arrived.frames)
            return check_envelope(envelope, self._digest_at)
        except RemoteProtocolError as error:
            self._peers.drop(MALFORMED)
            node = node_of(arrived.header.source)
            logger.error("node %d has sent what is wrong: %s", node, error)
            return None
