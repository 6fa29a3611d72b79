"""Breaks nodes, processes, disks and links of a working cluster, and proves that nothing is lost.

A campaign is a list of *strokes* (`cluster_strokes`), drawn from a seed.  Clients (`kill_load`)
send all the time, enter through every node, and try again until they know; after each stroke an
event of every partition is sent, and how long that took is how long the cluster was away.  Then the
stroke ends (a node is started again, links heal) and the next one comes.

From time to time and at the end what is undecided is settled, and everything that each node says
is compared with the ledger.  At the very end all nodes are killed at once, and their logs must hold
one history; then all start again and say the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np

from meterd.client import Client
from meterd.core.kernels.hashing import PARTITION_COUNT
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.cluster_strokes import Stroke, Strokes
from tests.support.kill_check import Check
from tests.support.kill_ledger import Ledger, account_name, put_metrics
from tests.support.kill_load import Load
from tests.support.log_builder import partition
from tests.support.processes import is_gone
from tests.support.small_disk import SmallDisk
from tests.support.waiting import eventually

# So many that every partition has some.
ACCOUNTS = 3_000
# Small, so that files become full and checkpoints are saved all the time.
ENVIRONMENT = {
    "METERD__WAL__SEGMENT_SIZE": "4MiB",
    "METERD__STORAGE__CHECKPOINT_EVENTS": "5000",
    "METERD__STORAGE__CHECKPOINT_INTERVAL": "2s",
    "METERD__LOG__LEVEL": "info",
}
PAUSE_SECONDS_MAX = 1.0
WHOLE_SECONDS = 120.0


@dataclass
class Struck:
    """What a stroke did."""

    stroke: Stroke
    served_seconds: float = float("inf")  # until every partition took events
    whole_seconds: float = float("inf")  # from its end until all nodes were ready


@dataclass
class Report:
    """What a campaign found."""

    struck: list[Struck] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    doubled: int = 0
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # victim, what was going on
    partitions: int = 0


class Campaign:
    """One cluster, its clients and what breaks it; `run` does all of it."""

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        say: Callable[[str], None],
        disks: Mapping[int, SmallDisk] | None = None,
    ) -> None:
        """`disks`: the small file systems that some nodes' data lies on."""
        self.report = Report()
        self._cluster = cluster
        self._random = Random(seed)
        self._strokes = Strokes(cluster, self._random, disks or {})
        self._say = say
        self._ledger = Ledger(ACCOUNTS)
        self._load = Load(cluster.addresses, self._ledger, seed)
        self._probed = accounts_of_partitions()

    def run(self, plan: list[Stroke], checks: int) -> Report:
        """Carry out a plan, checking everything so many times on the way, and at the end."""
        with self._cluster.client() as client:
            put_metrics(client)
        self._load.start()
        try:
            every = max(1, len(plan) // (checks + 1))
            for number, stroke in enumerate(plan, 1):
                self._strike(stroke)
                if number % every == 0 and number < len(plan):
                    self._check(f"after {number} strokes", whole=False)
            self._finish()
        except AssertionError as error:
            self.report.violations.append(str(error))
        finally:
            self._load.stop()
        self.report.violations += self._load.violations
        self.report.counters += self._load.counters
        self.report.counters["events acknowledged"] = self._ledger.count()
        self.report.kills = self._strokes.kills
        self.report.partitions = self._strokes.partitions
        return self.report

    # Strokes

    def _strike(self, stroke: Stroke) -> None:
        time.sleep(self._random.random() * PAUSE_SECONDS_MAX)
        struck = Struck(stroke)
        self.report.struck.append(struck)
        began = time.monotonic()
        with self._strokes.fault(stroke):
            struck.served_seconds = self._load.probe_all(self._probed) - began
            time.sleep(max(0.0, began + stroke.seconds - time.monotonic()))
        ended = time.monotonic()
        for node in self._cluster.nodes:
            await_whole(node)
        struck.whole_seconds = time.monotonic() - ended
        self._say(
            f"{len(self.report.struck)}: {stroke.kind} of node {stroke.node}"
            f"{f' {stroke.actor}' if 'actor' in stroke.kind else ''}: all partitions served after "
            f"{struck.served_seconds:.3f} s, whole {struck.whole_seconds:.1f} s after its end; "
            f"{self._ledger.count():,} events, {len(self._load.violations)} violations"
        )

    # Checks

    def _check(self, when: str, whole: bool) -> None:
        """Settle everything, compare all that every node says with the ledger, go on."""
        began = time.monotonic()
        self._load.pause()
        expected = self._ledger.expected()
        through = self._random.choice(self._cluster.nodes)
        for node in self._cluster.nodes:
            with Client([node.address], timeout=120.0) as client:
                check = Check(client, expected, self._random)
                check.run(whole and node is through)
            self.report.counters["answers compared"] += check.comparisons
            self.report.missing += check.missing
            self.report.doubled += check.doubled
            where = f"{when}, node {node.number}"
            self.report.violations += [f"{where}: {text}" for text in check.violations]
        self._say(
            f"checked {when}: {len(expected):,} events, {self.report.missing} missing, "
            f"{self.report.doubled} doubled, {len(self.report.violations)} violations, "
            f"{time.monotonic() - began:.1f} s"
        )
        self._load.resume()

    def _finish(self) -> None:
        """Check all of it; kill everything at once; compare the logs; start again; check."""
        cluster = self._cluster
        self._check("at the end", whole=True)
        self._load.pause()
        cluster.kill9()
        self._strokes.kills["node", "all at once"] += len(cluster.nodes)
        logs = {node.number: read_ops(node.data_dir) for node in cluster.nodes}
        self.report.counters["ops compared"] = sum(len(ops) for ops in logs[1].values())
        self.report.violations += disagreements(logs)
        cluster.start()
        self._check("after a kill of all nodes", whole=True)
        self._load.pause()
        for node in cluster.nodes:
            code = node.stop()
            if code:
                self.report.violations.append(f"node {node.number} stopped with {code}")


def await_whole(node: ClusterNode) -> None:
    """Wait until every actor of a node is alive and ready."""
    try:
        eventually(lambda: is_whole(node), f"node {node.number} is ready", WHOLE_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{node.log()[-3000:]}") from error


def is_whole(node: ClusterNode) -> bool:
    """Is every actor of a node alive and ready?"""
    assert node.process is not None
    code = node.process.poll()
    assert code is None, f"node {node.number} ended: {code}\n{node.log()[-3000:]}"
    page = node.page()
    return page.get("state") == "running" and all(
        actor["ready"] and not is_gone(actor["pid"]) for actor in page["actors"].values()
    )


def accounts_of_partitions() -> np.ndarray:
    """Return an account of each partition, by number."""
    found: dict[int, int] = {}
    for number in range(ACCOUNTS):
        found.setdefault(partition(account_name(number).partition("/")[0]), number)
    assert len(found) == PARTITION_COUNT, f"only {len(found)} partitions have accounts"
    return np.array(sorted(found.values()))
