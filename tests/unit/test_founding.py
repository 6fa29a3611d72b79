"""Founding by real processes and sockets: an empty directory gets its identity."""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest
import zmq

from meterd.actors.frames import sockets
from meterd.actors.machine.notify import Notifier
from meterd.actors.options import Options
from meterd.actors.starting import claims, founding, identity
from meterd.core.cluster.members import Members
from meterd.protocol.envelope import decode_request_header
from meterd.protocol.errors import BootFailed
from tests.support.ports import free_ports
from tests.support.waiting import eventually

SECONDS = 60.0


def free_bases(count: int) -> list[int]:
    """Return application ports whose replication ports are free, too."""
    return [port - 1000 for port in free_ports(count)]


FORK = multiprocessing.get_context("fork")


def run(options: Options, result: Any) -> None:
    """Be the supervisor of one node, as far as founding goes."""
    try:
        founding.found(options, Notifier({}))
        result.send((0, ""))
    except BootFailed as failure:
        result.send((failure.exit_code, failure.reason))


class Nodes:
    """Directories that may become a cluster, each founded by a process of its own."""

    def __init__(self, home: Path, count: int = 3) -> None:
        self.home = home
        self.ports = free_bases(count)
        self.peers = ",".join(
            f"{n}:127.0.0.1:{port + 1000}" for n, port in enumerate(self.ports, 1)
        )
        self.made: dict[int, identity.Identity] = {}
        self.failed: dict[int, tuple[int, str]] = {}
        self.started: dict[int, tuple[Any, Any]] = {}
        self.respondents: list[Responding] = []

    def options(self, node: int, bootstrap: str = "auto") -> Options:
        directory = self.home / str(node)
        directory.mkdir(exist_ok=True)
        sections = {
            "node": {
                "id": node,
                "data_dir": str(directory),
                "port": self.ports[node - 1],
                "advertise": "127.0.0.1",
                "peers": self.peers,
                "bootstrap": bootstrap,
            }
        }
        return Options.from_mapping(sections)

    def start(self, node: int, bootstrap: str = "auto") -> None:
        reading, writing = FORK.Pipe(duplex=False)
        process = FORK.Process(target=run, args=(self.options(node, bootstrap), writing))
        process.start()
        writing.close()
        self.started[node] = process, reading

    def asks(self, node: int) -> bool:
        """Has it asked, and goes on?"""
        there = (self.home / str(node) / "claim.json").exists()
        return there and not self.started[node][1].poll(0.5)

    def end(self, node: int) -> None:
        process, reading = self.started.pop(node)
        assert reading.poll(SECONDS), f"node {node} still asks"
        code, reason = reading.recv()
        process.join()
        if code:
            self.failed[node] = code, reason
        else:
            self.made[node] = identity.read(str(self.home / str(node)))

    def kill(self) -> None:
        for process, _ in self.started.values():
            process.kill()
            process.join()

    def respond(self, node: int, members: Members | None = None) -> Responding:
        """Let a node that has its identity answer, as its replication actor does."""
        directory = str(self.home / str(node))
        who = identity.read(directory)
        port = self.ports[node - 1] + 1000
        responding = Responding(directory, who, port, members or who.beginning)
        self.respondents.append(responding)
        return responding


class Responding:
    """The replication port of a running node, as far as bootstrap questions go."""

    def __init__(self, directory: str, who: identity.Identity, port: int, members: Members) -> None:
        self._respondent = founding.Respondent(directory, who)
        self._respondent.members = members
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port,), daemon=True)
        self._thread.start()

    def _run(self, port: int) -> None:
        context: Any = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(f"tcp://127.0.0.1:{port}")
        while not self._ends.is_set():
            if router.poll(20):
                rid, *frames = router.recv_multipart()
                answer = self._respondent.answer(frames)
                if answer is not None:
                    router.send_multipart([rid, *answer])
        router.close()
        context.term()

    def end(self) -> None:
        self._ends.set()
        self._thread.join()


@pytest.fixture
def nodes(tmp_path: Path) -> Any:
    sockets.close()  # what other tests have opened must not cross a fork
    made = Nodes(tmp_path)
    yield made
    made.kill()
    for responding in made.respondents:
        responding.end()


def test_three_empty_directories_become_one_cluster(nodes: Nodes) -> None:
    nodes.start(2)
    nodes.start(3)
    nodes.start(1)
    nodes.end(1)
    nodes.respond(1)
    nodes.end(2)
    nodes.end(3)
    assert nodes.failed == {}
    one, two, three = (nodes.made[n] for n in (1, 2, 3))
    assert one.cluster_id == two.cluster_id == three.cluster_id
    assert one.identity_key == two.identity_key == three.identity_key
    assert one.first_members == two.first_members == three.first_members
    assert [row[0] for row in one.first_members] == [1, 2, 3]
    assert one.beginning.to_bytes() == three.beginning.to_bytes()
    assert {who.incarnation for who in (one, two, three)} == {1}
    assert claims.Grants(str(nodes.home / "1")).grant(2, "other") is False


