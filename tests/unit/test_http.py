"""The HTTP server: what it answers, and whom it does not wait for."""

import socket
from collections.abc import Iterator

import pytest

from meterd.actors.listening import http
from meterd.actors.listening.http import CONNECTION_SECONDS, CONNECTIONS_MAX, HttpServer, Page

BIG = b"x" * 3_000_000


def respond(path: str, query: dict[str, str]) -> Page:
    if path == "/big":
        return Page(200, "text/plain", BIG)
    return http.plain(200 if path == "/known" else 404, f"{path} {query}")


@pytest.fixture
def server() -> Iterator[HttpServer]:
    one = HttpServer("127.0.0.1", 0, respond)
    yield one
    one.close()


def connect(server: HttpServer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    client.setblocking(False)
    return client


def exchange(server: HttpServer, request: bytes) -> bytes:
    """Send a request in small pieces and return all that comes back."""
    client = connect(server)
    answer = b""
    with client:
        pieces = [request[at : at + 700] for at in range(0, len(request), 700)]
        for _ in range(100_000):
            if pieces:
                try:
                    client.send(pieces[0])
                    pieces.pop(0)
                except BrokenPipeError:
                    pieces.clear()
            server.serve(0.0)
            try:
                piece = client.recv(1 << 20)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return answer
            if not piece:
                return answer
            answer += piece
    raise AssertionError("no end of the answer")


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def test_a_page_is_answered_with_its_length_and_type(server: HttpServer) -> None:
    answer = exchange(server, b"GET /known?for=read&x=1&x=2 HTTP/1.1\r\nHost: a\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"/known {'for': 'read', 'x': '2'}\n"
    assert f"Content-Length: {len(body)}".encode() in head


def test_head_has_no_body(server: HttpServer) -> None:
    answer = exchange(server, b"HEAD /known HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert status(answer) == 200


def test_a_large_page_arrives_whole(server: HttpServer) -> None:
    answer = exchange(server, b"GET /big HTTP/1.1\r\n\r\n")
    assert answer.partition(b"\r\n\r\n")[2] == BIG


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", 404),
        (b"POST /known HTTP/1.1\r\n\r\n", 405),
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET /known\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"GET /known HTTP/1.1\r\n" + b"a: b\r\n" * 2000, 431),
    ],
)
def test_what_is_wrong_gets_its_status(
    server: HttpServer, request_bytes: bytes, expected: int
) -> None:
    assert status(exchange(server, request_bytes)) == expected


def test_a_client_that_never_finishes_is_closed(server: HttpServer) -> None:
    with connect(server) as slow:
        slow.send(b"GET /known")
        while not server._connections:
            server.serve(100.0)
        server.expire(100.0 + CONNECTION_SECONDS)
        assert server._connections
        server.expire(100.1 + CONNECTION_SECONDS)
        assert not server._connections


def test_idle_connections_do_not_keep_others_out(server: HttpServer) -> None:
    idle = []
    for _ in range(CONNECTIONS_MAX + 10):
        idle.append(connect(server))
        server.serve(0.0)
    assert len(server._connections) == CONNECTIONS_MAX
    assert status(exchange(server, b"GET /known HTTP/1.1\r\n\r\n")) == 200
    for one in idle:
        one.close()
