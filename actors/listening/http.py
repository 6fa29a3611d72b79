"""Answers GET and HEAD over HTTP/1.1 inside an actor's loop: no thread, and a limit on everything.

One request a connection.  All connections live in one epoll, whose descriptor the actor's loop
watches; `serve` then does what can be done without waiting.  A client that is slow, talks too much
or never finishes is closed after `CONNECTION_SECONDS`, so it can hold nothing for long.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

CONNECTIONS_MAX = 64
CONNECTION_SECONDS = 5.0
REQUEST_SIZE_MAX = 8 * 1024
READ_SIZE = 4 * 1024
BACKLOG = 64

PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


@dataclass
class Page:
    """An answer."""

    status: int
    type: str
    body: bytes


@dataclass
class Connection:
    """One client and its one request."""

    socket: socket.socket
    opened_at: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


# Path and query of a request → its answer.
Respond = Callable[[str, dict[str, str]], Page]


class HttpServer:
    """Serves pages made by `respond`."""

    def __init__(self, host: str, port: int, respond: Respond) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self._listener.setblocking(False)
        self._respond = respond
        self._selector = selectors.EpollSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._connections: dict[socket.socket, Connection] = {}

    def fileno(self) -> int:
        """Return the descriptor that is readable when `serve` has something to do."""
        return self._selector.fileno()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def serve(self, now: float) -> None:
        """Accept, read, answer: whatever is possible without waiting."""
        for key, _ in self._selector.select(0):
            if key.fileobj is self._listener:
                self._accept(now)
                continue
            connection = self._connections.get(key.fileobj)  # type: ignore[call-overload]
            if connection is not None:
                self._advance(connection)

    def expire(self, now: float) -> None:
        """Close connections that take too long."""
        for connection in [*self._connections.values()]:
            if now - connection.opened_at > CONNECTION_SECONDS:
                self._close(connection)

    def close(self) -> None:
        """Close everything."""
        for connection in [*self._connections.values()]:
            self._close(connection)
        self._selector.close()
        self._listener.close()

    def _accept(self, now: float) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it has gone, or there are no descriptors left; the next turn tries again
        client.setblocking(False)
        if len(self._connections) >= CONNECTIONS_MAX:
            self._close(next(iter(self._connections.values())))  # the oldest
        self._connections[client] = Connection(client, now)
        self._selector.register(client, selectors.EVENT_READ)

    def _advance(self, connection: Connection) -> None:
        try:
            if not connection.answer:
                self._read(connection)
            if connection.answer:
                connection.answer = connection.answer[connection.socket.send(connection.answer) :]
                if not connection.answer:
                    self._close(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)

    def _read(self, connection: Connection) -> None:
        piece = connection.socket.recv(READ_SIZE)
        if not piece:
            raise ConnectionResetError
        connection.request += piece
        if b"\r\n\r\n" in connection.request:
            answer = self._answer(bytes(connection.request))
        elif len(connection.request) > REQUEST_SIZE_MAX:
            answer = encode(plain(431, "too large"), "GET")
        else:
            return
        connection.answer = memoryview(answer)
        self._selector.modify(connection.socket, selectors.EVENT_WRITE)

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return encode(plain(400, "not HTTP/1.1"), "GET")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return encode(plain(405, "only GET and HEAD"), method)
        try:
            parts = urlsplit(target)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        except ValueError:
            return encode(plain(400, "not a path"), method)
        return encode(self._respond(parts.path, query), method)

    def _close(self, connection: Connection) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection.socket)
        self._connections.pop(connection.socket, None)
        connection.socket.close()


def plain(status: int, text: str) -> Page:
    """Make a page of one line."""
    return Page(status, "text/plain; charset=utf-8", text.encode() + b"\n")


def encode(page: Page, method: str) -> bytes:
    """Make the bytes of an answer."""
    head = (
        f"HTTP/1.1 {page.status} {PHRASES[page.status]}\r\nContent-Type: {page.type}\r\n"
        f"Content-Length: {len(page.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else page.body)
