"""Passes questions on to the nodes that lead their accounts, as a client of those nodes would.

The router owns it.  A question is passed on once only: the node that gets it answers `not_leader`
when it does not lead the account either, and that goes back to the client, who asks again with the
next map.  What is out is bounded by what the router admits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import zmq

from meterd.actors.frames import sockets
from meterd.actors.frames.sockets import Frame
from meterd.actors.requests.answering import error_frames
from meterd.protocol.envelope import (
    AnswerHeader,
    RequestHeader,
    decode_answer_header,
    decode_request_header,
    encode_answer,
    encode_request,
)
from meterd.protocol.errors import NotLeader, RemoteProtocolError
from meterd.protocol.limits import REQUEST_ID_MAX

# Nodes that are connected to at the same time: more than a cluster has.
NODES_MAX = 256
GONE = "node {} leads nothing any more"

logger = logging.getLogger(__name__)


class Listening(Protocol):
    """What it needs of an actor."""

    def listen(self, socket: zmq.Socket[bytes], handler: Callable[[list[bytes]], None]) -> None: ...

    def unlisten(self, socket: zmq.Socket[bytes]) -> None: ...


# Gives an answer, header and body, to whoever holds a ticket.
Deliver = Callable[[bytes, Sequence[Frame]], None]


class PassingOn:
    """Connections to other nodes' application ports, and who waits for what of them."""

    def __init__(self, actor: Listening, deliver: Deliver) -> None:
        self._actor = actor
        self._deliver = deliver
        self._sockets: dict[int, tuple[str, zmq.Socket[bytes]]] = {}  # by node: address, socket
        self._out: dict[int, tuple[bytes, int, RequestHeader]] = {}  # by id: ticket, node, header
        self._ids = 0

    def __len__(self) -> int:
        return len(self._out)

    def pass_on(
        self, node: int, address: str | None, ticket: bytes, until: float, parts: Sequence[Frame]
    ) -> None:
        """Send header and body of a question to a node; until: monotonic seconds."""
        raw, body = parts
        header = decode_request_header(bytes(raw))
        left_ms = int((until - time.monotonic()) * 1000)
        if address is None or header.hops or left_ms <= 0:
            self._refuse(ticket, header, f"node {node} leads the account's partition")
            return
        self._ids = self._ids % REQUEST_ID_MAX + 1
        passed = header._replace(id=self._ids, deadline_ms=min(left_ms, header.deadline_ms), hops=1)
        try:
            frames = [encode_request(passed, b"")[0], body]
            sockets.send(self._socket(node, address), frames, sockets.NOBLOCK)
        except zmq.Again:
            self._refuse(ticket, header, f"node {node}, which leads it, is not reached")
            return
        self._out[self._ids] = ticket, node, header

    def leads_nothing(self, node: int, ticket: bytes, raw: Frame) -> None:
        """Do not pass a question on that was meant for whoever led its account until now."""
        self._refuse(ticket, decode_request_header(bytes(raw)), GONE.format(node))

    def _socket(self, node: int, address: str) -> zmq.Socket[bytes]:
        known = self._sockets.get(node)
        if known is not None and known[0] == address:
            return known[1]
        if known is not None:
            self._leave(node)
        if len(self._sockets) >= NODES_MAX:
            self._leave(next(iter(self._sockets)))
        socket = sockets.passing_on(f"tcp://{address}")
        self._sockets[node] = address, socket
        self._actor.listen(socket, self._on_answer)
        return socket

    def _leave(self, node: int) -> None:
        _, socket = self._sockets.pop(node)
        self._actor.unlisten(socket)
        socket.close(linger=0)

    def _on_answer(self, frames: list[bytes]) -> None:
        """Take an answer of another node; one that nobody waits for is dropped."""
        try:
            header = decode_answer_header(bytes(frames[0]))
        except RemoteProtocolError as error:
            logger.warning("another node has answered what cannot be read: %s", error)
            return
        found = self._out.pop(header.id or 0, None)
        if found is not None and len(frames) == 2:
            ticket, _, asked = found
            again = AnswerHeader(asked.id, header.kind, header.status, header.map_version)
            self._deliver(ticket, [encode_answer(again, b"")[0], frames[1]])

    def _refuse(self, ticket: bytes, header: RequestHeader, why: str) -> None:
        self._deliver(ticket, error_frames(header.id, header.kind, NotLeader(why)))

    def forget(self, tickets: Mapping[bytes, object]) -> None:
        """Keep only what somebody waits for still: these tickets."""
        self._out = {n: one for n, one in self._out.items() if one[0] in tickets}

    def led_by(self, nodes: set[int]) -> None:
        """Only these nodes lead anything now: nothing more is expected of others."""
        for number, (ticket, node, header) in list(self._out.items()):
            if node not in nodes:
                del self._out[number]
                self._refuse(ticket, header, GONE.format(node))

    def close(self) -> None:
        for node in list(self._sockets):
            self._leave(node)
