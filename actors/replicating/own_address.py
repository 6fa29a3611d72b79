"""Tells the cluster where this node is, when its members do not say.

A node that was made alone stands among them without addresses: nobody had to find it.  Once it has
peers it says `node_add` for itself, as an operator would.  What addresses there are is left alone:
they may be what an operator has said.
"""

from __future__ import annotations

import logging
from typing import Final

from meterd.actors.frames.bundle import bundle
from meterd.actors.frames.sockets import Frame
from meterd.actors.options import Node
from meterd.core.cluster.members import REMOVED, Members
from meterd.core.raft.node import Node as Engine
from meterd.protocol import body as bodies
from meterd.protocol.envelope import RequestHeader, encode_request
from meterd.protocol.log_format import META_GROUP
from meterd.protocol.raft_messages import NOBODY

DEADLINE_MS: Final = 3_000
# It may be lost, or refused (another node has this address), and each attempt is a record.
AGAIN_SECONDS: Final = 5.0
AGAIN_SECONDS_MAX: Final = 300.0
# The router passes the answer to nobody: no client's ticket is empty.
TICKET: Final = b""

logger = logging.getLogger(__name__)


class OwnAddress:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._own = next((one for one in node.cluster_nodes if one.node == node.id), None)
        self._due, self._pause = 0.0, AGAIN_SECONDS

    def due(
        self, members: Members | None, engine: Engine, applied: int, now: float
    ) -> list[Frame] | None:
        """Return what ingest is to be told at monotonic second `now`, if anything.

        members: as they were when the meta group was applied up to `applied`; None: not known.
        """
        if members is None or self._own is None or now < self._due:
            return None
        known = members.nodes.get(self._own.node)
        if known is None or known.peer_address or known.state == REMOVED:
            return None
        meta = engine.view(META_GROUP)
        if meta.leader == NOBODY or applied < max(meta.last, meta.leader_commit):
            return None  # what is not applied yet may say it
        self._due, self._pause = now + self._pause, min(2 * self._pause, AGAIN_SECONDS_MAX)
        logger.info("telling the cluster that this node is at %s", self._own.address)
        said = {
            "node": self._own.node,
            "peer_address": self._own.address,
            "client_address": self._own.client_address,
        }
        header = RequestHeader(1, "node_add", DEADLINE_MS)
        return [b"requests", *bundle([TICKET, *encode_request(header, bodies.pack(said))])]
