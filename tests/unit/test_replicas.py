"""Replicas without sockets: one node alone, and three whose envelopes the test carries."""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.cluster.proposals import command
from meterd.core.cluster.replicas import Append, Clock, Replicas, Step
from meterd.core.cluster.wire_envelopes import BULK
from meterd.core.log.group_logs import GroupLogs, unpack
from meterd.core.log.scan import check_slices
from meterd.core.raft.events import NOT_LEADER, ProposeChange
from meterd.core.raft.node import Request
from meterd.protocol import log_facts, log_format
from meterd.protocol.log_format import (
    CONFIG,
    GROUP_COUNT,
    META,
    META_GROUP,
    NOOP,
    NOT_HERE,
    TERMS,
    Record,
)
from meterd.protocol.raft_messages import Configuration, Envelope
from meterd.protocol.raft_wire import decode, encode

NOW = 1_800_000_000_000_000_000


class Node:
    """A node's replicas and its log; what is appended is durable when the test says so."""

    def __init__(self, member: int, configuration: Configuration | None = None) -> None:
        self.member = member
        self.configuration = configuration or Configuration((member,))
        self.now = 1_000
        self.records: list[Append] = []
        self.durable_to = 0
        self.sent: list[tuple[int, Any]] = []
        self.committed = np.zeros(GROUP_COUNT, np.int64)
        self.start()

    def logs(self) -> GroupLogs:
        logs = GroupLogs(self.member)
        for group in range(GROUP_COUNT):
            logs.configure(group, self.configuration)
        for append in self.records[: self.durable_to]:
            logs.follow(parsed(append), 1)
        return logs

    def start(self, *, without: int = 0) -> None:
        """Start with what is durable; of so many records at the end nothing is known any more."""
        self.durable_to -= without
        self.records = self.records[: self.durable_to]
        logs = self.logs()
        logs.uncertain[:] = without > 0
        self.replicas = Replicas(
            unpack(msgpack.unpackb(msgpack.packb(logs.packed()), strict_map_key=False)),
            self.clock(),
            cluster=7,
            member=self.member,
            boot=self.now,
            sequence=logs.groups.sequence + without,
            leader_time=logs.groups.leader_time,
            random=Random(self.member),
        )

    def clock(self) -> Clock:
        return Clock(self.now, NOW + self.now * 1_000_000)

    def carry_out(self, step: Step | None) -> Step | None:
        if step is not None:
            self.records += step.appends
            self.sent += step.envelopes
            groups, index = step.committed
            self.committed[groups] = np.maximum(self.committed[groups], index)
        return step

    def propose(self, *groups: int, cause: Any = "cause") -> Step:
        proposal = command(META, groups, {"op": "none"}, 1)
        step = self.replicas.propose(proposal, cause, self.clock())
        self.carry_out(step)
        return step

    def sync(self) -> None:
        """Make everything durable, and what follows from that."""
        while self.durable_to < len(self.records):
            self.durable_to = len(self.records)
            for append in self.records:
                if append.commits:
                    record = parsed(append)
                    here = record.slices[record.slices["flags"] == 0]
                    self.committed[here["partition"]] = np.maximum(
                        self.committed[here["partition"]], here["index"].astype(np.int64)
                    )
            sequence = self.records[-1].sequence
            self.carry_out(self.replicas.durable(sequence, self.clock()))

    def tick(self) -> None:
        self.carry_out(self.replicas.tick(self.clock()))

    def elect(self) -> None:
        self.tick()
        self.sync()


def parsed(append: Append) -> Record:
    record = log_format.parse_frames(append.head, append.payload)
    check_slices(record)
    return record


def test_a_node_that_is_alone_leads_itself_at_once() -> None:
    node = Node(1)
    node.tick()
    (terms,) = node.records
    assert not node.replicas.opened
    rows = log_facts.parse_terms(parsed(terms))
    assert (rows["term"] == 1).all()
    assert (rows["vote"] == 1).all()
    assert len(rows) == GROUP_COUNT
    node.sync()
    _, noop = node.records
    assert parsed(noop).kind == NOOP
    assert msgpack.unpackb(parsed(noop).body) == {"why": 1}
    assert len(parsed(noop).slices) == GROUP_COUNT
    assert node.replicas.opened
    assert (node.replicas.leaders == 1).all()
    assert all(append.commits for append in node.records)
    assert (node.committed == 1).all()


def test_a_proposal_is_one_record_and_commits_when_it_is_durable() -> None:
    node = Node(1)
    node.elect()
    step = node.propose(0, 5, META_GROUP)
    (append,) = step.appends
    record = parsed(append)
    assert (append.commits, append.cause, append.sequence) == (True, "cause", 3)
    assert record.slices["partition"].tolist() == [0, 5, META_GROUP]
    assert record.slices["index"].tolist() == [2, 2, 2]
    assert record.leader_time == node.clock().wall
    node.propose(5)
    assert parsed(node.records[-1]).leader_time == node.clock().wall + 1
    assert node.replicas.waiting
    node.sync()
    assert not node.replicas.waiting
    assert node.committed[[0, 5, 6, META_GROUP]].tolist() == [2, 3, 1, 2]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(("propose", "sync", "crash", "applied", "tick")), max_size=25))
