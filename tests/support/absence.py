"""A node is away while the others take events; it comes back and catches up while clients write.

From the log of its peers, or, when that has been deleted meanwhile, from a copy of one of them.
Afterwards every account's total is asked of each node's own state and compared with what was
acknowledged, and the logs of all nodes must hold one history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from meterd.client import Client, questions
from meterd.client.results import Usage
from meterd.protocol.errors import MeterdError
from meterd.protocol.log_format import number_of
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.column_load import ACCOUNTS, METRIC, ColumnLoad, account
from tests.support.waiting import eventually

AWAY = 3  # the node
# Keeps so little of the log that it is gone when the node is back, and not so little that new files
# outrun a copy.
LITTLE_LOG = {
    "METERD__WAL__SEGMENT_SIZE": "16MiB",
    "METERD__WAL__RETENTION_DAYS": "0",
    "METERD__WAL__MAX_SEGMENTS": "4",
    "METERD__WAL__MIN_SEGMENTS": "4",
    "METERD__WAL__REPLICA_SEGMENTS": "4",
    "METERD__STORAGE__CHECKPOINT_INTERVAL": "5s",
    "METERD__STORAGE__COPY_GRACE": "0s",
    "METERD__RETENTION__SWEEP_INTERVAL": "1s",
}
COPIED = "a copy of a peer now"
TOOK = "partitions of a peer are in this directory now"
SECONDS = 600.0
SAMPLE_SECONDS = 0.25
BEFORE_SECONDS, AFTER_SECONDS = 5.0, 5.0
# What was acknowledged is applied by all nodes after so long.
SETTLE_SECONDS = 60.0
# While a copy is made nobody looks at more than this.
STATUS_SECONDS = 5.0


@dataclass
class Phase:
    """What clients saw of a part of the time."""

    seconds: float
    events: int
    rates: list[float]  # events a second of each sample
    longest_call_seconds: float

    def as_map(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 2),
            "events": self.events,
            "events_per_second": round(self.events / max(self.seconds, 0.001)),
            "median_rate": round(median(self.rates)) if self.rates else 0,
            "least_rate_of_a_second": round(least_of_a_second(self.rates)),
            "longest_call_seconds": round(self.longest_call_seconds, 3),
        }


def least_of_a_second(rates: list[float]) -> float:
    """Return the least rate over a second of samples."""
    width = max(1, round(1 / SAMPLE_SECONDS))
    windows = [rates[at : at + width] for at in range(max(1, len(rates) - width + 1))]
    return min((sum(window) / len(window) for window in windows if window), default=0.0)


class Absence:
    """One run; see the module."""

    def __init__(
        self, cluster: Cluster, load: ColumnLoad, say: Callable[[str], None], gone: bool
    ) -> None:
        """`gone`: the log is to be deleted meanwhile (`LITTLE_LOG`)."""
        self._cluster, self._load, self._say, self._gone = cluster, load, say, gone
        self._node = cluster.node(AWAY)
        self._others = [node for node in cluster.nodes if node is not self._node]
        self._seen: dict[int, int] = {}  # by group: committed when it was last looked at

    def run(self, events: int, rate: float | None) -> dict[str, Any]:
        """Let the node miss so many events; clients send `rate` a second but for that time."""
        with self._cluster.client() as client:
            client.put_metric(METRIC, "sum")
        self._load.rate(rate)
        before = self._during(lambda began: time.monotonic() - began > BEFORE_SECONDS)
        self._say(f"before: {before.as_map()}")
        away = self._miss(events)
        self._say(f"away: {away.as_map()}")
        self._load.rate(rate)
        found = {"before": before.as_map(), "away": away.as_map(), **self._catch_up()}
        self._load.end()
        found["calls_that_failed"] = self._load.failures
        found["violations"] = self._violations()
        return found

    # Phases

    def _miss(self, events: int) -> Phase:
        files = {node.number: newest_file(node) for node in self._others}
        self._node.kill9()
        self._load.rate(None)
        goal = self._load.acknowledged + events
        phase = self._during(lambda _: self._load.acknowledged >= goal)
        self._load.rate(0)
        if self._gone:
            for node in self._others:
                eventually(
                    lambda node=node: oldest_file(node) > files[node.number] + 1,  # type: ignore[misc]
                    f"the log of node {node.number} has gone that node {AWAY} lacks",
                    SECONDS,
                )
        return phase

    def _catch_up(self) -> dict[str, Any]:
        began = time.monotonic()
        self._node.start(wait=False)
        caught = self._during(lambda _: self._has_caught_up())
        took = time.monotonic() - began
        copied = COPIED in self._node.log()
        assert copied == self._gone, self._node.log()[-3000:]
        after = self._during(lambda began: time.monotonic() - began > AFTER_SECONDS)
        found = {
            "from": "a copy of a peer" if copied else "the log",
            "catch_up_seconds": round(took, 2),
            "catching_up": caught.as_map(),
            "after": after.as_map(),
        }
        self._say(str(found))
        return found

    def _during(self, over: Callable[[float], bool]) -> Phase:
        """Take samples of how much is acknowledged until something is over."""
        self._load.longest_seconds()
        began = last_at = time.monotonic()
        first = last = self._load.acknowledged
        rates: list[float] = []
        while not over(began):
            assert time.monotonic() - began < SECONDS, self._cluster.log()[-5000:]
            time.sleep(SAMPLE_SECONDS)
            now, count = time.monotonic(), self._load.acknowledged
            rates.append((count - last) / (now - last_at))
            last_at, last = now, count
        longest = self._load.longest_seconds()
        return Phase(time.monotonic() - began, last - first, rates, longest)

    def _has_caught_up(self) -> bool:
        """Has the node applied all that was committed when this was asked the last time?"""
        process = self._node.process
        assert process is not None
        assert process.poll() is None, self._node.log()[-3000:]
        if self._node.page().get("state") != "running":
            return False
        try:
            own = applied_of(self._node)
        except MeterdError:
            return False  # it starts again, to take a copy
        caught = bool(self._seen) and all(own.get(g, -1) >= at for g, at in self._seen.items())
        for node in self._others:
            for group, index in committed_of(node).items():
                self._seen[group] = max(self._seen.get(group, 0), index)
        return caught

    # Afterwards

    def _violations(self) -> list[str]:
        found = []
        counted = self._load.counted
        wanted = (counted.events, counted.total)
        for node in self._cluster.nodes:
            with Client([node.address], timeout=SECONDS) as client:
                found += [f"node {node.number}: {one}" for one in wrong_totals(client, wanted)]
        for node in self._cluster.nodes:
            code = node.stop()
            if code:
                found.append(f"node {node.number} stopped with {code}")
        logs = {node.number: read_ops(node.data_dir) for node in self._cluster.nodes}
        return found + disagreements(logs)


def wrong_totals(client: Client, wanted: tuple[int, int]) -> list[str]:
    """Return some accounts that have something else, also when a node's own state has settled.

    It applies what others lead when it hears that it is committed.
    """
    wrong = list(range(ACCOUNTS))
    until = time.monotonic() + SETTLE_SECONDS
    while wrong and time.monotonic() < until:
        wrong = [number for number in wrong if total_of(client, number) != wanted]
    return [
        f"{account(number)} is {total_of(client, number)}, not {wanted}" for number in wrong[:5]
    ]


def total_of(client: Client, number: int) -> tuple[int, int]:
    """Return events and total of an account in the node's own state."""
    fields = {"account": account(number), "metric": METRIC, "consistency": "local"}
    usage = Usage.from_answer(client.run(questions.ask("usage", fields)))
    return usage.count, int(usage.value or 0)


def _groups_of(node: ClusterNode) -> list[Mapping[str, Any]]:
    with Client([node.address], timeout=STATUS_SECONDS) as client:
        groups: list[Mapping[str, Any]] = client.run(questions.ask("cluster_status", {}))["groups"]
    return groups


def applied_of(node: ClusterNode) -> dict[int, int]:
    return {group["group"]: group["applied"] for group in _groups_of(node)}


def committed_of(node: ClusterNode) -> dict[int, int]:
    """Return up to where the groups that a node leads are committed."""
    return {g["group"]: g["commit"] for g in _groups_of(node) if g["role"] == "leader"}


def _files(node: ClusterNode) -> list[int]:
    return [n for path in node.data_dir.iterdir() if (n := number_of(path.name)) is not None]


def oldest_file(node: ClusterNode) -> int:
    """Return the number of the oldest full log file; 0: there is none."""
    return min(_files(node), default=0)


def newest_file(node: ClusterNode) -> int:
    return max(_files(node), default=0)
