"""Connections between nodes: what is sent arrives or is lost and counted; strangers cannot hurt."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from meterd.actors.frames import sockets
from meterd.actors.measuring.telemetry import Telemetry
from meterd.actors.replicating.link_faults import LinkFaults
from meterd.actors.replicating.peers import (
    BULK_QUEUE,
    ENVELOPES_MAX,
    NOTES_BYTES_MAX,
    NOTES_MAX,
    Own,
    Peers,
)
from meterd.protocol.raft_frames import ENVELOPE, MAGIC, decode_note
from meterd.protocol.raft_messages import Envelope, Hello, member_id
from meterd.protocol.raft_wire import decode_envelope, encode
from tests.support.ports import free_ports

CLUSTER = 0x1234
BOOT = 1_770_000_000_000
SECONDS_MAX = 20.0

pytestmark = pytest.mark.slow


class One:
    """A node's peers, with all that came: (source node, block or frames, over bulk)."""

    def __init__(
        self, node: int, ports: dict[int, int], boot: int = BOOT, links: Path | None = None
    ):
        self.node, self.boot, self.ports = node, boot, ports
        self.telemetry = Telemetry("replication")
        self.counters: dict[str, int] = {}
        addresses = {n: f"127.0.0.1:{port}" for n, port in ports.items()}
        faults = LinkFaults(links, node) if links else None
        own = Own(CLUSTER, member_id(node, 1), boot)
        self.peers = Peers(own, addresses, self.telemetry, faults)
        self.listener = self.peers.listen(f"tcp://127.0.0.1:{ports[node]}")
        self.came: list[tuple[int, Any, bool]] = []
        self.is_connected = False  # greetings that come late are no news

    def hello(self, node: int, block: int, is_bulk: bool = False) -> bool:
        own = self.peers.own
        envelope = Envelope(
            CLUSTER, own.member, member_id(node, 1), own.boot, block, (Hello(block),)
        )
        return self.peers.send(envelope, is_bulk)

    def turn(self) -> None:
        self.peers.tick(time.monotonic())
        while True:
            try:
                frames = self.peers.receive(self.listener)
            except zmq.Again:
                return
            arrived = self.peers.accept(frames)
            if arrived is None:
                continue
            source = arrived.header.source & 255
            if arrived.header.kind == ENVELOPE:
                found = decode_envelope(arrived.header, arrived.frames)
                if found.block or not self.is_connected:
                    self.came.append((source, found.block, arrived.is_bulk))
            else:
                note = decode_note(arrived.header, arrived.frames)
                self.came.append((source, [bytes(f) for f in note.frames], arrived.is_bulk))

    def count(self, name: str) -> int:
        snapshot = self.telemetry.snapshot()
        if snapshot is not None:  # None: as it was
            self.counters = snapshot["counters"]
        return self.counters.get(name, 0)

    def close(self) -> None:
        self.peers.close()
        self.listener.close()


def until(nodes: list[One], done: Callable[[], Any]) -> None:
    """Let nodes work until something is so."""
    deadline = time.monotonic() + SECONDS_MAX
    poller = zmq.Poller()
    for one in nodes:
        poller.register(one.listener, zmq.POLLIN)
    while not done():
        assert time.monotonic() < deadline, [one.came for one in nodes]
        poller.poll(5)
        for one in nodes:
            one.turn()


def connect(nodes: list[One]) -> None:
    """Wait until every pair has heard of each other over control; forget what came."""

    def all_came() -> bool:
        for one in nodes:
            for other in nodes:
                if other is not one and one.node not in [c[0] for c in other.came]:
                    one.hello(other.node, 0)
        return all(len({c[0] for c in one.came}) == len(nodes) - 1 for one in nodes)

    until(nodes, all_came)

    def bulk_connected() -> bool:
        return all(
            one.peers.has_room(other.node) and one.hello(other.node, 0, True)
            for one in nodes
            for other in nodes
            if other is not one
        )

    until(nodes, bulk_connected)
    until(nodes, lambda: all({c[0] for c in one.came if c[2]} for one in nodes))
    for one in nodes:
        one.is_connected = True
        one.came.clear()


@pytest.fixture
def ports() -> dict[int, int]:
    return dict(enumerate(free_ports(3), 1))


