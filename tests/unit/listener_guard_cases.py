"""The guard beside a real listener, in this process, with real connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from meterd.actors.frames import sockets
from meterd.actors.listening import connection_table, listener_guard, tcp_connections
from meterd.protocol.envelope import RequestHeader, encode_request
from tests.support.attackers import HANDSHAKE, MORE, frame
from tests.support.guarded_listener import Listener
from tests.support.waiting import eventually

CONNECTIONS_MAX = 16
MIB = 1 << 20


class Bench:
    """A listener and whoever connects to it, driven by hand."""

    def __init__(self) -> None:
        self.listener = Listener(CONNECTIONS_MAX)
        self.now = time.monotonic()
        self._peers: list[socket.socket] = []
        self._clients: list[zmq.Socket[bytes]] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def peer(self) -> socket.socket:
        """A raw connection that has shaken hands."""
        peer = socket.create_connection(("127.0.0.1", self.listener.port))
        peer.settimeout(5.0)
        self._peers.append(peer)
        peer.sendall(HANDSHAKE)
        heard = b""
        while len(heard) <= 64:
            heard += peer.recv(1_000)
        return peer

    def client(self) -> zmq.Socket[bytes]:
        client = self._context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        self._clients.append(client)
        client.connect(f"tcp://127.0.0.1:{self.listener.port}")
        return client

    def answers(self, client: zmq.Socket[bytes], body: bytes = b"\x80") -> bool:
        """Does the listener answer a request of this client?"""
        client.send_multipart(encode_request(RequestHeader(1, "hello"), body))
        eventually(lambda: self.turn() or client.poll(1), "an answer")
        return client.recv_multipart()[-1] == body

    def turn(self) -> None:
        """One turn of the router's loop, a second later than the last."""
        self.now += listener_guard.SURVEY_SECONDS
        self.listener.guard.look(self.now, 0)
        self.listener.socket.poll(1)
        self.listener.turn()

    def counted(self, reason: str) -> int:
        return int(
            self._numbers("counters").get(f'connections_evicted_total{{reason="{reason}"}}', 0)
        )

    def connected(self) -> int:
        return int(self._numbers("gauges").get("clients_connected", 0))

    def _numbers(self, kind: str) -> dict[str, Any]:
        self.listener.telemetry.add("looks_at_telemetry_total")  # there is always news
        snapshot = self.listener.telemetry.snapshot()
        assert snapshot is not None
        return dict(snapshot[kind])

    def ended(self, peer: socket.socket) -> bool:
        """Has the listener ended this connection?"""
        peer.setblocking(False)
        try:
            while peer.recv(65_536):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        return True

    def until(self, condition: Callable[[], object], what: str) -> None:
        def tried() -> object:
            self.turn()
            return condition()

        eventually(tried, what)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._context.term()
        for peer in self._peers:
            peer.close()
        self.listener.close()
        sockets.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_connections_are_counted_as_they_come_and_go(bench: Bench) -> None:
    peers = [bench.peer() for _ in range(3)]
    bench.until(lambda: bench.connected() == 3, "three connections")
    for peer in peers:
        peer.close()
    bench.until(lambda: bench.connected() == 0, "no connection")


def test_a_message_beyond_any_legal_one_ends_its_connection_alone(bench: Bench) -> None:
    good, bad = bench.client(), bench.peer()
    assert bench.answers(good)
    piece = frame(bytes(MIB), MORE)
    bench.until(lambda: _sent_or_ended(bad, piece), "the message is refused")
    bench.until(lambda: bench.connected() == 1, "one connection is left")
    assert bench.counted("message_size") + bench.counted("memory") == 1
    assert bench.answers(good)


def _sent_or_ended(peer: socket.socket, piece: bytes) -> bool:
    try:
        peer.sendall(piece)
    except ConnectionError:
        return True
    return False


def test_a_client_may_send_the_largest_legal_requests_one_after_another(bench: Bench) -> None:
    client = bench.client()
    body = bytes(4 * MIB)
    for _ in range(5):
        assert bench.answers(client, body)
    assert bench.counted("message_size") == bench.counted("memory") == 0


def test_a_large_answer_may_be_read_in_its_time(bench: Bench) -> None:
    """Memory alarms at once, but a client is cut only when it does not read at all."""
    # So large that the C library does not find room for it in memory that was freed before.
    bench.listener.answer_size = 40 * MIB
    reader, deaf = bench.peer(), bench.peer()
    header, body = encode_request(RequestHeader(1, "hello"), b"\x80")
    reader.sendall(frame(header, MORE) + frame(body))
    eventually(lambda: bench.listener.turn() or bench.listener.answers == 1, "it is answered")
    for _ in range(3):  # alarm, judgement and once more, all in no time
        bench.listener.guard.look(bench.now, 0)
    heard = 0
    while heard < bench.listener.answer_size:
        bench.listener.guard.look(bench.now, 0)
        heard += len(reader.recv(MIB))
    assert bench.counted(connection_table.MEMORY) == 0
    deaf.sendall(frame(header, MORE) + frame(body))
    bench.until(lambda: bench.counted(connection_table.MEMORY), "who does not read is cut")
    assert bench.counted(connection_table.MEMORY) == 1
    assert not bench.ended(reader)


def test_a_client_whose_messages_are_malformed_is_answered_then_ended(bench: Bench) -> None:
    peer = bench.peer()
    for _ in range(connection_table.STRIKES_MAX - 1):
        peer.sendall(frame(b"\xc1", MORE) + frame(b""))
    heard = bytearray()
    bench.until(lambda: heard.extend(_heard(peer)) or heard.count(b"malformed") == 2, "two errors")
    peer.sendall(frame(b"\xc1", MORE) + frame(b""))
    bench.until(lambda: bench.ended(peer), "the connection is ended")
    assert bench.counted("malformed") == 1


