"""Holds one DEALER socket for each address, with every option set before it connects.

ZeroMQ reconnects by itself and keeps what is not yet sent; a monitor beside each socket says when
a connection has ended or was refused. A node that is gone without a word (its machine is off) shows
only as silence, which the session's patience is for. What cannot be queued is dropped for the same
reason.

Used by one thread at a time; the sync client's lock and the async client's loop see to that.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

import zmq

from meterd.protocol import fields
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import ANSWER_SIZE_MAX

# More nodes than this are never spoken to at once; beyond it the oldest connection is closed.
CONNECTIONS_COUNT_MAX = 64
# Messages waiting for one node: far more than the session's window, so never reached in practice.
SEND_HIGH_WATER_MARK = 1_000
RECEIVE_HIGH_WATER_MARK = 1_000
HANDSHAKE_MS = 3_000
CONNECT_MS = 3_000
HEARTBEAT_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 6_000
# A node is back a second or two after it died: who looks rarely would double the time without it.
RECONNECT_MS = 50
RECONNECT_MS_MAX = 200

# What a monitor says: at most some two thousand words wait, which is what pairs of sockets hold.
LOST = zmq.Event.DISCONNECTED | zmq.Event.CONNECT_RETRIED

Socket = zmq.Socket[bytes]


def check_address(address: str) -> str:
    """Return an address as host:port, without the tcp:// it may begin with, or raise ValueError."""
    if not isinstance(address, str):
        raise TypeError(f"{address!r} is no address such as 127.0.0.1:7001")
    try:
        return fields.address(address.removeprefix("tcp://"), "seeds")
    except BadRequest:
        raise ValueError(
            f"{address!r} is no address such as 127.0.0.1:7001 or [::1]:7001"
        ) from None


class Connections:
    """The sockets of one client."""

    def __init__(
        self, on_open: Callable[[Socket], object], on_close: Callable[[Socket], object]
    ) -> None:
        """Begin without sockets; `on_open` and `on_close` hear of each one."""
        self._context: zmq.Context[Socket] = zmq.Context(io_threads=1)
        self._sockets: dict[str, Socket] = {}
        self._addresses: dict[Socket, str] = {}
        self._monitors: dict[Socket, str] = {}
        self._on_open = on_open
        self._on_close = on_close
        # Garbage is collected in any order, and a context waits for ever for a socket that is open.
        self._forgotten = weakref.finalize(self, _drop, os.getpid(), self._context, self._sockets)
        self._forgotten.atexit = False

    def send(self, address: str, frames: Sequence[bytes]) -> None:
        """Send a message, connecting first if need be."""
        socket = self._sockets.get(address) or self._open(address)
        try:
            socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            return  # the queue is full: for the session this is one more silent attempt

    def receive_one(self, ready: Sequence[tuple[object, int]]) -> list[tuple[str, list[bytes]]]:
        """Give one message of each socket that a poller has found ready, with its address."""
        addresses = self._addresses
        return [
            (addresses[socket], socket.recv_multipart(zmq.DONTWAIT))
            for socket, _ in ready
            if socket in addresses
        ]

    def receive_all(self) -> Iterator[tuple[str, list[bytes]]]:
        """Give all messages that have arrived, with the address they came from."""
        for socket, address in list(self._addresses.items()):
            while int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
                yield address, socket.recv_multipart(zmq.DONTWAIT)

    def lost_of(self, ready: Sequence[tuple[object, int]]) -> list[str]:
        """Give the addresses of connections that ended or were refused, of a poller's finds."""
        found = [one for one, _ in ready if isinstance(one, zmq.Socket) and one in self._monitors]
        return self._lost(found)

    def all_lost(self) -> list[str]:
        """Give the addresses of all connections that have ended or were refused meanwhile."""
        return self._lost(self._monitors)

    def _lost(self, monitors: Iterable[Socket]) -> list[str]:
        lost = []
        for monitor in monitors:
            while int(monitor.get(zmq.EVENTS)) & zmq.POLLIN:
                monitor.recv_multipart(zmq.DONTWAIT)
                lost.append(self._monitors[monitor])
        return list(dict.fromkeys(lost))

    def close(self) -> None:
        """Close all sockets; what is not yet sent is dropped."""
        self._forgotten.detach()
        for address in list(self._sockets):
            self._close(address)
        self._context.destroy(linger=0)

    def _open(self, address: str) -> Socket:
        if len(self._sockets) >= CONNECTIONS_COUNT_MAX:
            self._close(next(iter(self._sockets)))
        socket = self._context.socket(zmq.DEALER)
        options: tuple[tuple[int, int], ...] = (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, SEND_HIGH_WATER_MARK),
            (zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK),
            (zmq.MAXMSGSIZE, ANSWER_SIZE_MAX),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.CONNECT_TIMEOUT, CONNECT_MS),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
            (zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX),
            (zmq.IPV6, 1),
        )
        for option, setting in options:
            socket.setsockopt(option, setting)
        monitor = socket.get_monitor_socket(LOST)
        socket.connect(f"tcp://{address}")
        self._sockets[address] = socket
        self._addresses[socket] = address
        self._monitors[monitor] = address
        self._on_open(socket)
        self._on_open(monitor)
        return socket

    def _close(self, address: str) -> None:
        socket = self._sockets.pop(address)
        del self._addresses[socket]
        monitor = socket.get_monitor_socket()
        # Two thousand words that nobody has heard (a client at rest, a node that is gone) hold up
        # the thread that says them, and closing would wait for it for ever.
        self._lost([monitor])
        del self._monitors[monitor]
        self._on_close(socket)
        self._on_close(monitor)
        socket.disable_monitor()
        monitor.close(linger=0)
        socket.close(linger=0)


def _drop(owner_pid: int, context: zmq.Context[Socket], sockets: dict[str, Socket]) -> None:
    """Close what a client has left open that nobody knows any more."""
    if owner_pid != os.getpid():
        return
    for socket in sockets.values():
        monitor = socket.get_monitor_socket()
        while int(monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            monitor.recv_multipart(zmq.DONTWAIT)
    context.destroy(linger=0)
