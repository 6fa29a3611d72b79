"""The router actor: the front door of a node.

It knows where each kind of request is served and passes it on undecoded; an answer comes back
under the *ticket* that the request was given, so whoever answers knows nothing of clients.  It
admits a bounded number and size of requests; everything behind it is bounded by that.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgpack
import zmq

from meterd import __version__
from meterd.actors.actor import Actor
from meterd.actors.files.disk import atomic_write
from meterd.actors.frames import sockets
from meterd.actors.frames.bundle import bundle, unbundle
from meterd.actors.frames.leader_map import FIRST_VERSION, LeaderMap
from meterd.actors.frames.sockets import Frame
from meterd.actors.listening.listener_guard import LOOK_QUIET_SECONDS, ListenerGuard
from meterd.actors.machine.idle_poll import IdlePoll
from meterd.actors.machine.near_actors import NearActors
from meterd.actors.requests.answering import answer_frames, error_frames
from meterd.actors.requests.passing_on import PassingOn
from meterd.actors.starting import identity, peer_list
from meterd.core.cluster.members import Members
from meterd.core.staging import HEAP_SIZE_MAX
from meterd.protocol import body as bodies
from meterd.protocol import checkpoint_format
from meterd.protocol.envelope import RequestHeader, decode_request, with_map_version
from meterd.protocol.errors import (
    BadRequest,
    DeadlineExceeded,
    DiskFull,
    MeterdError,
    Overloaded,
    Refused,
    RemoteProtocolError,
    Restarting,
    ShuttingDown,
    Starting,
)
from meterd.protocol.limits import PARTITION_COUNT, wire_limits
from meterd.protocol.messages import check_request, kind_of

# How long a client should wait before it sends again what was refused for want of room.
OVERLOADED_RETRY_MS = 50
RESTARTING_RETRY_MS = 100
# Who answers for a request says what is undecided at its deadline; the router does, so much later.
EXPIRY_MARGIN = 1.0
EXPIRY_SECONDS = 1.0
HALT_MESSAGE = "the node takes no events for the time being; questions are answered"
# Requests passed on at once: few enough that the stages of the way overlap, and enough that the
# price of a message between actors, about 30 µs on each side, is shared.
PORTION = 32
PORTION_SIZE = 1024 * 1024
MAP_FILE = "partition_map.bin"
HALT_HINT = "meterctl health says what is short; what was sent is not stored and may be sent again"

logger = logging.getLogger(__name__)

# The next page is asked of whoever gave the one before, whatever that node leads.
PAGED = ("accounts", "events", "feed")
# The body of what the router answers, as all clients write it; one larger than this is not read.
EMPTY = bodies.pack({})
EMPTY_SIZE_MAX = 256
# Texts of all events of a request, written out. The rest of the room is for their lengths, which
# take less than a megabyte: two bytes for each of 32 properties of 10,000 events.
WRITTEN_SIZE_MAX = HEAP_SIZE_MAX - 1024 * 1024
# Whose requests are lost or undecided when an actor starts anew: the query actor answers questions
# that went to usage, and with ingest the whole chain starts.
HELD_BY = {"ingest": ("ingest", "replication", "usage"), "query": ("usage",)}

# rid, request id, kind, size, expires, descriptor of its connection
Waiting = tuple[bytes, int, str, int, float, int]


class Router(Actor):
    name = "router"

    def open(self) -> None:
        node = self.options.node
        self._who = identity.read(node.data_dir)
        self._waiting: dict[bytes, Waiting] = {}  # by ticket
        self._waiting_bytes = 0
        self._boot = os.urandom(4)
        self._count = self._passed_on = 0  # requests admitted, and sent on to their actors
        self._outgoing: dict[str, list[Frame]] = {}  # (ticket, header, body) repeated, by actor
        self._outgoing_size = 0
        self._serving = False
        self._chain = ""  # process id of the ingest actor that serves
        self._halts: dict[str, MeterdError] = {}  # who wants events refused, and why
        self._stop_at = self._expiry_due = 0.0
        host = f"[{node.listen}]" if ":" in node.listen else node.listen
        self._address = f"tcp://{host}:{node.port}"
        self._clients = sockets.client_listener(
            self._address, self.options.limits.inflight_requests
        )
        self._guard = ListenerGuard(node.port, self.options.limits.connections, self.telemetry)
        self.listen(self._clients, self._on_client, self._guard.receive, self._guard.waits)
        self._idle_poll = IdlePoll(node.idle_poll)
        self._near_actors = NearActors(self.run_dir, not node.idle_poll, self.parent)
        self._nearness = self._near_actors.nearness
        self._map_unsaved = False
        self._leaders = LeaderMap(self.options)
        self._members = self._who.beginning
        self._passing_on = PassingOn(self, self._deliver)
        self._write_map()
        for actor in ("ingest", "retention_sweeper", "replication", "usage"):
            self.send(actor, [b"hello", self.name.encode()])

    def _write_map(self) -> None:
        """Keep the partition map beside the data: who leads what."""
        state = {"kind": "partition_map", **self._map()}
        path = Path(self.options.node.data_dir, MAP_FILE)
        encoded = b"".join(checkpoint_format.encode(state, {}))
        try:
            if not path.exists() or path.read_bytes() != encoded:
                atomic_write(path, encoded)
        except DiskFull as full:
            if not self._map_unsaved:
                logger.warning("no room for %s; it is written later: %s", MAP_FILE, full)
            self._map_unsaved = True
        else:
            self._map_unsaved = False

    # Clients

    def _on_client(self, frames: list[bytes]) -> None:
        self._idle_poll.extend()
        rid = frames[0]
        try:
            header, body = decode_request(frames[1:])
        except RemoteProtocolError as error:
            self.telemetry.add(f'requests_refused_total{{code="{error.code}"}}')
            self._guard.strike(self._reply([rid, *error_frames(error.request_id, "error", error)]))
            return
        try:
            self._admit(rid, header, frames[1], body)
        except MeterdError as error:
            self.telemetry.add(f'requests_refused_total{{code="{error.code}"}}')
            if error.retry == "later":
                self.telemetry.add(f'backpressure_replies_total{{reason="{error.code}"}}')
            self._reply([rid, *error_frames(header.id, header.kind, error)])

    def _admit(self, rid: bytes, header: RequestHeader, raw: bytes, body: Frame) -> None:
        """Pass a request on, or raise the reason why not."""
        actor = kind_of(header.kind).actor
        self.telemetry.add(f'requests_total{{kind="{header.kind}"}}')
        if actor == "router":
            _check_empty(header, body)
            result = self._hello() if header.kind == "hello" else self._map()
            self._reply([rid, *answer_frames(header.id, header.kind, bodies.pack(result))])
            return
        if self.stopping:
            raise ShuttingDown()
        if actor in ("ingest", "usage") and not self._serving:
            raise Starting(retry_after_ms=RESTARTING_RETRY_MS)
        if header.kind == "ingest" and self._halts:
            raise next(iter(self._halts.values()))
        limits = self.options.limits
        size = len(body)
        if (
            len(self._waiting) >= limits.inflight_requests
            or self._waiting_bytes + size > limits.inflight_bytes
        ):
            raise Overloaded(retry_after_ms=OVERLOADED_RETRY_MS)
        self._count += 1
        ticket = self._boot + self._count.to_bytes(8, "little")
        now = time.monotonic()
        expires = now + header.deadline_ms / 1000 + EXPIRY_MARGIN
        source = self._guard.source
        self._waiting[ticket] = (rid, header.id, header.kind, size, expires, source)
        self._waiting_bytes += size
        if len(self._waiting) == 1:
            self._nearness.begun(now)
        elif self._nearness.singly:
            self._near_actors.crowded()
        self._outgoing.setdefault(actor, []).extend((ticket, raw, body))
        self._outgoing_size += size

    def _hello(self) -> dict[str, object]:
        return {
            "version": __version__,
            "node_id": self._who.node_id,
            "cluster_id": self._who.cluster_id_hex,
            "partitions": PARTITION_COUNT,
            "limits": {**wire_limits(), "written_bytes": WRITTEN_SIZE_MAX},
        }

    def _map(self) -> dict[str, object]:
        return {
            "version": self._map_version,
            "partitions": PARTITION_COUNT,
            "nodes": {str(node): address for node, address in sorted(self._nodes().items())},
            "leaders": [self._leaders.node_of(group) for group in range(PARTITION_COUNT)],
        }

    def _nodes(self) -> dict[int, str]:
        """Return the client address of each node, as far as they are known."""
        node = self.options.node
        own = {node.id: peer_list.join(node.advertise or node.listen, node.port)}
        if self._leaders.alone:
            return own
        told = {one.node: one.client_address for one in self._members.present}
        return {number: address for number, address in told.items() if address} | own

    @property
    def _map_version(self) -> int:
        """It never falls in a cluster, and is the same on all nodes that know the same."""
        return self._leaders.version + (0 if self._leaders.alone else self._members.version)

    def _on_leaders(self, frames: Sequence[Frame]) -> None:
        self._leaders.take(frames)
        if not self._leaders.alone:
            self._passing_on.led_by(set(self._leaders.nodes.tolist()))
            self._map_unsaved = True  # it is written within a second, however often it changes

    def _reply(self, frames: Sequence[Frame]) -> bool:
        """Send one answer; a client that does not take it loses it and asks again."""
        version = self._map_version
        if version != FIRST_VERSION:  # whoever made the answer does not know it
            frames = [frames[0], with_map_version(bytes(frames[1]), version), *frames[2:]]
        try:
            sockets.send(self._clients, frames, sockets.NOBLOCK)
            return True
        except zmq.Again:
            self.telemetry.add("slow_client_drops_total")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.telemetry.add("answers_undeliverable_total")
        return False

    # Actors

    def handle(self, frames: list[bytes]) -> None:
        kind = frames[0]
        if kind == b"answers":
            self._idle_poll.extend()
            for ticket, header, body in unbundle(frames[1:]):
                self._deliver(ticket, (header, body))
        elif kind == b"elsewhere":
            self._on_elsewhere(frames)
        elif kind == b"leaders":
            self._on_leaders(frames)
        elif kind == b"hello":
            self._on_hello(*(frame.decode() for frame in frames[1:]))
        elif kind == b"admission":
            self._on_admission(msgpack.unpackb(frames[1]))
        elif kind == b"members":
            self._members = Members.from_bytes(frames[1])
            self._write_map()

    def _deliver(self, ticket: bytes, parts: Sequence[Frame]) -> None:
        """Give a client its answer: header and body."""
        waiting = self._waiting.pop(ticket, None)
        if waiting is None:
            return  # it was answered or forgotten before
        self._waiting_bytes -= waiting[3]
        answer: list[Frame] = [waiting[0], *parts]
        if self._reply(answer):
            self._guard.answered(waiting[5], answer)
        if self._nearness.singly:
            self._nearness.ended(time.monotonic())

    def _on_elsewhere(self, frames: Sequence[Frame]) -> None:
        """Pass questions on that other nodes have to answer: a node for each of a bundle."""
        _, nodes, *bundled = frames
        for node, (ticket, header, body) in zip(bytes(nodes), unbundle(bundled), strict=True):
            waiting = self._waiting.get(ticket)
            if waiting is None:
                continue
            if waiting[2] not in PAGED and not (self._leaders.nodes == node).any():
                # Usage had not heard of it: nothing would end the wait for a node that is gone.
                self._passing_on.leads_nothing(node, ticket, header)
            else:
                until = waiting[4] - EXPIRY_MARGIN
                address = self._nodes().get(node)
                self._passing_on.pass_on(node, address, ticket, until, (header, body))

    def _on_hello(self, actor: str, process: str = "") -> None:
        """An actor has (re)started: what it held is lost or undecided; its clients ask again."""
        if actor == "ingest":
            if process == self._chain:
                return  # it has said so before, and we had asked
            first, self._chain = not self._chain, process
            if first:  # nothing of what waits was with another one
                self._serving = True
                self.ready()
                return
        held_by = HELD_BY.get(actor, (actor,))
        for ticket, waiting in list(self._waiting.items()):
            rid, request_id, kind, size, *_ = waiting
            if kind_of(kind).actor in held_by:
                del self._waiting[ticket]
                self._waiting_bytes -= size
                error = Restarting(retry_after_ms=RESTARTING_RETRY_MS)
                self._reply([rid, *error_frames(request_id, kind, error)])

    def _on_admission(self, said: dict[str, object]) -> None:
        source, code = str(said["source"]), said["code"]
        if code is None:
            self._halts.pop(source, None)
            return
        halt = Refused(str(code), HALT_MESSAGE, "later", HALT_HINT)
        halt.retry_after_ms = int(said["retry_after_ms"])  # type: ignore[call-overload]
        self._halts[source] = halt

    def enough(self) -> bool:
        """Pass requests on in portions, so that the other actors work while we take the next."""
        return self._count - self._passed_on >= PORTION or self._outgoing_size >= PORTION_SIZE

    def flush(self) -> None:
        self._passed_on = self._count
        self._outgoing_size = 0
        for actor, parts in self._outgoing.items():
            self.send(actor, [b"requests", *bundle(parts)])
        self._outgoing.clear()
        self.tick_by(time.monotonic() + LOOK_QUIET_SECONDS)

    def tick(self, now: float) -> float:
        """Answer what is undecided at its deadline; look after the listener's memory."""
        if now >= self._expiry_due:
            self._expiry_due = now + EXPIRY_SECONDS
            if self._map_unsaved:
                self._write_map()
            for ticket, waiting in list(self._waiting.items()):
                if waiting[4] <= now:
                    del self._waiting[ticket]
                    self._waiting_bytes -= waiting[3]
                    self.telemetry.add("requests_forgotten_total")
                    error = DeadlineExceeded("it is not decided yet, and may still happen")
                    self._reply([waiting[0], *error_frames(waiting[1], waiting[2], error)])
            self._passing_on.forget(self._waiting)
        self.telemetry.set("inflight_requests", len(self._waiting))
        self.telemetry.set("inflight_bytes", self._waiting_bytes)
        self._near_actors.turn(now)
        wait = self._guard.look(now, self._waiting_bytes)
        if self._waiting or self._nearness.near:
            return wait
        return max(wait, min(self._guard.rest(now), EXPIRY_SECONDS))

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Wait for news; where it takes longer than a look at the memory, look meanwhile."""
        if seconds > 2 * LOOK_QUIET_SECONDS:
            if not self._guard.wait(self._epoll, seconds):
                self.tick_by(0.0)
            seconds = 0.0
        return super().wait(seconds)

    def drained(self) -> bool:
        """Take no more connections; wait for answers in flight, but not for ever."""
        now = time.monotonic()
        if not self._stop_at:
            self._stop_at = now + self.options.shutdown.grace
            self._clients.unbind(self._clients.getsockopt_string(zmq.LAST_ENDPOINT))
        return not self._waiting or now >= self._stop_at

    def close(self) -> None:
        self._near_actors.close()
        self._passing_on.close()
        self._clients.close(linger=1_000)
        self._guard.close()


def _check_empty(header: RequestHeader, body: Frame) -> None:
    """Make sure that a question of which there is nothing to say says nothing; costs no decoding.

    Raises RemoteProtocolError for what is no map, BadRequest for a key.
    """
    if body == EMPTY and header.lz4_size is None:
        return
    if len(body) > EMPTY_SIZE_MAX:
        raise BadRequest(f"{header.kind}: a body of {len(body)} bytes; it is an empty map")
    check_request(header.kind, body, header.lz4_size)
