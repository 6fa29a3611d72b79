"""Makes every ZeroMQ socket of the node, with all options set before bind or connect.

One context per process, made on first use after the fork; the supervisor never calls in here.
Inside a node each actor binds one PULL inbox at ``ipc://RUN/NAME`` and the others connect PUSH
sockets to it.  Queues inside the node are bounded by what the router admits, not by high-water
marks, so a PUSH never blocks on a living actor.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import zmq
from zmq.backend import Socket as _Backend

from meterd.actors import endings
from meterd.protocol import limits, raft_frames
from meterd.protocol.errors import BootFailed

logger = logging.getLogger(__name__)

# Messages waiting for one actor.  The router admits fewer requests than this, so reaching it
# means that an actor has stopped reading: the sender blocks, its beat stops, the supervisor acts.
INTERNAL_HIGH_WATER_MARK = 100_000
# What the kernel takes of a message at once (if it may): one that does not fit costs the sender a
# wait for the reader, a switch of processes each time.
INTERNAL_BUFFER_SIZE = 4 * 1024 * 1024
# Answers that wait for one client, for each request that clients may have in flight together.  A
# client that reads loses none then: ZeroMQ tells a sender of messages that were taken only once for
# half its mark, so as many again seem to wait.  `listening/listener_guard.py` bounds their memory.
CLIENT_HIGH_WATER_MARK_FACTOR = 2
# No limit to the messages waiting from one client: the same module bounds their memory.
# With one, libzmq 4.3.5 aborts the process when a peer at the mark goes away and a heartbeat is
# due: any peer could end the router that way.
CLIENT_RECEIVE_HIGH_WATER_MARK = 0
# What the kernel takes of a client ahead of the process, until its first well-formed request: a
# thousand hostile peers can push no more than that at once.  Enough for 40 MB/s on a local network.
CLIENT_FIRST_BUFFER_SIZE = 8 * 1024
# Questions passed on to another node that its connection takes ahead of the network.
PASSED_ON_HIGH_WATER_MARK = 1_000
HANDSHAKE_MS = 3_000
HEARTBEAT_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 6_000
BACKLOG = 1_024

# Between nodes.  A connection that fails is made anew so fast, and a name resolved again each time.
PEER_RECONNECT_MS = 50
PEER_RECONNECT_MS_MAX = 500
PEER_CONNECT_TIMEOUT_MS = 2_000
# A peer that is silent so long is connected anew; who is alive is for the beats to say.
PEER_HEARTBEAT_MS = 1_000
PEER_HEARTBEAT_TIMEOUT_MS = 3_000
# Unacknowledged bytes that are this old end a connection.
PEER_UNACKNOWLEDGED_MS = 5_000

# What is local, and peers whose address is a number, share the first I/O thread: what one message
# leads to then wakes one thread, not several.
FIRST_THREAD = 0

# A received frame of at least this size is not copied: what is seen of it is ZeroMQ's own memory.
VIEW_SIZE = 8 * 1024

# The plain calls: what pyzmq puts around them costs some microseconds for each frame.
_send, _receive, _get = _Backend.send, _Backend.recv, _Backend.get
NOBLOCK, _MORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)  # plain numbers: an enum's | is a function
_READABLE, _WRITABLE = int(zmq.POLLIN), int(zmq.POLLOUT)
_EVENTS = zmq.SocketOption.EVENTS  # not its number: pyzmq would look for the option again

# One for all messages: each made anew would take a quarter of a megabyte first.
_pack = msgpack.Packer(default=memoryview).pack

Frame = bytes | memoryview

# Puts a large frame where its reader will look: (position, size), or None.  Takes it there.
Put = Callable[[Any], tuple[int, int] | None]
Take = Callable[[int, int], memoryview]

_context: zmq.Context[zmq.Socket[bytes]] | None = None
_context_pid = 0


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return this process's context; refuse one that was inherited through a fork."""
    global _context, _context_pid
    if _context is None:
        _context, _context_pid = zmq.Context(io_threads=1), os.getpid()
    if _context_pid != os.getpid():
        raise RuntimeError("a ZeroMQ context must not cross a fork")
    return _context


def close() -> None:
    """End this process's context; each socket keeps its linger for what is not yet sent."""
    global _context
    if _context is not None:
        _context.destroy()
        _context = None


