"""Carries parts of requests between nodes, for the replication actor.

From ingest and usage of this node to the peer that leads a part, and outcomes back; from a peer,
what it has forwarded: checked like a record of the log, then ordered as if ingest had proposed it,
and what came back of that.  Who waits, and how long, the origin's usage knows; here are only those
that wait for room on the way to a peer, for a moment.

Frames between nodes: kind, token and

  * `forward`: checksum over the rest (u32), meta, payload, what belongs to refused rows
  * `outcome`: nothing (not known), or the outcome's body
  * `ask_index`: groups (u16); up to where must they be read?  (control socket)
  * `index`: groups, index (u64) of each; nothing: nobody knows  (control socket)
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
from crc32c import crc32c

from meterd.actors.frames.sockets import Frame
from meterd.actors.requests.outcomes import Reply, encode_command_part, encode_part
from meterd.core.cluster.forwarded import check_part_origin, check_proposal
from meterd.protocol import log_format
from meterd.protocol.log_format import Damaged

if TYPE_CHECKING:
    from meterd.actors.actor import Actor

TOKEN_SIZE = 16
# What waits for room on the way to a peer: no more than this, or one that is larger, and no longer.
QUEUE_SIZE_MAX = 16 * 1024 * 1024
QUEUE_SECONDS = 1.0
FORWARD, OUTCOME, ASK_INDEX, INDEX = b"forward", b"outcome", b"ask_index", b"index"
KINDS = (FORWARD, OUTCOME, ASK_INDEX, INDEX)

# Sends frames to a node on one of the sockets; False: not connected, or too much is on its way.
SendBulk = Callable[[int, Sequence[Frame]], bool]
# Takes what ingest would send: `propose` or `judge`.
Propose = Callable[[list[Any]], None]

logger = logging.getLogger(__name__)


class Queued(NamedTuple):
    """What waits for room."""

    frames: list[Frame]
    size: int
    since: float


class Forwarding:
    """See the module."""

    def __init__(
        self, actor: Actor, send_bulk: SendBulk, send_small: SendBulk, propose: Propose
    ) -> None:
        self._actor = actor
        self._send_bulk, self._send_small = send_bulk, send_small
        self._propose = propose
        self._queues: dict[int, deque[Queued]] = {}
        self._queued = 0  # bytes

    # From actors of this node

    def on_split(self, frames: Sequence[Frame]) -> None:
        """Tell usage what was split: behind this come its parts."""
        self._actor.send("usage", frames)

    def on_forward(self, frames: Sequence[Frame]) -> None:
        """Send a part to the node that leads it: node, token, meta, payload, refused rows."""
        _, node, token, meta, payload, refused = frames
        check = checksum(meta, payload, refused)
        self._send(node[0], [FORWARD, token, check, meta, payload, refused])

    def on_outcome(self, frames: Sequence[Frame]) -> None:
        """Send an outcome to the node that waits for it: node, token, body if there is one.

        It may be lost: then the origin does not know it, and its client asks again.
        """
        _, node, *rest = frames
        self._send(node[0], [OUTCOME, *rest])

    def _send(self, node: int, frames: list[Frame]) -> None:
        """Send in the order of the calls, as soon as there is room."""
        queue = self._queues.get(node)
        if not queue and self._send_bulk(node, frames):
            self._sent(frames)
            return
        size = sum(memoryview(frame).nbytes for frame in frames)
        if self._queued and self._queued + size > QUEUE_SIZE_MAX:
            self._unsent(frames)
            return
        self._queued += size
        self._queues.setdefault(node, deque()).append(Queued(frames, size, time.monotonic()))

    def pump(self) -> None:
        """Send what has waited for room; give up what has waited for too long."""
        if not self._queued:
            return
        now = time.monotonic()
        for node, queue in self._queues.items():
            while queue:
                first = queue[0]
                if self._send_bulk(node, first.frames):
                    self._sent(first.frames)
                elif now - first.since > QUEUE_SECONDS:
                    self._unsent(first.frames)
                else:
                    break
                queue.popleft()
                self._queued -= first.size

    def _sent(self, frames: list[Frame]) -> None:
        if frames[0] == FORWARD:
            self._actor.telemetry.add("forwarded_total")

    def _unsent(self, frames: list[Frame]) -> None:
        if frames[0] == FORWARD:
            self._actor.telemetry.add("forwards_unsent_total")
            self._actor.send("usage", [OUTCOME, frames[1]])
        else:
            self._actor.telemetry.add("outcomes_unsent_total")

    def on_index(self, frames: Sequence[Frame]) -> None:
        """Send a question for indices, or its answer: kind, node, token, and what belongs to it.

        It may be lost: then usage asks again.
        """
        kind, node, *rest = frames
        if not self._send_small(node[0], [kind, *rest]):
            self._actor.telemetry.add("outcomes_unsent_total")
            if kind == ASK_INDEX:
                self._actor.send("usage", [INDEX, rest[0]])

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
            elif frames[0] == ASK_INDEX and len(frames) == 3 and not len(frames[2]) % 2:
                self._actor.send("usage", [ASK_INDEX, bytes([node]), token, frames[2]])
            elif frames[0] == INDEX and len(frames) in (2, 4):
                self._actor.send("usage", [INDEX, token, *frames[2:]])
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
