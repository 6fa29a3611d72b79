"""Measure what consensus costs: one cycle of ops for many groups, fast path and scalar.

    python -m bench.consensus [groups]

Three nodes in one process, no disk, no network, no codec: what is timed is `Node.step` alone.  A
cycle is one record of one op for each group that the leader leads, taken by both followers, made
durable everywhere, acked and committed.
"""

from __future__ import annotations

import sys
import time
from random import Random
from typing import Any

import numpy as np

from bench.support import say, write_result
from meterd.core.raft.events import Durable, Moment, Tick
from meterd.core.raft.fast_node import FastNode
from meterd.core.raft.group import Group
from meterd.core.raft.log import Log
from meterd.core.raft.node import Node, ProposeSlices, Received
from meterd.core.raft.settings import Settings
from meterd.core.raft.state import LEADER, Recovered
from meterd.protocol.raft_messages import Configuration, Mark
from meterd.protocol.raft_slices import SliceOps

MEMBERS = (1, 2, 3)
SETTINGS = Settings()
CYCLES = 300


def chain(before: int, term: int, index: int, kind: int, body: Any) -> int:
    return (before * 31 + index) & ((1 << 64) - 1)


def chain_many(before: Any, term: Any, index: Any, kind: Any, body: Any) -> Any:
    digest = np.zeros_like(before)
    digest[:, 0] = before[:, 0] * np.uint64(31) + index.astype(np.uint64)
    return digest


class Cluster:
    """Nodes and the messages between them, delivered at once."""

    def __init__(self, group_count: int, *, fast: bool) -> None:
        self.now = 0
        self.nodes: dict[int, Node] = {}
        self.spent: dict[str, float] = {}
        for member in MEMBERS:
            moment = Moment(-10_000)
            groups = [
                Group(
                    number,
                    member,
                    Recovered(0, 0, Log(Mark(0, 0, 0, Configuration(MEMBERS)))),
                    moment,
                    settings=SETTINGS,
                    random=Random(number),
                    chain=chain,
                )
                for number in range(group_count)
            ]
            fields: dict[str, Any] = {"cluster": 1, "member": member, "boot": 1}
            fields |= {"moment": moment, "groups": groups, "seeds": MEMBERS, "settings": SETTINGS}
            self.nodes[member] = (
                FastNode(chain_many=chain_many, **fields) if fast else Node(**fields)
            )

    def step(self, member: int, event: Any, what: str) -> None:
        """Let one thing happen, and all that follows from it."""
        began = time.perf_counter()
        output = self.nodes[member].step(self.now, self.now, event)
        self.spent[what] = self.spent.get(what, 0.0) + time.perf_counter() - began
        for to, envelope in output.envelopes:
            self.step(to, Received(envelope), "follow" if member == 1 else "ack")
        if output.block:
            self.step(
                member, Durable(output.block), f"durable {'lead' if member == 1 else 'follow'}"
            )

    def elect(self) -> None:
        """Have the first node lead everything; the others tick once, to be let in."""
        for member in MEMBERS:
            self.step(member, Tick(), "tick")
        for _ in range(400):
            self.now += 10
            self.step(1, Tick(), "tick")
        assert all(group.role == LEADER for group in self.nodes[1].groups.values())

    def cycle(self, groups: np.ndarray) -> None:
        zeros = np.zeros(len(groups), np.int64)
        digest = np.zeros((len(groups), 2), np.uint64)
        ops = SliceOps(groups, zeros, zeros, digest, zeros + 1, zeros + 288, [b""] * len(groups))
        self.step(1, ProposeSlices(ops, [None] * len(groups)), "propose")


def measure(group_count: int, *, fast: bool) -> dict[str, float]:
    """Return µs of each kind of step in one cycle."""
    cluster = Cluster(group_count, fast=fast)
    cluster.elect()
    groups = np.arange(group_count)
    for _ in range(20):
        cluster.cycle(groups)
    cluster.spent.clear()
    for _ in range(CYCLES):
        cluster.cycle(groups)
    last = cluster.nodes[1]
    applied = {last._live(n).commit for n in range(group_count)}
    assert applied == {CYCLES + 21}, applied
    return {what: round(1e6 * spent / CYCLES, 1) for what, spent in sorted(cluster.spent.items())}


def main() -> None:
    group_count = int(sys.argv[1]) if len(sys.argv) > 1 else 86
    figures = {name: measure(group_count, fast=fast) for name, fast in KINDS.items()}
    for name, figure in figures.items():
        say(f"{name}: {figure} µs a cycle of {group_count} groups, both followers together")
    write_result("consensus", {"groups": group_count, "us_per_cycle": figures})


KINDS: dict[str, bool] = {"scalar": False, "fast": True}

if __name__ == "__main__":
    main()
