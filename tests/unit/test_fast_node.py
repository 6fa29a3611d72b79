"""A dead follower does not keep groups off the fast path."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from meterd.core.raft.events import Durable, ForgottenSlices, Tick
from meterd.core.raft.fast_node import FastNode
from meterd.core.raft.node import ProposeSlices, Received
from meterd.core.raft.settings import Settings
from meterd.core.raft.slices import CommitSlices, WriteSlices
from meterd.protocol.raft_messages import Envelope
from meterd.protocol.raft_slices import SliceOps
from tests.sim.machine import chain_many
from tests.unit.test_raft_node import make_node

GROUPS = 6
SETTINGS = Settings()
MEMBERS = (1, 2, 3)
STEP_MS = 50


def fast_node(**fields: Any) -> FastNode:
    return FastNode(chain_many=chain_many, **fields)


class Three:
    """Three nodes with disks and links that take no time."""

    def __init__(self) -> None:
        self.now = 0
        self.nodes = {m: make_node(m, MEMBERS, groups=GROUPS, make=fast_node) for m in MEMBERS}
        self.under_way: deque[tuple[int, Envelope]] = deque()
        self.fast = 0  # ops written for many groups at once by whoever proposed them

    def step(self, member: int, event: Any) -> None:
        node = self.nodes[member]
        output = node.step(self.now, self.now, event)
        if isinstance(event, ProposeSlices):
            written = [one for one in output.records if isinstance(one, WriteSlices)]
            self.fast += sum(len(one.ops.groups) for one in written)
        self.under_way += output.envelopes
        for action in output.actions:
            if isinstance(action, CommitSlices):
                self.step(member, ForgottenSlices(action.groups, action.index))
        if output.records:
            self.step(member, Durable(output.block))

    def run(self, ms: int) -> None:
        for _ in range(ms // STEP_MS):
            self.now += STEP_MS
            for member in self.nodes:
                self.step(member, Tick())
            while self.under_way:
                target, envelope = self.under_way.popleft()
                if target in self.nodes:
                    self.step(target, Received(envelope))

    def led(self, member: int) -> list[int]:
        views = self.nodes[member].views()
        return [number for number, view in views.items() if view.leader == member]

    def propose(self, member: int) -> int:
        """Append an op to each group that it leads; return how many there are."""
        groups = np.array(self.led(member), np.int64)
        count = len(groups)
        nothing, ones = np.zeros(count, np.int64), np.ones(count, np.int64)
        digest = np.zeros((count, 2), np.uint64)
        body = list(range(count))
        ops = SliceOps(groups, nothing, nothing, digest, ones, 100 * ones, body)
        self.step(member, ProposeSlices(ops, body))
        return count


def test_ops_of_groups_with_a_dead_follower_go_the_fast_way() -> None:
    three = Three()
    three.run(5_000)
    leader = next(member for member in MEMBERS if three.led(member))
    for _ in range(10):
        three.propose(leader)
        three.run(STEP_MS)
    dead = next(m for m in MEMBERS if m != leader)
    del three.nodes[dead]
    for _ in range(2 * SETTINGS.flights_max):  # more than may be under way to it
        three.propose(leader)
        three.run(STEP_MS)
    three.run(SETTINGS.silent_ms)
    before, moves = three.fast, three.nodes[leader]._steady.moves
    proposed = 0
    for _ in range(40):
        proposed += three.propose(leader)
        three.run(STEP_MS)
    assert three.fast - before == proposed > 0
    assert three.nodes[leader]._steady.moves == moves
