"""The connections to the other nodes: frames in, frames out; knows nothing of consensus.

To each other node there are two connections that only send: *control* for all that is small, and
*bulk*, so that a beat never waits behind a megabyte.  One ROUTER on the replication port takes
what comes on both: they are two TCP connections, and it takes from each in turn.

Nothing here is reliable, on purpose.  What cannot be sent at once is lost and counted; who needs
an answer asks again.  "Sent" means nothing: only what a peer says it has heard does (`on_way`).

Invariants:
  * a frame is looked into only when it comes from a member of this cluster, for this incarnation,
    over a connection that says the same
  * at most ENVELOPES_MAX bulk messages and BYTES_MAX bytes are on their way to a peer
  * sockets are made in the process that uses them
"""

from __future__ import annotations

import ipaddress
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import zmq

from meterd.actors.frames import sockets
from meterd.actors.listening.peer_guard import PeerGuard
from meterd.actors.measuring.telemetry import Telemetry
from meterd.actors.replicating.link_faults import LinkFaults
from meterd.core.cluster.report import Link
from meterd.protocol import raft_wire
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.raft_frames import (
    FRAMES_MAX,
    Frame,
    Header,
    Note,
    encode_note,
    parse_header,
)
from meterd.protocol.raft_messages import Envelope, incarnation_of, node_of
from meterd.protocol.raft_wire import Content

# Bulk messages to one peer that it has not yet said it has.
ENVELOPES_MAX: Final = 8
BYTES_MAX: Final = 16 << 20
# Of these, what is no envelope may take: an envelope that is lost holds up its groups.
NOTES_MAX: Final = 4
NOTES_BYTES_MAX: Final = 8 << 20
# With so many on their way to a peer nothing new is begun, so that it can keep up.
CONGESTED: Final = 6
SLOW_SECONDS: Final = 0.3
# What bulk has come is said with whatever is sent next; alone when so much is not said yet, or
# nothing is sent for so long.
UNTOLD_MAX: Final = 2
UNTOLD_SECONDS: Final = 0.02
# Unheard of for so long, they are lost: the connection that they were on is gone.
LOST_SECONDS: Final = 3.0
# Messages that a connection takes ahead of the network.
CONTROL_QUEUE: Final = 64
BULK_QUEUE: Final = 16

# Where there is nothing else to say.
PRESENT_SECONDS: Final = 1.0
PRESENT: Final = b"present"

# The first frame of a question of a node that has no identity yet.
QUESTION: Final = b"bootstrap"
Answer = Callable[[list[Any]], Sequence[Any] | None]

ROUTING_ID: Final = struct.Struct("<cBQQ")
ROUTING_MARK: Final = b"M"

# Why something that came was dropped.
VERSION, MALFORMED, CLUSTER, TARGET, STRANGER, OLD = (
    "version",
    "malformed",
    "cluster",
    "target",
    "stranger",
    "old",
)
# Why something was not sent.
FULL, UNCONNECTED = "full", "unconnected"


class Own(NamedTuple):
    """Who this process is."""

    cluster: int
    member: int
    boot: int


class Arrived(NamedTuple):
    """A message whose header has checked; its frames have not."""

    header: Header
    frames: list[Frame]  # the first one and those attached
    is_bulk: bool