def test_strikes_are_those_of_one_client(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one has the same descriptor before a survey tells them apart."""
    table = connection_table.ConnectionTable(1, CONNECTIONS_MAX, bench.listener.telemetry)
    inode = 1
    monkeypatch.setattr(tcp_connections, "inode", lambda _: inode)
    monkeypatch.setattr(tcp_connections, "reset", lambda *_: True)

    def strikes(rid: bytes, count: int) -> list[bool]:
        told = []
        for _ in range(count):
            table.credit(7, rid, 10)
            told.append(table.strike(7))
        return told

    assert strikes(b"one", 2) == [False, False]
    assert strikes(b"two", 3) == [False, False, True]
    assert strikes(b"two", 3) == [False] * 3  # what it had sent before it was ended
    inode = 2
    assert strikes(b"three", 3) == [False, False, True]


def _heard(peer: socket.socket) -> bytes:
    peer.setblocking(False)
    try:
        return peer.recv(65_536)
    except BlockingIOError:
        return b""


def test_a_message_of_too_many_frames_ends_its_connection(bench: Bench) -> None:
    good, bad = bench.client(), bench.peer()
    frames = 3 * listener_guard.FRAMES_BETWEEN_LOOKS_MAX
    bad.sendall(frame(b"", MORE) * frames + frame(b""))
    bench.until(lambda: bench.counted("frames") == 1, "the connection is ended")
    assert bench.answers(good)


def test_a_message_of_three_frames_is_an_error_and_the_next_is_read_whole(bench: Bench) -> None:
    peer = bench.peer()
    header, body = encode_request(RequestHeader(7, "hello"), b"\x80")
    peer.sendall(frame(header, MORE) + frame(body, MORE) + frame(b"more"))
    peer.sendall(frame(header, MORE) + frame(body))
    heard = bytearray()
    bench.until(lambda: heard.extend(_heard(peer)) or header in heard, "the second is answered")
    assert heard.index(b"malformed") < heard.index(header)


def test_one_turn_takes_no_more_than_its_portion(bench: Bench) -> None:
    peer = bench.peer()
    peer.sendall(frame(b"", MORE) * (2 * listener_guard.FRAMES_BETWEEN_LOOKS_MAX) + frame(b""))
    eventually(lambda: bench.listener.socket.poll(0), "the message is there")
    bench.listener.turn()
    with pytest.raises(zmq.Again):
        bench.listener.guard.receive(bench.listener.socket)
    assert bench.listener.socket.poll(0)  # there is more, after the next look
    bench.until(lambda: bench.counted("frames") == 1, "it was read to its end")


def test_too_many_connections_cost_the_silent_ones(bench: Bench) -> None:
    good = bench.client()
    assert bench.answers(good)
    peers = [bench.peer() for _ in range(CONNECTIONS_MAX + 4)]
    bench.until(lambda: bench.connected() == CONNECTIONS_MAX, "the number is bounded")
    bench.until(lambda: sum(map(bench.ended, peers)) == 5, "the rest is ended")
    assert bench.counted("surplus") == 5
    assert bench.answers(good)


def test_what_an_outcast_had_sent_is_dropped_unanswered(bench: Bench) -> None:
    peer = bench.peer()
    peer.sendall((frame(b"\xc1", MORE) + frame(b"")) * 3_000)
    bench.until(lambda: bench.counted("malformed") == 1, "the connection is ended")
    bench.until(lambda: not bench.listener.socket.poll(0), "all was taken")
    assert bench.counted("malformed") == 1
    assert bench.answers(bench.client())


def test_peers_older_than_zmtp_3_are_refused(bench: Bench) -> None:
    old = socket.create_connection(("127.0.0.1", bench.listener.port))
    old.sendall(b"\x01\x00" + b"\x05\x00half" * 100)
    bench.until(lambda: bench.ended(old), "the connection is ended")
    old.close()
    assert not bench.listener.socket.poll(0)


def test_a_reset_spares_what_is_no_client_connection(bench: Bench) -> None:
    """A descriptor may have been closed and used again since the survey."""
    one, other = socket.socketpair()
    with one, other:
        key = tcp_connections.inode(one.fileno())
        assert not tcp_connections.reset(one.fileno(), key, bench.listener.port)
        one.send(b"still there")
        assert other.recv(100) == b"still there"
    peer = bench.peer()
    bench.until(lambda: bench.connected() == 1, "the connection is known")
    found = [
        descriptor
        for descriptor in tcp_connections.descriptors()
        if tcp_connections.is_client(descriptor, bench.listener.port)
    ]
    assert len(found) == 1
    assert not tcp_connections.reset(found[0], key, bench.listener.port)  # of another inode
    assert not bench.ended(peer)
    assert tcp_connections.reset(found[0], tcp_connections.inode(found[0]), bench.listener.port)
    bench.until(lambda: bench.ended(peer), "the connection is ended")


def test_the_kernel_counts_what_was_received(bench: Bench) -> None:
    peer = bench.peer()
    found = next(
        descriptor
        for descriptor in tcp_connections.descriptors()
        if tcp_connections.is_client(descriptor, bench.listener.port)
    )
    assert tcp_connections.totals(found)[0] == len(HANDSHAKE)
    peer.sendall(bytes(1_000))
    assert eventually(lambda: tcp_connections.totals(found)[0] == len(HANDSHAKE) + 1_000, "bytes")
    assert tcp_connections.totals(-1) == (0, 0)
    assert tcp_connections.waiting(-1) == 0
    assert tcp_connections.inode(-1) == 0
