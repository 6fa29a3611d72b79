"""Ends a node that leads partitions, and says what clients and telemetry saw of that.

A trial begins when every partition is led where the plan wants it.  Clients write and read all the
time, each call with a deadline of `CALL_SECONDS`; then a node gets kill -9, or SIGTERM, and an
event of every partition is sent at once: when all are stored, all partitions serve again.
Afterwards each partition that the node led must have got one new leader, and no other any.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import numpy as np

from meterd.client import Client, questions
from meterd.core.kernels.hashing import PARTITION_COUNT
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_campaign import ACCOUNTS, accounts_of_partitions, await_whole
from tests.support.kill_check import Check
from tests.support.kill_ledger import Ledger, put_metrics
from tests.support.kill_load import Load
from tests.support.waiting import eventually

# No call may fail within so long.
CALL_SECONDS = 10.0
WORKERS = 4
CALM_SECONDS = 120.0
# Telemetry is told about once a second, and a count that is too high must have time to show.
COUNTED_SECONDS = 6.0
SETTLED_SECONDS = 3.0
VIEW_CHANGES = re.compile(r"^billing_view_changes_total (\S+)$", re.MULTILINE)


@dataclass
class Trial:
    """What the end of one node did."""

    node: int
    affected: int  # partitions that it led
    served_seconds: float  # until all partitions took events
    # After SIGTERM: did others lead all of them before it was gone?
    handed_over: bool | None = None
    # By node that lives on: by how much its telemetry says that view changes have grown.
    grown: dict[int, int] = field(default_factory=dict)
    # Partitions that got another number of new leaders than they had to: one, or none.
    miscounted: list[str] = field(default_factory=list)
    calls: int = 0
    failures: list[str] = field(default_factory=list)  # of calls, or what they were answered

    def as_map(self) -> dict[str, Any]:
        return asdict(self)


class Trials:
    """with Trials(cluster, seed, say) as trials: clients run; `one` kills a node."""

    def __init__(self, cluster: Cluster, seed: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._random = Random(seed)
        self._say = say
        self._ledger = Ledger(ACCOUNTS)
        self._load = Load(
            cluster.addresses,
            self._ledger,
            seed,
            timeouts=[CALL_SECONDS] * WORKERS,
            reader_timeout=CALL_SECONDS,
        )
        self._probed = accounts_of_partitions()

    def __enter__(self) -> Trials:
        with self._cluster.client() as client:
            put_metrics(client)
        self._load.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._load.stop()

    def one(self, balance: Callable[[], None], *, gently: bool = False) -> Trial:
        """Kill one node, or stop it gently, and start it again.

        `balance` brings leaders home at once.
        """
        self._await_calm(balance)
        victim = self._random.choice(self._cluster.nodes)
        others = [node for node in self._cluster.nodes if node is not victim]
        led = leaders_of(others[0])
        affected = [group for group, leader in led.items() if leader == victim.number]
        before = {node.number: changes_of(node) for node in others}
        totals = settled_changes(others)
        calls, failed = self._calls(), len(self._load.violations)
        undecided = self._load.counters["undecided at a deadline"]
        began = time.monotonic()
        end = Stop(victim, others[0], affected) if gently else None
        if end is None:
            victim.kill9()
        served = self._load.probe_all(self._probed) - began
        trial = Trial(victim.number, len(affected), round(served, 3))
        trial.handed_over = None if end is None else end.handed_over()
        trial.grown = self._grown(others, totals, len(affected))
        trial.miscounted = miscounted(others, before, affected)
        victim.start(wait=False)
        await_whole(victim)
        trial.calls = self._calls() - calls
        trial.failures = self._load.violations[failed:]
        undecided = self._load.counters["undecided at a deadline"] - undecided
        if undecided:
            trial.failures.append(f"{undecided} events were undecided after {CALL_SECONDS} s")
        return trial

    def check(self) -> list[str]:
        """Compare what each node says with what was acknowledged; return what is wrong."""
        self._load.pause()
        wrong = []
        for node in self._cluster.nodes:
            with Client([node.address], timeout=CALM_SECONDS) as client:
                check = Check(client, self._ledger.expected(), self._random)
                check.run(whole=False)
            wrong += [f"node {node.number}: {text}" for text in check.violations]
        self._load.resume()
        return wrong

    def _await_calm(self, balance: Callable[[], None]) -> None:
        for node in self._cluster.nodes:
            await_whole(node)
        balance()
        eventually(
            lambda: all(is_calm(node) for node in self._cluster.nodes),
            "every partition is led where it should be, and nobody is behind",
            CALM_SECONDS,
        )

    def _calls(self) -> int:
        counters = self._load.counters
        return counters["requests"] + counters["totals read meanwhile"]

    def _grown(
        self, others: list[ClusterNode], before: dict[int, int], expected: int
    ) -> dict[int, int]:
        """Return by how much each node's telemetry has grown, when it has told all of it."""
        give_up = time.monotonic() + COUNTED_SECONDS
        while True:
            grown = {node.number: view_changes(node) - before[node.number] for node in others}
            over = time.monotonic() > give_up
            if over or all(count == expected for count in grown.values()):
                return grown
            time.sleep(0.1)