class _Peer:
    """One other node."""

    def __init__(self, address: str, connections: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]):
        self.address = address
        self.connections = connections
        self.sequences = [0, 0]
        self.on_way: deque[tuple[int, int, float]] = deque()  # sequence, bytes, when
        self.bytes_on_way = 0
        self.member = 0  # newest that was heard, and its boot
        self.boot = 0
        self.heard = 0  # highest sequence of its bulk connection in that boot
        self.told = 0  # and what of that it has been told
        self.untold_since = 0.0  # when the first came that it has not been told of
        self.reaches = False  # has it heard of this process?  At its address may be another node

    def move(self, address: str, connections: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
        """It is looked for elsewhere.  It may be the same process, so its numbers go on."""
        self.address, self.connections = address, connections
        self.forget(self.sequences[True])
        self.reaches = False

    def close(self) -> None:
        for connection in self.connections:
            connection.close()

    def forget(self, sequence: int) -> None:
        """What has this sequence, or a lower one, is on its way no more."""
        while self.on_way and self.on_way[0][0] <= sequence:
            self.bytes_on_way -= self.on_way.popleft()[1]

    def has_room(
        self, now: float, messages_max: int = ENVELOPES_MAX, bytes_max: int = BYTES_MAX
    ) -> bool:
        while self.on_way and now - self.on_way[0][2] > LOST_SECONDS:
            self.bytes_on_way -= self.on_way.popleft()[1]
        return len(self.on_way) < messages_max and self.bytes_on_way < bytes_max


class Peers:
    """All other nodes.  Make and use it in one process, after the fork."""

    def __init__(
        self,
        own: Own,
        addresses: Mapping[int, str],
        telemetry: Telemetry,
        faults: LinkFaults | None = None,
        answer: Answer | None = None,
    ) -> None:
        """`addresses`: HOST:PORT of each other node's replication port.

        `answer`: what the frames of a question are answered with, which comes from a node that has
        no identity yet (`QUESTION`); None is no answer.
        """
        self.own = own
        self.telemetry = telemetry
        self._faults = faults
        self._answer = answer
        self._listener: zmq.Socket[bytes] | None = None
        self._peers: dict[int, _Peer] = {}
        self._guard: PeerGuard | None = None
        self._source, self._size = -1, 0  # of the last message: descriptor and bytes
        self._present_due = 0.0
        self.tell_due = 0.0  # when `flush` has something to say, at the latest
        self.update(addresses)

    def listen(self, address: str) -> zmq.Socket[bytes]:
        """Bind the replication port and return its socket: register it with `receive`.

        Raises BootFailed.
        """
        socket = self._listener = sockets.peer_listener(address)
        port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._guard = PeerGuard(port, self.telemetry)
        return socket

    def update(self, addresses: Mapping[int, str]) -> None:
        """Connect to nodes that are new or have moved, and leave those that are gone."""
        own_node = node_of(self.own.member)
        for node in self._peers.keys() - addresses.keys():
            self._peers.pop(node).close()
        for node, address in addresses.items():
            peer = self._peers.get(node)
            if peer is None and node != own_node:
                self._peers[node] = _Peer(address, self._connect(node, address))
            elif peer is not None and peer.address != address:
                peer.close()
                peer.move(address, self._connect(node, address))

    def close(self) -> None:
        """Leave all nodes."""
        self.update({})

    def _connect(self, node: int, address: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        threads = int(sockets.context().get(zmq.IO_THREADS))
        named = threads > 1 and not is_number(address)
        thread = 1 + node % (threads - 1) if named else sockets.FIRST_THREAD
        control, bulk = [
            sockets.peer_connection(
                f"tcp://{address}",
                ROUTING_ID.pack(ROUTING_MARK, is_bulk, self.own.member, self.own.boot),
                BULK_QUEUE if is_bulk else CONTROL_QUEUE,
                thread,
            )
            for is_bulk in (False, True)
        ]
        return control, bulk

    # Out

    def boot_of(self, node: int) -> int:
        """Return the boot that was heard last of another node; 0: nothing was."""
        peer = self._peers.get(node)
        return 0 if peer is None else peer.boot

    def has_room(self, node: int) -> bool:
        """Whether another bulk message may be sent to a node now."""
        peer = self._peers.get(node)
        return peer is not None and peer.has_room(time.monotonic())

    def congested(self, count: int = CONGESTED) -> bool:
        """Whether a peer that keeps up has so many envelopes on their way to it.

        Who has said nothing of what was sent `SLOW_SECONDS` ago does not hold up the others.
        """
        now = time.monotonic()
        return any(
            len(peer.on_way) >= count and now - peer.on_way[0][2] < SLOW_SECONDS
            for peer in self._peers.values()
        )

    def member_of(self, node: int) -> int:
        """Return the member that a node was when it was heard last; 0: never."""
        peer = self._peers.get(node)
        return peer.member if peer is not None else 0

    def connected(self) -> set[int]:
        """Return the nodes that small messages reach now."""
        return {
            node
            for node, peer in self._peers.items()
            if peer.reaches and sockets.takes(peer.connections[0])
        }

    def reached(self) -> dict[int, str]:
        """Return the addresses of these."""
        return {node: self._peers[node].address for node in self.connected()}

    def links(self) -> dict[int, Link]:
        """Return what is known of the connections to each node."""
        return {
            node: Link(
                all(map(sockets.takes, peer.connections)), len(peer.on_way), peer.bytes_on_way
            )
            for node, peer in self._peers.items()
        }

    def on_way(self, node: int) -> tuple[int, int]:
        """Return how many bulk messages, and bytes, a node has not yet said it has."""
        peer = self._peers[node]
        return len(peer.on_way), peer.bytes_on_way

    def send(self, envelope: Envelope, is_bulk: bool, content: Content | None = None) -> bool:
        """Send an envelope to its target's node; return False when it is lost already.

        content: what to send in place of its messages, which is encoded already.
        """
        peer = self._peers.get(node_of(envelope.target))
        if peer is None:
            return False
        stamp = self._stamp(peer, is_bulk)
        made = content or raft_wire.encode_content(envelope.messages)
        return self._send(peer, is_bulk, lambda: raft_wire.encode_whole(envelope, made, *stamp))

    def send_note(self, target: int, frames: Sequence[Any], is_bulk: bool = True) -> bool:
        """Send frames to a member's node; return False when they are lost already."""
        peer = self._peers.get(node_of(target))
        if peer is None:
            return False
        if is_bulk and not peer.has_room(time.monotonic(), NOTES_MAX, NOTES_BYTES_MAX):
            return False
        note = Note(self.own.cluster, self.own.member, target, self.own.boot, frames)
        stamp = self._stamp(peer, is_bulk)
        return self._send(peer, is_bulk, lambda: encode_note(note, *stamp))

    def _stamp(self, peer: _Peer, is_bulk: bool) -> tuple[int, int, int]:
        """Return sequence, and what has been heard of the peer."""
        peer.told = peer.heard
        return peer.sequences[is_bulk] + 1, peer.boot, peer.heard

    def _send(self, peer: _Peer, is_bulk: bool, encode: Any) -> bool:
        now = time.monotonic()
        if is_bulk and not peer.has_room(now):
            return self._lose(FULL)
        connection = peer.connections[is_bulk]
        frames = encode()
        peer.sequences[is_bulk] += 1
        if self._faults is not None:
            self._faults.look()
            node = next(n for n, p in self._peers.items() if p is peer)
            if self._faults.take(node, is_bulk, now, lambda: _try(connection, frames)):
                self._note_on_way(peer, is_bulk, frames, now)
                return True
        if not _try(connection, frames):
            return self._lose(UNCONNECTED)
        self._note_on_way(peer, is_bulk, frames, now)
        return True

    def _note_on_way(self, peer: _Peer, is_bulk: bool, frames: list[Any], now: float) -> None:
        if is_bulk:
            size = sum([memoryview(frame).nbytes for frame in frames])
            peer.on_way.append((peer.sequences[True], size, now))
            peer.bytes_on_way += size

    def _lose(self, reason: str) -> bool:
        self.telemetry.add(f'peer_messages_lost_total{{reason="{reason}"}}')
        return False

    def tick(self, now: float) -> float:
        """Do what is due; return the seconds until more is."""
        wait = 1.0
        if self._guard is not None:
            wait = self._guard.look(now)
        if now >= self._present_due:
            self._present_due = now + PRESENT_SECONDS
            self._be_present()
        if self._faults is not None:
            self._faults.look()
            wait = min(wait, self._faults.release(now))
        return wait

    def flush(self) -> None:
        """Tell those that have sent bulk, and have got nothing since, that it has come."""
        now = time.monotonic()
        self.tell_due = now + PRESENT_SECONDS
        for peer in self._peers.values():
            untold = peer.heard - peer.told
            if untold > 0:
                due = peer.untold_since + UNTOLD_SECONDS
                if untold >= UNTOLD_MAX or now >= due:
                    self.send_note(peer.member, [PRESENT], is_bulk=False)
                else:
                    self.tell_due = min(self.tell_due, due)

    def _be_present(self) -> None:
        """Say something on every bulk connection: peers see whose it is, and what was heard."""
        for peer in self._peers.values():
            if peer.member:
                self.send_note(peer.member, [PRESENT])

    # In

    def receive(self, socket: zmq.Socket[bytes]) -> list[Any]:
        """Take one message, no more of its frames than are legal.

        Raises zmq.Again when none waits.
        """
        frames: list[Any] = []
        size, more = 0, True
        while more:
            frame: Any = socket.recv(sockets.NOBLOCK, False)
            more = frame.more
            size += len(frame)
            if len(frames) <= FRAMES_MAX:
                frames.append(sockets.content(frame))
        self._source, self._size = sockets.source(frame), size
        return frames

    def accept(self, frames: Sequence[Frame]) -> Arrived | None:
        """Return a message from a peer that is meant for this node now, or drop and count it.

        `frames` are those that `receive` has just returned.
        """
        if len(frames) > 1 and frames[1] == QUESTION and self._answer is not None:
            self._answer_question(frames)
            return None
        arrived = self._look_at(frames)
        good = isinstance(arrived, Arrived)
        if self._guard is not None:
            self._guard.credit(self._source, self._size, good)
        if not isinstance(arrived, Arrived):
            self.drop(arrived)
            return None
        return None if len(frames) == 3 and frames[2] == PRESENT else arrived

    def _answer_question(self, frames: Sequence[Frame]) -> None:
        routing_id, *question = frames
        answer = self._answer(question) if self._answer is not None else None
        if answer is not None and self._listener is not None:
            _try(self._listener, [routing_id, *answer])
        if self._guard is not None:
            self._guard.credit(self._source, self._size, answer is not None)

    def _look_at(self, frames: Sequence[Frame]) -> Arrived | str:
        """Return a message, or why it is dropped."""
        routing_id, *rest = frames
        try:
            header = parse_header(rest[0] if rest else b"")
        except RemoteProtocolError as error:
            return VERSION if error.code == "unsupported_version" else MALFORMED
        if header.cluster != self.own.cluster:
            return CLUSTER
        if header.target != self.own.member:
            return TARGET
        peer = self._peers.get(node_of(header.source))
        if peer is None or len(routing_id) != ROUTING_ID.size:
            return STRANGER
        mark, is_bulk, member, boot = ROUTING_ID.unpack(routing_id)
        if (mark, member, boot) != (ROUTING_MARK, header.source, header.boot) or is_bulk > 1:
            return STRANGER
        if not self._hear(peer, header, bool(is_bulk)):
            return OLD
        return Arrived(header, rest, bool(is_bulk))

    def _hear(self, peer: _Peer, header: Header, is_bulk: bool) -> bool:
        """Remember what a header says; return False when its sender's life is over."""
        newest = (incarnation_of(peer.member), peer.boot)
        found = (incarnation_of(header.source), header.boot)
        if found < newest:
            return False
        if found > newest:
            peer.member, peer.boot = header.source, header.boot
            peer.heard = peer.told = 0
            peer.forget(peer.sequences[True])  # what was on its way to its last life
        if is_bulk:
            if peer.heard == peer.told:
                peer.untold_since = time.monotonic()
            peer.heard = max(peer.heard, header.sequence)
        if header.heard_boot == self.own.boot:
            peer.forget(header.heard)
            peer.reaches = True
        return True

    def drop(self, reason: str) -> None:
        """Count a message that was not taken: MALFORMED, or what `accept` finds."""
        self.telemetry.add(f'peer_messages_dropped_total{{reason="{reason}"}}')


def is_number(address: str) -> bool:
    """Is HOST:PORT an address that nobody has to be asked for?"""
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _try(connection: zmq.Socket[bytes], frames: Sequence[Any]) -> bool:
    try:
        sockets.send(connection, frames, sockets.NOBLOCK)
        return True
    except zmq.Again:
        return False