def test_whatever_happens_the_log_goes_on(steps: list[str]) -> None:
    """Start after start, each record follows the ones before it; a start never repeats a term."""
    node, random = Node(1), Random(len(steps))
    node.elect()
    terms = {1}
    for what in steps:
        node.now += random.randint(1, 400)
        if what == "propose" and node.replicas.opened:
            node.propose(*sorted(random.sample(range(GROUP_COUNT), random.randint(1, 9))))
        elif what == "sync":
            node.sync()
        elif what == "applied":
            groups = np.arange(GROUP_COUNT, dtype=np.int64)
            node.carry_out(node.replicas.applied(groups, node.committed, node.clock()))
        elif what == "crash":
            node.durable_to = random.randint(node.durable_to, len(node.records))
            node.start()
            node.elect()
            term = max(
                log_facts.parse_terms(parsed(r))["term"].max()
                for r in node.records
                if parsed(r).kind == TERMS
            )
            terms.add(int(term))
        else:
            node.tick()
    node.sync()
    logs = node.logs()
    assert logs.doubt is None
    assert (logs.groups.index == node.committed.astype(np.uint64)).all()


def test_what_one_step_writes_is_one_block_of_the_engine() -> None:
    """It is durable when its last record is; until then nothing of it counts."""
    node = Node(1)
    node.elect()
    first = node.propose(1).appends[0]
    second = node.propose(2).appends[0]
    assert node.replicas.durable(first.sequence, node.clock()) is not None
    assert node.replicas.waiting
    assert node.replicas.durable(first.sequence, node.clock()) is None
    assert node.replicas.durable(second.sequence, node.clock()) is not None
    assert not node.replicas.waiting


def test_groups_with_peers_refuse_until_they_lead_and_the_rest_is_written() -> None:
    node = Node(1, Configuration((1, 2, 3)))
    node.tick()
    step = node.propose(0, 1)
    assert not step.appends
    assert {(refused.group, refused.reason) for refused in step.refused} == {
        (0, NOT_LEADER),
        (1, NOT_LEADER),
    }


def test_a_change_of_members_ends_what_commits_by_itself() -> None:
    node = Node(1)
    node.elect()
    learner = Configuration((1,), (2,))
    request = Request(4, ProposeChange(learner, "why"))
    node.carry_out(node.replicas.step(request, node.clock()))
    record = parsed(node.records[-1])
    assert (record.kind, record.slices["partition"].tolist()) == (CONFIG, [4])
    assert msgpack.unpackb(record.body) == {"voters": [1], "learners": [2]}
    assert node.records[-1].commits  # a learner is not counted
    node.sync()
    assert node.committed[4] == 2
    found = unpack(msgpack.unpackb(msgpack.packb(node.logs().packed()), strict_map_key=False))
    assert found[4].configurations[-1][1] == learner


def carried(envelope: Envelope) -> list[Envelope]:
    """Return what arrives of an envelope: as bytes, but for what has ops."""
    bulk = tuple(one for one in envelope.messages if isinstance(one, BULK))
    control = tuple(one for one in envelope.messages if not isinstance(one, BULK))
    parts = [decode(encode(envelope._replace(messages=control)))] if control else []
    return [*parts, envelope._replace(messages=bulk)] if bulk else parts


class Trio:
    """Three nodes; envelopes are carried at once, one by one, disks are fast."""

    def __init__(self) -> None:
        configuration = Configuration((1, 2, 3))
        self.forgets = True  # what is applied; who lacks it then is sent what is on disk
        self.nodes = {member: Node(member, configuration) for member in (1, 2, 3)}

    def turn(self) -> bool:
        moved = False
        for node in self.nodes.values():
            node.sync()
            sent, node.sent = node.sent, []
            for to, envelope in sent:
                moved = True
                other = self.nodes[to]
                for part in carried(envelope):
                    other.carry_out(other.replicas.receive(part, other.clock()))
        return moved

    def settle(self) -> None:
        while self.turn():
            pass

    def later(self, ms: int) -> None:
        for _ in range(0, ms, 50):
            for node in self.nodes.values():
                node.now += 50
                if node.now >= node.replicas.deadline:
                    node.tick()
                if self.forgets:
                    every = np.arange(GROUP_COUNT, dtype=np.int64)
                    node.carry_out(node.replicas.applied(every, node.committed, node.clock()))
            self.settle()


@pytest.fixture
def trio() -> Trio:
    return Trio()


