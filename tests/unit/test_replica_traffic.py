"""Three engines that say everything over real sockets: they elect, replicate, and lose nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import zmq

from meterd.actors.measuring.telemetry import Telemetry
from meterd.actors.replicating.link_faults import LinkFaults
from meterd.actors.replicating.peers import Own, Peers
from meterd.actors.replicating.replica_traffic import ReplicaTraffic
from meterd.core.cluster import proposals
from meterd.core.cluster.replicas import Append, Clock, Replicas, Step
from meterd.core.log.group_logs import GroupLogs, unpack
from meterd.core.raft.events import TransferLeadership
from meterd.core.raft.node import GoneBack, Request
from meterd.protocol import log_format
from meterd.protocol.log_format import EXPIRE, GROUP_COUNT, NOT_HERE, Record
from meterd.protocol.raft_messages import Configuration, Envelope, member_id
from tests.support.peer_messages import event, events_record
from tests.support.ports import free_ports

CLUSTER = 77
MEMBERS = Configuration(tuple(member_id(node, 0) for node in (1, 2, 3)))
SECONDS_MAX = 100.0

pytestmark = pytest.mark.slow


class Machine:
    """One node without actors: its disk makes durable at the end of a turn, unless it is slow."""

    def __init__(self, node: int, ports: dict[int, int], links: Path) -> None:
        self.node, self.ports, self.links = node, ports, links
        self.gone_back: list[GoneBack] = []
        member = member_id(node, 0)
        logs = GroupLogs(member)
        for group in range(GROUP_COUNT):
            logs.configure(group, MEMBERS)
        clock = _clock()
        self.replicas = Replicas(
            unpack(logs.packed()),
            clock,
            cluster=CLUSTER,
            member=member,
            boot=clock.wall,
            sequence=0,
            leader_time=0,
            random=Random(node),
        )
        addresses = {n: f"127.0.0.1:{port}" for n, port in ports.items()}
        own = Own(CLUSTER, member, clock.wall)
        self.telemetry = Telemetry("replication")
        self.peers = Peers(own, addresses, self.telemetry, LinkFaults(links, node))
        self.listener = self.peers.listen(f"tcp://127.0.0.1:{ports[node]}")
        self.traffic = ReplicaTraffic(self.peers, self.replicas.digest_at)
        self.log: dict[int, list[tuple[int, int, bytes]]] = {}  # group: index, term, digest
        self.committed = np.zeros(GROUP_COUNT, np.int64)
        self.disk_works = True
        self._written = 0

    def carry_out(self, step: Step) -> None:
        for append in step.appends:
            self._append(append)
        for _, envelope in step.envelopes:
            self.traffic.add(envelope)
        self.gone_back += [a for a in step.actions if isinstance(a, GoneBack)]
        groups, index = step.committed
        self.committed[groups] = index

    def _append(self, append: Append) -> None:
        record = log_format.parse_frames(append.head, append.payload)
        self._written = append.sequence
        for row in record.slices[record.slices["flags"] & NOT_HERE == 0]:
            ops = self.log.setdefault(int(row["partition"]), [])
            del ops[int(row["index"]) - 1 :]
            assert len(ops) == row["index"] - 1
            ops.append((int(row["index"]), int(row["term"]), row["digest"].tobytes()))

    def propose(self, record: Record) -> None:
        if not len(record.slices):
            return
        fields = (record.kind, bytearray(record.slices.tobytes()), record.payload)
        counts = (record.row_count, record.heap_size, record.registry_version)
        proposal = proposals.Proposal(*fields, *counts)
        self.carry_out(self.replicas.propose(proposal, b"cause", _clock()))

    def turn(self) -> None:
        while True:
            try:
                frames = self.peers.receive(self.listener)
            except zmq.Again:
                break
            found = self.traffic.take(frames)
            if isinstance(found, Envelope):
                self.carry_out(self.replicas.receive(found, _clock()))
        if _clock().now >= self.replicas.deadline:
            self.carry_out(self.replicas.tick(_clock()))
        if self.disk_works and self.replicas.waiting:
            step = self.replicas.durable(self._written, _clock())
            if step is not None:
                self.carry_out(step)
        self.traffic.flush()
        self.peers.tick(time.monotonic())

    def led(self) -> list[int]:
        return np.flatnonzero(self.replicas.leaders == self.node).tolist()

    def close(self) -> None:
        self.peers.close()
        self.listener.close()


def _clock() -> Clock:
    return Clock(time.monotonic_ns() // 1_000_000, time.time_ns())


def until(machines: list[Machine], done: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    poller = zmq.Poller()
    for one in machines:
        poller.register(one.listener, zmq.POLLIN)
    while not done():
        assert time.monotonic() < deadline, what
        poller.poll(5)
        for one in machines:
            one.turn()


@pytest.fixture
def links(tmp_path: Path) -> Path:
    return tmp_path / "links"


@pytest.fixture
def machines(links: Path) -> Iterator[list[Machine]]:
    ports = dict(enumerate(free_ports(3), 1))
    made = [Machine(node, ports, links) for node in (1, 2, 3)]
    until(made, lambda: all_led(made), "every group has a leader that all know")
    yield made
    for one in made:
        one.close()


def all_led(machines: list[Machine]) -> bool:
    leaders = [one.replicas.leaders for one in machines]
    return all(found.all() and (found == leaders[0]).all() for found in leaders)


def are_equal(machines: list[Machine]) -> bool:
    first = machines[0]
    last = np.array([len(first.log.get(group, ())) for group in range(GROUP_COUNT)])
    return all(one.log == first.log and (one.committed == last).all() for one in machines)


def test_an_older_copy_of_a_directory_is_noticed(machines: list[Machine]) -> None:
    for one in machines:
        one.propose(batch([group for group in one.led() if group < 256], 1))
    until(machines, lambda: are_equal(machines), "all logs are equal and committed")
    old = machines.pop()
    old.close()
    machines.append(Machine(old.node, old.ports, old.links))  # with an empty log
    until(machines, lambda: machines[2].gone_back, "it hears that it has forgotten something")
    assert not machines[2].log
    assert machines[2].gone_back[0].heard > machines[2].gone_back[0].block == 0


def batch(groups: list[int], number: int) -> Record:
    return events_record({group: [event(number), event(number + 1)] for group in groups})


def test_groups_are_handed_over(machines: list[Machine]) -> None:
    for one in machines:
        for group in one.led():
            target = member_id(group % 3 + 1, 0)
            if target != one.replicas.member:
                request = Request(group, TransferLeadership(target))
                one.carry_out(one.replicas.step(request, _clock()))

    def are_spread() -> bool:
        return all(one.led() == list(range(one.node - 1, GROUP_COUNT, 3)) for one in machines)

    until(machines, are_spread, "each node leads a third")
    until(machines, lambda: are_equal(machines), "all logs are equal and committed")


def test_what_is_proposed_is_everywhere(machines: list[Machine]) -> None:
    for number in range(20):
        for one in machines:
            groups = [group for group in one.led() if group < 256 and (group + number) % 3]
            one.propose(batch(groups, number))
        for one in machines:
            one.turn()
    for one in machines:
        one.propose(expiry(one.led()))
    until(machines, lambda: are_equal(machines), "all logs are equal and committed")
    assert min(len(machines[0].log[group]) for group in range(256)) > 1


def expiry(groups: list[int]) -> Record:
    command = proposals.command(EXPIRE, groups, {"horizon": 5}, 1)
    table = np.frombuffer(command.slices, log_format.SLICE)
    counts = (0, command.heap_size, 1, 0, 0)
    payload = memoryview(command.payload)
    return Record(0, 0, EXPIRE, 1, *counts, table, payload)


def test_who_was_cut_off_is_brought_up_to_date(machines: list[Machine], links: Path) -> None:
    links.write_text("3>*\n*>3\n")
    two = machines[:2]
    until(
        machines,
        lambda: all((one.replicas.leaders[:256] < 3).all() for one in two),
        "the others lead what node 3 led",
    )
    for number in range(10):
        for one in two:
            one.propose(batch([group for group in one.led() if group < 256], number))
            one.turn()
    machines[2].propose(batch(machines[2].led()[:9], 99))  # nobody hears of it
    until(two, lambda: are_equal(two), "two of three commit")
    links.unlink()
    until(machines, lambda: are_equal(machines), "the third has what the others have")


def test_a_follower_with_a_slow_disk_holds_nobody_up(machines: list[Machine]) -> None:
    machines[2].disk_works = False
    for number in range(15):
        for one in machines[:2]:
            one.propose(batch([group for group in one.led() if group < 256], number))
        for one in machines:
            one.turn()
    two = machines[:2]
    led = [group for one in two for group in one.led()]
    until(
        machines,
        lambda: all(len(two[0].log[g]) == two[0].committed[g] == two[1].committed[g] for g in led),
        "two of three commit",
    )
    machines[2].disk_works = True
    until(machines, lambda: are_equal(machines), "the third has what the others have")
