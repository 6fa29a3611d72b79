"""The faults of a cluster campaign: what each does, and what was killed by it.

A *stroke* breaks something for a while and mends it at its end.  `Strokes` counts every kill -9, by
victim and by what was going on, and every partition: the numbers that a campaign is measured by.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import Random
from threading import Timer
from typing import NamedTuple

from tests.support.cluster import Cluster, ClusterNode
from tests.support.kill_campaign import VICTIMS
from tests.support.processes import is_gone
from tests.support.small_disk import MIB, SmallDisk
from tests.support.waiting import eventually

# What one node can suffer, and what only a cluster can.
ALONE = ("kill_node", "kill_actor", "pause_actor")
PARTITIONS = ("isolate", "one_way", "cut_pair")
TOGETHER = (
    "kill_catching_up",
    "kill_actor_catching_up",
    "kill_in_view_change",
    "pause_node",
    *PARTITIONS,
    "slow_disk",
)
FULL_DISK = "full_disk"
STROKE_SECONDS_MAX = 4.0
# A leader's death is noticed after 0.9 s, and the next leader is there half a second later.
VIEW_CHANGE_SECONDS = (0.5, 2.0)
VICTIM_SECONDS_MAX = 60.0
FREE_BYTES_LEFT = 2 * MIB


class Stroke(NamedTuple):
    """One fault: what, where, and how long it lasts."""

    kind: str
    node: int
    other: int  # another node, for links and second kills
    actor: str
    seconds: float


def draw_plan(seed: int, counts: Mapping[str, int], nodes: int) -> list[Stroke]:
    """Draw so many strokes of each kind, in random order."""
    random = Random(seed)
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    random.shuffle(kinds)
    actors = [name for name in VICTIMS if name != "supervisor"]
    plan = []
    for kind in kinds:
        node = random.randint(1, nodes)
        others = [other for other in range(1, nodes + 1) if other != node] or [node]
        seconds = random.random() * STROKE_SECONDS_MAX
        plan.append(Stroke(kind, node, random.choice(others), random.choice(actors), seconds))
    return plan


class Strokes:
    """Carries strokes out; `kills` counts (victim, what was going on)."""

    def __init__(self, cluster: Cluster, random: Random, disks: Mapping[int, SmallDisk]) -> None:
        self.kills: Counter[tuple[str, str]] = Counter()
        self.partitions = 0
        self._cluster = cluster
        self._random = random
        self._disks = disks

    @contextmanager
    def fault(self, stroke: Stroke) -> Iterator[None]:
        """Break something; mend it at the end."""
        node = self._cluster.node(stroke.node)
        if stroke.kind in PARTITIONS:
            self._cut(stroke)
            try:
                yield
            finally:
                self._cluster.links.heal()
            return
        with getattr(self, f"_{stroke.kind}")(node, stroke):
            yield

    # Kills

    def _kill(self, node: ClusterNode, meanwhile: str) -> None:
        node.kill9()
        self.kills["node", meanwhile] += 1

    def _kill_one(self, node: ClusterNode, actor: str, meanwhile: str) -> None:
        """Kill an actor as soon as it lives."""

        def living() -> int:
            pid: int = node.page().get("actors", {}).get(actor, {}).get("pid", 0)
            return 0 if not pid or is_gone(pid) else pid

        pid = eventually(living, f"{actor} of node {node.number} lives", VICTIM_SECONDS_MAX)
        os.kill(pid, signal.SIGKILL)
        self.kills[actor, meanwhile] += 1

    @contextmanager
    def _kill_node(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        self._kill(node, "")
        alone = len(self._cluster.nodes) == 1
        if alone:
            node.start(wait=False)  # nobody else could serve
        yield
        if not alone:
            node.start(wait=False)

    @contextmanager
    def _kill_catching_up(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        self._kill(node, "")
        yield
        node.start(wait=False)
        time.sleep(self._random.random() * STROKE_SECONDS_MAX)
        self._kill(node, "catching up")
        node.start(wait=False)

    @contextmanager
    def _kill_actor_catching_up(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        self._kill(node, "")
        yield
        node.start(wait=False)
        time.sleep(self._random.random())
        self._kill_one(node, stroke.actor, "catching up")

    @contextmanager
    def _kill_in_view_change(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        """Kill a second one while the others elect: an actor, or a whole node that starts again."""
        other = self._cluster.node(stroke.other)
        self._kill(node, "")
        time.sleep(self._random.uniform(*VIEW_CHANGE_SECONDS))
        if stroke.seconds < STROKE_SECONDS_MAX / 2:
            self._kill_one(other, stroke.actor, "in a view change")
        else:
            self._kill(other, "in a view change")
            other.start(wait=False)
        yield
        node.start(wait=False)

    @contextmanager
    def _kill_actor(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        self._kill_one(node, stroke.actor, "")
        yield

    # Pauses, disks, links

    @contextmanager
    def _pause_actor(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        pid = node.pids()[stroke.actor]
        os.kill(pid, signal.SIGSTOP)
        with resumed(pid, stroke.seconds / 2):
            yield

    @contextmanager
    def _pause_node(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        node.pause()
        try:
            yield
        finally:
            node.resume()

    @contextmanager
    def _slow_disk(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        with node.slow_disk():
            yield

    @contextmanager
    def _full_disk(self, node: ClusterNode, stroke: Stroke) -> Iterator[None]:
        disk = self._disks[stroke.node]
        disk.fill(FREE_BYTES_LEFT)
        try:
            yield
        finally:
            disk.free_up()

    def _cut(self, stroke: Stroke) -> None:
        self.partitions += 1
        links, pair = self._cluster.links, (stroke.node, stroke.other)
        if stroke.kind == "isolate":
            links.isolate(stroke.node, self._cluster.numbers)
        elif stroke.kind == "one_way":
            links.cut([pair])
        else:
            links.cut([pair, pair[::-1]])


@contextmanager
def resumed(pid: int, seconds: float) -> Iterator[None]:
    """Let a stopped process go on after a while, whatever happens meanwhile."""

    def resume() -> None:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return  # its supervisor has ended it

    timer = Timer(seconds, resume)
    timer.start()
    try:
        yield
    finally:
        timer.join()
