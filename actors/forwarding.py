"""Carries parts of requests between nodes, for the replication actor.

From ingest and usage of this node to the peer that leads a part, and outcomes back; from a peer,
what it has forwarded: checked like a record of the log, then ordered as if ingest had proposed it,
and what came back of that.  It keeps nothing: who waits, and how long, the origin's usage knows.

Frames on the bulk socket, behind its envelope: kind, token and

  * `forward`: checksum over the rest (u32), meta, payload, what belongs to refused rows
  * `outcome`: nothing (not known), or the outcome's body
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgpack
from crc32c import crc32c

from meterd.actors.outcomes import Reply, encode_command_part, encode_part
from meterd.actors.sockets import Frame
from meterd.core.forwarded import check_part_origin, check_proposal
from meterd.protocol import log_format
from meterd.protocol.log_format import Damaged

if TYPE_CHECKING:
    from meterd.actors.actor import Actor

TOKEN_SIZE = 16
FORWARD, OUTCOME = b"forward", b"outcome"
KINDS = (FORWARD, OUTCOME)

# Sends frames to a node on the bulk socket; False: it is not connected, or its queue is full.
SendBulk = Callable[[int, Sequence[Frame]], bool]
# Takes what ingest would send: `propose` or `judge`.
Propose = Callable[[list[Frame]], None]

logger = logging.getLogger(__name__)


class Forwarding:
    """See the module."""

    def __init__(self, actor: Actor, send_bulk: SendBulk, propose: Propose) -> None:
        self._actor = actor
        self._send_bulk = send_bulk
        self._propose = propose

    # From actors of this node

    def on_split(self, frames: Sequence[Frame]) -> None:
        """Tell usage what was split: behind this come its parts."""
        self._actor.send("usage", frames)

    def on_forward(self, frames: Sequence[Frame]) -> None:
        """Send a part to the node that leads it: node, token, meta, payload, refused rows."""
        _, node, token, meta, payload, refused = frames
        check = checksum(meta, payload, refused)
        sent = self._send_bulk(node[0], [FORWARD, token, check, meta, payload, refused])
        if sent:
            self._actor.telemetry.add("forwarded_total")
        else:
            self._actor.telemetry.add("forwards_unsent_total")
            self._actor.send("usage", [OUTCOME, token])

    def on_outcome(self, frames: Sequence[Frame]) -> None:
        """Send an outcome to the node that waits for it: node, token, body if there is one.

        It may be lost: then the origin does not know it, and its client asks again.
        """
        _, node, *rest = frames
        if not self._send_bulk(node[0], [OUTCOME, *rest]):
            self._actor.telemetry.add("outcomes_unsent_total")

    # From peers

    def on_peer(self, node: int, frames: Sequence[Frame]) -> None:
        """Take what a peer has sent; what is wrong is counted and dropped."""
        try:
            if len(frames) < 2 or len(frames[1]) != TOKEN_SIZE:
                raise Damaged(0, "no token")
            token = bytes(frames[1])
            if frames[0] == FORWARD and len(frames) == 6:
                self._take(Reply(node, token), *frames[2:])
            elif frames[0] == OUTCOME and len(frames) <= 3:
                self._actor.send("usage", [OUTCOME, token, *frames[2:]])
            else:
                raise Damaged(0, "a message of another form")
        except Damaged as damage:
            self._actor.telemetry.add("forwards_refused_total")
            logger.error("node %d has forwarded what is wrong: %s", node, damage.reason)

    def _take(
        self, reply: Reply, check: Frame, meta: Frame, payload: Frame, refused: Frame
    ) -> None:
        """Order what another node has forwarded.  Raises Damaged."""
        if checksum(meta, payload, refused) != check:
            raise Damaged(0, "checksum")
        if not len(payload):  # every row was refused: only to be judged
            part = check_part_origin(refused, 0)
            self._propose([b"judge", encode_part(reply, *part)])
            return
        fields = check_proposal(meta, payload)
        if fields["kind"] == log_format.EVENTS:
            origin = encode_part(reply, *check_part_origin(refused, fields["row_count"]))
        else:
            origin = encode_command_part(reply)
        self._propose([b"propose", msgpack.packb(fields), payload, origin])
        self._actor.telemetry.add("forwards_taken_total")


def checksum(meta: Frame, payload: Frame, refused: Frame) -> bytes:
    """Return the checksum of a forwarded part."""
    check: int = crc32c(refused, crc32c(payload, crc32c(meta)))
    return check.to_bytes(4, "little")