def test_three_nodes_elect_replicate_and_agree(trio: Trio) -> None:
    trio.later(3_000)
    leaders = trio.nodes[1].replicas.leaders
    assert set(leaders.tolist()) <= {1, 2, 3}
    for node in trio.nodes.values():
        assert (node.replicas.leaders == leaders).all()
    for member, node in trio.nodes.items():
        led = np.flatnonzero(leaders == member)[:3].tolist()
        others = np.flatnonzero(leaders != member)[:2].tolist()
        if led:
            step = node.propose(*sorted(led + others))
            record = parsed(step.appends[0])
            flags = {int(one["partition"]): int(one["flags"]) for one in record.slices}
            assert {g for g, flag in flags.items() if flag == NOT_HERE} == set(others)
            assert {refused.group for refused in step.refused} == set(others)
            assert not step.appends[0].commits
    trio.settle()
    trio.later(500)
    ends = [node.logs() for node in trio.nodes.values()]
    for logs in ends:
        assert logs.doubt is None
        assert (logs.groups.index == ends[0].groups.index).all()
        assert (logs.groups.digest == ends[0].groups.digest).all()
    for node in trio.nodes.values():
        assert (node.committed == ends[0].groups.index.astype(np.int64)).all()


def test_a_node_that_starts_again_gets_what_it_lacks(trio: Trio) -> None:
    trio.forgets = False
    trio.later(3_000)
    trio.nodes[2].start()
    leaders = trio.nodes[1].replicas.leaders
    for member in (1, 3):
        led = np.flatnonzero(leaders == member)[:5].tolist()
        if led:
            trio.nodes[member].propose(*led)
    trio.later(4_000)
    ends = [node.logs().groups for node in trio.nodes.values()]
    assert (ends[1].digest == ends[0].digest).all()
    assert (ends[2].digest == ends[0].digest).all()
    for node in trio.nodes.values():
        assert (node.committed == ends[0].index.astype(np.int64)).all()


def test_it_is_said_of_a_block_that_it_was_waited_for(trio: Trio) -> None:
    trio.later(3_000)
    leader = trio.nodes[int(trio.nodes[1].replicas.leaders[4])]
    slow = leader.propose(4).appends[0]
    envelopes, leader.sent = leader.sent, []
    for to, envelope in envelopes:  # the others have it before the leader's own disk
        other = trio.nodes[to]
        other.carry_out(other.replicas.receive(envelope, other.clock()))
        other.sync()
        acks, other.sent = other.sent, []
        for _, ack in acks:
            leader.carry_out(leader.replicas.receive(ack, leader.clock()))
    assert leader.committed[4] == slow.index[0]
    leader.sync()
    assert leader.replicas.is_awaited
    quick = leader.propose(4).appends[0]
    leader.sync()
    assert leader.committed[4] < quick.index[0] and not leader.replicas.is_awaited


def test_nobody_waits_for_what_another_node_leads(trio: Trio) -> None:
    """Its commit may be known before this node's disk has it: usage hears of both by and by."""
    trio.later(3_000)
    leader = trio.nodes[int(trio.nodes[1].replicas.leaders[4])]
    late = next(node for node in trio.nodes.values() if node is not leader)
    for _ in range(2):  # the second says that the first is committed
        leader.propose(4)
        leader.sync()
        envelopes, leader.sent = leader.sent, []
        for to, envelope in envelopes:
            other = trio.nodes[to]
            other.carry_out(other.replicas.receive(envelope, other.clock()))
            if other is not late:
                other.sync()
                acks, other.sent = other.sent, []
                for _, ack in acks:
                    leader.carry_out(leader.replicas.receive(ack, leader.clock()))
    assert late.committed[4] > 0
    assert not late.replicas.leads_any(np.array([4]))
    assert leader.replicas.leads_any(np.array([3, 4]))
    late.sync()
    assert not late.replicas.is_awaited


def test_a_node_that_has_lost_its_last_record_is_certain_again(trio: Trio) -> None:
    trio.forgets = False
    trio.later(3_000)
    leaders = trio.nodes[1].replicas.leaders
    for member in (1, 2):
        led = np.flatnonzero(leaders == member)[:5].tolist()
        if led:
            trio.nodes[member].propose(*led)
    trio.later(500)
    three = trio.nodes[3]
    before = three.logs().groups.index.copy()
    three.start(without=1)
    assert (three.logs().groups.index < before).any()
    assert all(group.uncertain for group in three.replicas.node.groups.values())
    trio.later(6_000)
    assert not any(group.uncertain for group in three.replicas.node.groups.values())
    ends = {member: node.logs() for member, node in trio.nodes.items()}
    assert not any(one.uncertain for one in unpack(ends[3].packed()))
    for node in trio.nodes.values():
        assert (node.committed == ends[1].groups.index.astype(np.int64)).all()
    assert (ends[3].groups.digest == ends[1].groups.digest).all()