def test_the_founder_waits_for_every_peer_unless_told_otherwise(nodes: Nodes) -> None:
    nodes.start(1)
    nodes.start(2)
    eventually(lambda: nodes.asks(2), "node 2 asks")
    assert nodes.asks(1)
    nodes.start(3, "new")
    nodes.end(1)
    nodes.respond(1)
    nodes.end(2)
    nodes.end(3)


def test_new_needs_nobody(nodes: Nodes) -> None:
    nodes.start(1, "new")
    nodes.end(1)
    assert nodes.made[1].incarnation == 1


def test_a_lost_directory_is_refused_until_it_is_recovered(nodes: Nodes) -> None:
    nodes.start(1, "new")
    nodes.end(1)
    first = nodes.respond(1)
    nodes.start(2)
    nodes.end(2)
    for name in ("node.json", "claim.json"):
        (nodes.home / "2" / name).unlink(missing_ok=True)
    nodes.start(2)
    nodes.end(2)
    assert nodes.failed[2][0] == 79
    assert "node recover 2" in nodes.failed[2][1]
    first.end()
    members = nodes.made[1].beginning
    members.apply({"op": "node_recover", "node": 2})
    directory = claims.directory_id(str(nodes.home / "2"))
    add = {"op": "node_add", "node": 2, "peer_address": "x:1", "client_address": "y:1"}
    members.apply({**add, "directory": directory})
    nodes.respond(1, members)
    nodes.start(2)
    nodes.end(2)
    assert nodes.made[2].incarnation == 2


def test_the_question_to_be_added_waits_for_its_connection(nodes: Nodes) -> None:
    asking = founding.Asking(nodes.options(2), lambda line: None)
    asking._ask_to_be_added((1,), 0.0)  # when nobody listens yet
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"tcp://127.0.0.1:{nodes.ports[0]}")
        assert router.poll(SECONDS * 1000)
        assert decode_request_header(router.recv_multipart()[1]).kind == "node_add"
    sockets.close()


def test_an_answer_that_was_lost_is_given_again(nodes: Nodes) -> None:
    nodes.start(1, "new")
    nodes.end(1)
    nodes.respond(1)
    nodes.start(3)
    nodes.end(3)
    claimed = claims.Grants(str(nodes.home / "1"))
    # As if the process had died before node.json was durable: claim.json is still there.
    (nodes.home / "3" / "node.json").unlink()
    assert claimed.grant(3, claims.directory_id(str(nodes.home / "3")))
    nodes.start(3)
    nodes.end(3)
    assert nodes.made[3].incarnation == 1


def test_two_clusters_from_one_list_are_refused(nodes: Nodes) -> None:
    nodes.start(1, "new")
    nodes.end(1)
    other = nodes.options(3)
    identity.write(other.node.data_dir, identity.new_cluster(3))
    nodes.respond(3)
    nodes.start(2)
    eventually(lambda: nodes.asks(2), "node 2 has asked node 3", SECONDS)
    nodes.respond(1)  # which would take it, had it been the first to answer
    nodes.end(2)
    assert nodes.failed[2][0] == 79
    assert "different clusters" in nodes.failed[2][1]


def test_a_wrong_address_in_the_list_is_named(nodes: Nodes) -> None:
    swapped = nodes.options(1)
    one, two, three = nodes.peers.split(",")
    peers = ",".join([one, two.replace("2:", "3:"), three.replace("3:", "2:")])
    node = dataclasses.replace(swapped.node, peers=peers)
    options = dataclasses.replace(swapped, node=node)
    nodes.start(2)
    with pytest.raises(BootFailed) as caught:
        founding.found(options, Notifier({}))
    assert caught.value.exit_code == 78
    assert "there is node 2, not node 3" in caught.value.reason
    nodes.start(3)
    nodes.start(1)
    nodes.end(1)
    nodes.respond(1)
    nodes.end(2)
    nodes.end(3)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"bootstrap"],
        [b"bootstrap", b"\x02", b"\x80"],
        [b"other", b"\x01", b"\x80"],
        [b"bootstrap", b"\x01", b"\xc1"],
        [b"bootstrap", b"\x01", b"\x80"],
        [b"bootstrap", b"\x01", b"\x90"],
        founding.pack({"node": "1", "directory": 3}),
    ],
)
def test_what_is_no_question_gets_no_answer(tmp_path: Path, frames: list[bytes]) -> None:
    who = identity.write(str(tmp_path), identity.new_cluster(1))
    assert founding.Respondent(str(tmp_path), who).answer(frames) is None
    sockets.close()


def test_a_damaged_list_of_grants_is_never_taken_for_none(tmp_path: Path) -> None:
    grants = claims.Grants(str(tmp_path))
    assert grants.grant(2, "a") and grants.grant(2, "a") and not grants.grant(2, "b")
    assert claims.Grants(str(tmp_path)).grant(2, "b") is False
    path = tmp_path / "grants.json"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    damaged = claims.Grants(str(tmp_path))
    assert [damaged.grant(node, one) for node in (2, 3) for one in "abc"] == [False] * 6