def send(socket: zmq.Socket[bytes], frames: Sequence[Any], flags: int = 0) -> None:
    """Send one message of bytes or arrays; with NOBLOCK, raises zmq.Again where it would wait."""
    last = len(frames) - 1
    for place, frame in enumerate(frames):
        more = _MORE if place < last else 0
        source = frame.obj if type(frame) is memoryview else None
        if isinstance(source, zmq.Frame) and len(source) == frame.nbytes:
            _send(socket, source, flags | more, False)  # whole, as it came: nothing is copied
        else:
            _send(socket, frame, flags | more)


def receive(socket: zmq.Socket[bytes]) -> list[Any]:
    """Take one message, large frames as read-only views.  Raises zmq.Again when none waits."""
    frame = _receive(socket, NOBLOCK, False)
    frames = [content(frame)]
    while frame.more:
        frame = _receive(socket, NOBLOCK, False)
        frames.append(content(frame))
    return frames


def send_packed(socket: zmq.Socket[bytes], frames: Sequence[Any], put: Put | None = None) -> None:
    """Send one message of bytes or arrays to an inbox.

    Its small frames are one frame, a msgpack list, for each frame costs some microseconds on
    either side, in four threads; in the place of a large one there is nil, and it comes behind.
    Or there is where `put` has put it (`rings.py`).
    """
    small = list(frames)
    message: list[Any] = [b""]
    for place, frame in enumerate(small):
        size = len(frame) if type(frame) is bytes else memoryview(frame).nbytes
        if size >= VIEW_SIZE:
            small[place] = None if put is None else put(frame)
            if small[place] is None:
                message.append(frame)
    message[0] = _pack(small)
    send(socket, message)


def receive_packed(socket: zmq.Socket[bytes], take: Take | None = None) -> list[Any]:
    """Take one message that `send_packed` sent; `take` finds what was put where it lies.

    Raises zmq.Again when none waits.
    """
    frames: list[Any] = msgpack.unpackb(_receive(socket, NOBLOCK))
    for place, frame in enumerate(frames):
        if frame is None:
            frames[place] = content(_receive(socket, NOBLOCK, False))
        elif take is not None and type(frame) is list:
            frames[place] = take(*frame)
    return frames


def source(frame: Any) -> int:
    """Return the descriptor of the connection that a frame came from, -1 when it does not say."""
    try:
        descriptor: int = frame.get(zmq.SRCFD)
    except zmq.ZMQError:
        return -1
    return descriptor


def content(frame: Any) -> Frame:
    """Return the bytes of a received frame: a large one's where they are."""
    if len(frame) < VIEW_SIZE:
        content: bytes = frame.bytes
        return content
    return memoryview(frame.buffer).toreadonly()


def waits(socket: zmq.Socket[bytes]) -> bool:
    """Is there a message to take?  Asking is cheaper than an exception that says no."""
    return bool(int(_get(socket, _EVENTS)) & _READABLE)


def takes(socket: zmq.Socket[bytes]) -> bool:
    """Would it take a message now?"""
    return bool(int(_get(socket, _EVENTS)) & _WRITABLE)


def descriptor(socket: zmq.Socket[bytes]) -> int:
    """Return what is readable when a socket has news; once, until it is asked what waits."""
    return int(_get(socket, zmq.SocketOption.FD))


def endpoint(run_dir: str, name: str) -> str:
    """Return the address of an actor's inbox."""
    return f"ipc://{run_dir}/{name}"


def inbox(run_dir: str, name: str) -> zmq.Socket[bytes]:
    """Bind the inbox of actor `name`."""
    socket = context().socket(zmq.PULL)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.AFFINITY, 1 << FIRST_THREAD)
    socket.setsockopt(zmq.RCVHWM, INTERNAL_HIGH_WATER_MARK)
    socket.bind(endpoint(run_dir, name))
    return socket


def outbox(run_dir: str, name: str) -> zmq.Socket[bytes]:
    """Connect to the inbox of actor `name`; messages wait while it restarts."""
    socket = context().socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 1_000)
    socket.setsockopt(zmq.AFFINITY, 1 << FIRST_THREAD)
    socket.setsockopt(zmq.SNDHWM, INTERNAL_HIGH_WATER_MARK)
    socket.setsockopt(zmq.SNDBUF, INTERNAL_BUFFER_SIZE)
    socket.setsockopt(zmq.RECONNECT_IVL, 10)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
    socket.connect(endpoint(run_dir, name))
    return socket