class Stop:
    """Sends SIGTERM to a node, and asks another one who leads until it has ended."""

    def __init__(self, victim: ClusterNode, other: ClusterNode, affected: list[int]) -> None:
        self._victim, self._other, self._affected = victim, other, affected
        self._seen = False
        self._thread = threading.Thread(target=self._look)
        assert victim.process is not None
        victim.process.send_signal(signal.SIGTERM)
        self._thread.start()

    def _look(self) -> None:
        while self._is_alive() and not self._seen:
            led = leaders_of(self._other)
            left = [group for group in self._affected if led[group] in (None, self._victim.number)]
            self._seen = not left and self._is_alive()

    def _is_alive(self) -> bool:
        return self._victim.process is not None and self._victim.process.poll() is None

    def handed_over(self) -> bool:
        """Wait until the node has ended, and ended well; was all led by others before?"""
        assert self._victim.process is not None
        self._thread.join()
        assert self._victim.process.wait(CALM_SECONDS) == 0, self._victim.log()
        return self._seen


def status_of(node: ClusterNode) -> dict[str, Any]:
    """Return what a node says of the cluster."""
    with Client([node.address], timeout=CALM_SECONDS) as client:
        status: dict[str, Any] = client.run(questions.ask("cluster_status", {}))
    return status


def leaders_of(node: ClusterNode) -> dict[int, int | None]:
    """Return who leads each partition, as a node knows."""
    groups = status_of(node)["groups"]
    return {g["group"]: g["leader"] for g in groups if g["group"] < PARTITION_COUNT}


def changes_of(node: ClusterNode) -> np.ndarray:
    """Return how often a node has become the leader of each partition since it was started."""
    found = np.zeros(PARTITION_COUNT + 1, np.int64)
    for group in status_of(node)["groups"]:
        found[group["group"]] = group["view_changes"]
    return found[:PARTITION_COUNT]


def miscounted(
    others: list[ClusterNode], before: dict[int, np.ndarray], affected: list[int]
) -> list[str]:
    """Return the partitions that did not get one new leader each, or got one without need."""
    expected = np.zeros(PARTITION_COUNT, np.int64)
    expected[affected] = 1
    grown = sum(changes_of(node) - before[node.number] for node in others)
    return [
        f"partition {group}: {grown[group]} new leaders instead of {expected[group]}"
        for group in np.flatnonzero(grown != expected).tolist()
    ]


def view_changes(node: ClusterNode) -> int:
    """Return the counter of a node's telemetry."""
    found = VIEW_CHANGES.search(node.get("/metrics")[1])
    return int(float(found[1])) if found else -1


def settled_changes(nodes: list[ClusterNode]) -> dict[int, int]:
    """Return what telemetry says when it has told all that was before."""
    give_up = time.monotonic() + CALM_SECONDS
    while True:
        found = {node.number: view_changes(node) for node in nodes}
        time.sleep(SETTLED_SECONDS)
        if found == {node.number: view_changes(node) for node in nodes}:
            return found
        assert time.monotonic() < give_up, f"leaders change all the time: {found}"


def is_calm(node: ClusterNode) -> bool:
    """Does everybody lead what the plan says, as a node knows, and does nobody lack much?"""
    status = status_of(node)
    plan = status["plan"]
    home = all(plan[group["group"]][1] == group["leader"] for group in status["groups"])
    return home and all(peer["connected"] for peer in status["peers"])