@pytest.fixture
def nodes() -> Iterator[list[One]]:
    made: list[One] = []
    yield made
    for one in made:
        one.close()


def test_messages_arrive_in_order_over_both_connections(
    nodes: list[One], ports: dict[int, int]
) -> None:
    nodes += [One(1, ports), One(2, ports)]
    connect(nodes)
    for block in range(1, 21):
        assert nodes[0].hello(2, block)
    assert nodes[0].peers.send_note(member_id(2, 1), [b"forward", bytes(3 << 20)])
    until(nodes, lambda: len(nodes[1].came) >= 21)
    control = [what for source, what, is_bulk in nodes[1].came if not is_bulk and what]
    assert control == list(range(1, 21))
    assert (1, [b"forward", bytes(3 << 20)], True) in nodes[1].came


def test_what_nobody_hears_is_lost_at_once(nodes: list[One], ports: dict[int, int]) -> None:
    nodes.append(One(1, ports))
    assert not nodes[0].hello(2, 1)
    assert not nodes[0].hello(9, 1)  # no such node
    assert nodes[0].count('peer_messages_lost_total{reason="unconnected"}') == 1


def test_no_more_is_on_the_way_than_a_peer_may_lack(
    nodes: list[One], ports: dict[int, int]
) -> None:
    nodes += [One(1, ports), One(2, ports)]
    connect(nodes)
    sender = nodes[0].peers
    until(nodes, lambda: nodes[1].hello(1, 7) and sender.on_way(2)[0] == 0)
    sent = 0
    while sender.send_note(member_id(2, 1), [bytes(1000)]):
        sent += 1
    assert sent == NOTES_MAX < ENVELOPES_MAX <= BULK_QUEUE
    while sender.has_room(2):  # notes leave some to envelopes
        assert nodes[0].hello(2, sent, is_bulk=True)
        sent += 1
    assert sent == ENVELOPES_MAX
    assert not nodes[0].hello(2, sent, is_bulk=True)
    assert nodes[0].count('peer_messages_lost_total{reason="full"}') == 1
    until(nodes, lambda: nodes[1].hello(1, 8) and sender.on_way(2)[0] == 0)
    until(nodes, lambda: nodes[1].hello(1, 8) and sender.on_way(2)[1] == 0)
    half = bytes(NOTES_BYTES_MAX // 2)
    assert sender.send_note(member_id(2, 1), [half])
    assert sender.send_note(member_id(2, 1), [half])
    assert not sender.send_note(member_id(2, 1), [b"x"])


def test_what_a_peer_has_of_its_last_address_says_nothing_of_what_goes_to_its_next(
    nodes: list[One], ports: dict[int, int]
) -> None:
    nodes += [One(1, ports), One(2, ports)]
    connect(nodes)
    one, two = nodes
    for block in range(1, 4):
        until(nodes, lambda block=block: one.hello(2, block, is_bulk=True))  # type: ignore[misc]
    until(nodes, lambda: two.hello(1, 7) and one.peers.on_way(2)[0] == 0)
    one.peers.update({2: f"localhost:{ports[2]}"})
    until([one], lambda: one.hello(2, 4, is_bulk=True))
    one.came.clear()
    assert two.hello(1, 8)  # and has not looked at what came
    until([one], lambda: one.came)
    assert one.peers.on_way(2)[0] == 1
    until(nodes, lambda: two.hello(1, 9) and one.peers.on_way(2)[0] == 0)


def test_a_cut_is_one_way_and_heals(
    nodes: list[One], ports: dict[int, int], tmp_path: Path
) -> None:
    links = tmp_path / "links"
    nodes += [One(n, ports, links=links) for n in ports]
    connect(nodes)
    links.write_text("1>2\n\n2>3 control\n")
    assert nodes[0].hello(2, 1)  # as on a network: nobody says that it is lost
    assert nodes[0].hello(3, 2)
    assert nodes[1].hello(1, 3)
    assert nodes[1].hello(3, 4)
    assert nodes[1].hello(3, 5, is_bulk=True)
    until(nodes, lambda: nodes[0].came and len(nodes[2].came) == 2)
    assert sorted(nodes[2].came) == [(1, 2, False), (2, 5, True)]
    links.unlink()
    assert nodes[0].hello(2, 6)
    until(nodes, lambda: nodes[1].came)
    assert nodes[1].came == [(1, 6, False)]


def test_what_was_delayed_comes_in_a_burst(
    nodes: list[One], ports: dict[int, int], tmp_path: Path
) -> None:
    links = tmp_path / "links"
    nodes += [One(1, ports, links=links), One(2, ports, links=links)]
    connect(nodes)
    links.write_text("1>* control 300\n")
    begin = time.monotonic()
    for block in range(1, 6):
        nodes[0].hello(2, block)
    until(nodes, lambda: len(nodes[1].came) == 5)
    assert time.monotonic() - begin > 0.29
    assert [what for _, what, _ in nodes[1].came] == [1, 2, 3, 4, 5]


def test_faults_are_for_tests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METERD_TEST_LINKS", raising=False)
    assert LinkFaults.wanted(1) is None
    monkeypatch.setenv("METERD_TEST_LINKS", "/nowhere")
    assert LinkFaults.wanted(1) is not None


def test_a_node_that_comes_back_is_heard_and_its_last_life_is_not(
    nodes: list[One], ports: dict[int, int]
) -> None:
    nodes += [One(1, ports), One(2, ports)]
    connect(nodes)
    nodes.pop().close()
    until(nodes, lambda: not nodes[0].hello(2, 1))
    nodes.append(One(2, ports, boot=BOOT + 1))
    until(nodes, lambda: nodes[0].hello(2, 2) and nodes[1].came)
    until(nodes, lambda: nodes[1].hello(1, 3) and nodes[0].came)
    nodes[1].peers.own = Own(CLUSTER, member_id(2, 1), BOOT)
    with_old_boot = nodes[1].peers._connect(1, f"127.0.0.1:{ports[1]}")
    nodes[0].came.clear()
    envelope = Envelope(CLUSTER, member_id(2, 1), member_id(1, 1), BOOT, 9, (Hello(9),))

    def sent_by_the_old_life() -> bool:
        try:
            sockets.send(with_old_boot[0], encode(envelope), zmq.NOBLOCK)
            return True
        except zmq.Again:
            return False

    until(nodes, sent_by_the_old_life)
    until(nodes, lambda: nodes[0].count('peer_messages_dropped_total{reason="old"}'))
    assert 9 not in [what for _, what, _ in nodes[0].came]
    for connection in with_old_boot:
        connection.close()


def test_a_new_incarnation_is_another_member(nodes: list[One], ports: dict[int, int]) -> None:
    nodes += [One(1, ports), One(2, ports)]
    connect(nodes)
    nodes[1].peers.own = Own(CLUSTER, member_id(2, 2), BOOT)  # what is for the first is not for it
    assert nodes[0].hello(2, 1)
    until(nodes, lambda: nodes[1].count('peer_messages_dropped_total{reason="target"}'))
    assert not nodes[1].came


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b""], "malformed"),
        ([b"GET / HTTP/1.1"], "malformed"),
        ([bytes(96)], "malformed"),
        ([MAGIC + b"\2\0" + bytes(200)], "version"),
        ([b"x"] * 3_000, "malformed"),
        (encode(Envelope(7, 513, 257, 1, 1, ())), "cluster"),
        (encode(Envelope(CLUSTER, 513, 1, 1, 1, ())), "target"),
        (encode(Envelope(CLUSTER, 513, 257, 1, 1, ())), "stranger"),  # of another routing id
        (encode(Envelope(CLUSTER, member_id(9, 1), 257, 1, 1, ())), "stranger"),
    ],
)
def test_what_strangers_send_is_dropped_and_counted(
    nodes: list[One], ports: dict[int, int], frames: list[bytes], reason: str
) -> None:
    nodes += [One(1, ports), One(2, ports)]
    connect(nodes)
    stranger = sockets.context().socket(zmq.DEALER)
    stranger.setsockopt(zmq.LINGER, 0)
    stranger.connect(f"tcp://127.0.0.1:{ports[1]}")
    stranger.send_multipart(frames)
    until(nodes, lambda: nodes[0].count(f'peer_messages_dropped_total{{reason="{reason}"}}'))
    assert nodes[1].hello(1, 5)
    until(nodes, lambda: nodes[0].came)
    assert nodes[0].came == [(2, 5, False)]
    stranger.close()