def client_listener(address: str, requests_max: int) -> zmq.Socket[bytes]:
    """Bind the front door: a ROUTER that reports what it cannot deliver.

    It takes the answers to `requests_max` requests in flight ahead of a client that reads.

    Raises BootFailed when the address is taken or not one of this machine.
    """
    socket = context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.RCVHWM, CLIENT_RECEIVE_HIGH_WATER_MARK)
    socket.setsockopt(zmq.SNDHWM, CLIENT_HIGH_WATER_MARK_FACTOR * requests_max)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.BODY_SIZE_MAX)
    socket.setsockopt(zmq.RCVBUF, CLIENT_FIRST_BUFFER_SIZE)
    # With a domain, though nobody asks about it, libzmq refuses peers older than ZMTP 3.0.  Their
    # messages do not say where they came from, and nothing could end such a flood.
    socket.setsockopt(zmq.ZAP_DOMAIN, b"meterd")
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    _keep_alive(socket)
    _bind(socket, address)
    return socket


def use_threads(count: int) -> None:
    """Give the context of this process so many I/O threads; call it before any socket is made."""
    context().set(zmq.IO_THREADS, count)


def peer_listener(address: str) -> zmq.Socket[bytes]:
    """Bind the replication port: a ROUTER that takes what other nodes send.

    It answers only those that have no identity yet.

    Raises BootFailed.
    """
    socket = context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.AFFINITY, 1 << FIRST_THREAD)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # who has come back has a new connection
    # Peers limit what is under way, `peer_guard` what strangers send (and see
    # CLIENT_RECEIVE_HIGH_WATER_MARK).
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.SNDHWM, 16)
    socket.setsockopt(zmq.MAXMSGSIZE, raft_frames.FRAME_SIZE_MAX)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"meterd")  # ZMTP 3 only, as for clients
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    _keep_alive(socket)
    _bind(socket, address)
    return socket


def peer_connection(
    address: str, routing_id: bytes, messages_max: int, thread: int
) -> zmq.Socket[bytes]:
    """Connect to a peer's replication port: a DEALER that only sends, and rather loses than waits.

    `thread`: which I/O thread serves it, for a name that is slow to resolve holds that one up.
    """
    socket = context().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, messages_max)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing waits for a connection: it would be stale
    socket.setsockopt(zmq.ROUTING_ID, routing_id)
    socket.setsockopt(zmq.AFFINITY, 1 << thread)
    socket.setsockopt(zmq.RECONNECT_IVL, PEER_RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, PEER_RECONNECT_MS_MAX)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, PEER_CONNECT_TIMEOUT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, PEER_HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, PEER_HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.TCP_MAXRT, PEER_UNACKNOWLEDGED_MS)
    _keep_alive(socket)
    _allow_version_6(socket, address)
    _connect(socket, address)
    return socket


def _connect(socket: zmq.Socket[bytes], address: str) -> None:
    """Connect, if that is an address at all: the members say where a node is.

    A node that is nowhere is one that is not reached; whoever wants to reach it must not end.
    """
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        logger.warning("nobody is reached at %s: %s", address, zmq.strerror(error.errno or 0))


def _keep_alive(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)


def _allow_version_6(socket: zmq.Socket[bytes], address: str) -> None:
    if ":" in address.removeprefix("tcp://").rsplit(":", 1)[0]:
        socket.setsockopt(zmq.IPV6, 1)


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    _allow_version_6(socket, address)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise BootFailed(
            endings.UNAVAILABLE, f"cannot listen on {address}: {zmq.strerror(error.errno or 0)}"
        ) from error


def passing_on(address: str) -> zmq.Socket[bytes]:
    """Connect to another node's front door, as a client of it does."""
    socket = context().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, PASSED_ON_HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, PASSED_ON_HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.ANSWER_SIZE_MAX)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
    if ":" in address.removeprefix("tcp://").rsplit(":", 1)[0]:
        socket.setsockopt(zmq.IPV6, 1)
    _connect(socket, address)
    return socket