def test_a_node_without_identity_may_ask(nodes: list[One], ports: dict[int, int]) -> None:
    nodes.append(One(1, ports))
    nodes[0].peers._answer = lambda question: [*question, b"!"] if len(question) == 2 else None
    asker = sockets.context().socket(zmq.DEALER)
    asker.setsockopt(zmq.LINGER, 0)
    asker.connect(f"tcp://127.0.0.1:{ports[1]}")
    asker.send_multipart([b"bootstrap"])  # not well said: no answer
    asker.send_multipart([b"bootstrap", b"who?"])
    until(nodes, lambda: asker.poll(0))
    assert asker.recv_multipart() == [b"bootstrap", b"who?", b"!"]
    asker.close()


def flood(port: int, size: int) -> bool:
    """Send a message that never ends, as a raw peer; return whether it was reset."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(55, b"\0")
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.settimeout(0.2)
        frame = b"\3" + struct.pack(">Q", 1 << 20) + bytes(1 << 20)  # long, and more follow
        try:
            raw.sendall(greeting + b"\4" + bytes([len(ready)]) + ready)
            for _ in range(size >> 20):
                raw.sendall(frame)
        except (ConnectionResetError, BrokenPipeError):
            return True
        except TimeoutError:
            return False
    return False


def test_a_message_without_end_is_ended(
    nodes: list[One], ports: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterd.actors.listening.peer_guard.STRANGERS_HELD_MAX", 8 << 20)
    nodes += [One(1, ports), One(2, ports)]
    connect(nodes)
    child = os.fork()
    if child == 0:
        os._exit(0 if flood(ports[1], 1 << 34) else 1)
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended.extend([status] if pid else [])
        return bool(ended)

    until(nodes, has_ended)
    assert ended == [0]
    assert nodes[0].count("peer_connections_reset_total") == 1
    assert nodes[1].hello(1, 5)
    until(nodes, lambda: nodes[0].came)


def test_peers_come_and_go(nodes: list[One], ports: dict[int, int]) -> None:
    nodes += [One(n, ports) for n in ports]
    connect(nodes)
    nodes[0].peers.update({2: f"127.0.0.1:{ports[2]}"})
    assert not nodes[0].hello(3, 1)
    assert nodes[0].hello(2, 1)
    nodes[2].hello(1, 1)
    until(nodes, lambda: nodes[0].count('peer_messages_dropped_total{reason="stranger"}'))
    nodes[0].peers.update({n: f"127.0.0.1:{port}" for n, port in ports.items()})
    until(nodes, lambda: nodes[0].hello(3, 2))


def test_a_name_that_does_not_resolve_hinders_nobody(
    nodes: list[One], ports: dict[int, int]
) -> None:
    nodes += [One(1, ports), One(2, ports)]
    connect(nodes)
    addresses = {2: f"127.0.0.1:{ports[2]}", 3: "no-such-host.invalid:8001"}
    nodes[0].peers.update(addresses)
    assert not nodes[0].hello(3, 1)
    assert nodes[0].hello(2, 1)


def test_at_a_nodes_address_may_be_another_one(nodes: list[One], ports: dict[int, int]) -> None:
    """There is a connection, and nothing that is sent arrives where it should."""
    nodes += [One(1, ports | {2: ports[3]}), One(2, ports), One(3, ports)]
    one, two, _ = nodes
    until(nodes, lambda: one.hello(2, 1) and two.hello(1, 5) and 5 in [c[1] for c in one.came])
    assert 2 not in one.peers.connected()
    one.peers.update({node: f"127.0.0.1:{port}" for node, port in ports.items()})
    until(nodes, lambda: one.hello(2, 2) and two.hello(1, 6) and 2 in one.peers.connected())
    assert 2 in [c[1] for c in two.came]


@pytest.mark.parametrize("address", ["", "http://n9:8001", "*:8001"])
def test_who_is_nowhere_is_not_reached_and_ends_nobody(address: str) -> None:
    """As the members of an earlier version may say, and do of a node that was made alone."""
    own = Own(CLUSTER, member_id(1, 1), BOOT)
    peers = Peers(own, {9: address}, Telemetry("replication"))
    assert peers.connected() == set()
    assert not peers.send_note(member_id(9, 1), [b"note"])
    with sockets.passing_on(f"tcp://{address}") as way, pytest.raises(zmq.Again):
        sockets.send(way, [b"question"], sockets.NOBLOCK)
    peers.close()
