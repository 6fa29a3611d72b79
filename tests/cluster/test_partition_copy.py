"""In a cluster of more than three no node has all partitions: who lacks some takes them of peers.

The logs of all are short.  A node loses its disk, and one is away for long: both end with what was
acknowledged, of every account of their partitions.  (How nodes come and go is in
`test_growing.py`, where logs reach back.)
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meterd.actors.backups.replaying import Replayer
from meterd.actors.starting import identity
from meterd.client import Client, Event, partition_of
from meterd.core.state.machine import StateMachine
from tests.cluster.test_growing import replicas
from tests.cluster.test_peer_copy import LITTLE_LOG, await_short_logs, copying
from tests.property.test_snapshot import contents
from tests.support.absence import TOOK
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.meterctl import good, run
from tests.support.one_node import OneNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 240.0
ACCOUNTS, SIZE, OLD, LONG, SHORT = 300, 6_000, 12, 16, 2
NOTE = {"note": "x" * 100}  # so that log files are soon full
DAY = 24 * 3_600 * 10**9
LISTED = 7  # every so many accounts' events are listed
OPENED = "account-13"


class Books:
    """A cluster, and what it has acknowledged."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self.cluster, self.client = cluster, client
        self.events = 0
        self.sums: Counter[str] = Counter()
        self.users: dict[str, set[str]] = {}
        self.ids: dict[str, list[str]] = {}
        client.put_metric("calls", "sum", dimensions=["region"])
        client.put_metric("users", "unique", unique_on="user")

    def write(self, batches: int, age: int = 0) -> None:
        """Have events stored that are so many nanoseconds old."""
        at = time.time_ns() - age
        for _ in range(batches):
            first, self.events = self.events, self.events + SIZE
            found = [self._event(number, at) for number in range(first, self.events)]
            result = self.client.ingest(found)
            assert result.stored + result.duplicate == SIZE  # some were perhaps sent again

    def _event(self, number: int, at: int) -> Event:
        account, name = f"account-{number % ACCOUNTS}", f"event-{number}"
        self.ids.setdefault(account, []).append(name)
        if number // ACCOUNTS % 4:
            self.sums[account] += 2
            return Event(account, "calls", 2, at, name, properties={"region": "eu"} | NOTE)
        user = f"u{number // ACCOUNTS % 17}"
        self.users.setdefault(account, set()).add(user)
        return Event(account, "users", 1, at, name, properties={"user": user} | NOTE)

    def erase(self, account: str) -> None:
        self.client.erase_account(account)
        self.erased = self.ids[account]
        self.sums[account] = 0
        self.users[account], self.ids[account] = set(), []

    def check_erased(self, account: str, leader: ClusterNode) -> None:
        """What was erased stays used, also where it came of a peer."""
        group = str(partition_of(account))
        good(leader, "leader", "transfer", group, "--to", str(leader.number), timeout=SECONDS)
        again = [Event(account, "calls", 2, id=one) for one in self.erased]
        result = self.client.ingest(again)
        assert (result.stored, result.duplicate + result.conflict) == (0, len(again))

    def expire(self) -> None:
        """Have everything that was written so far, all of it old, expire and be folded."""
        good(self.cluster.node(1), "retention", "set", "30", "--yes", timeout=SECONDS)
        self.ids = {account: [] for account in self.ids}

    def open_with(self, account: str, value: int) -> None:
        row = {"account": account, "metric": "calls", "at": 7, "count": 1, "sum": str(value)}
        assert self.client.import_balances("moved", [row])["balances"] == 1
        self.sums[account] += value

    def check(self, node: ClusterNode) -> None:
        """Compare what a node has itself with what was acknowledged."""
        held = {group for group, nodes in replicas(node).items() if node.number in nodes}
        names = [f"account-{number}" for number in range(ACCOUNTS)]
        mine = [name for name in names if partition_of(name) in held]
        assert len(mine) > ACCOUNTS // 4
        with OneNode(node) as asked:
            eventually(asked.serves, "it has read its log", SECONDS)
            for name in mine:
                assert asked.usage(name, "calls", start=0, end=2**62) == self.sums[name], name
                assert asked.usage(name, "users", start=0, end=2**62) == len(self.users[name]), name
            for name in mine[::LISTED]:
                assert sorted(asked.ids(name)) == sorted(self.ids[name])
        # Nothing that was counted before counts again, whoever leads.
        again = [Event(name, "calls", 2, id=one) for name in mine for one in self.ids[name][:2]]
        assert self.client.ingest(again).stored == 0


def is_folded(node: ClusterNode) -> bool:
    """Has a node totals of what has expired, and no segment of it any more?"""
    return bool(list(node.data_dir.glob("totals-*.tot"))) and oldest_segment(node) > 1


def oldest_segment(node: ClusterNode) -> int:
    names = (path.name for path in node.data_dir.glob("seg-*.idx"))
    return min((int(name.split("-")[1]) for name in names), default=0)


def take_over(node: ClusterNode, crashes: int = 0) -> None:
    """Start a node that lacks what no log has any more, with crashes in the middle of it."""
    before = node.log().count(TOOK)
    for _ in range(crashes):
        node.start(wait=False)
        eventually(lambda: copying(node), "it knows that it needs a copy", SECONDS)
        node.kill9()
    node.start(wait=False)
    eventually(lambda: node.log().count(TOOK) > before, "it takes partitions over", SECONDS)


@pytest.fixture
def books() -> Iterator[Books]:
    with Cluster(4, LITTLE_LOG) as cluster, cluster.client(timeout=SECONDS) as client:
        yield Books(cluster, client)


def test_partitions_come_of_several_peers(books: Books) -> None:
    cluster = books.cluster
    one, two, three, four = cluster.nodes
    places = replicas(one)
    books.write(OLD, age=40 * DAY)
    books.expire()
    books.write(LONG)
    erased = next(name for name in books.sums if {2, 3} <= set(places[partition_of(name)]))
    books.erase(erased)
    books.open_with(OPENED, 1_000)
    books.write(SHORT)
    await_short_logs(cluster.nodes)
    for node in cluster.nodes:
        eventually(lambda n=node: is_folded(n), "what has expired is folded", SECONDS)  # type: ignore[misc]

    three.kill9()
    shutil.rmtree(three.data_dir)
    good(one, "node", "recover", "3")
    take_over(three, crashes=1)
    good(one, "wait", "--for", "caught-up", timeout=SECONDS)
    books.check(three)
    books.check_erased(erased, three)

    two.kill9()  # and is away for long: what it has is replaced
    books.write(LONG)
    await_short_logs([one, three, four])
    take_over(two, crashes=1)
    good(one, "wait", "--for", "caught-up", timeout=SECONDS)
    books.write(SHORT)
    good(one, "wait", "--for", "caught-up", timeout=SECONDS)
    for node in (two, three):
        books.check(node)
    books.check_erased(erased, two)

    for node in cluster.nodes:
        assert node.stop() == 0, node.log()
    assert disagreements({node.number: read_ops(node.data_dir) for node in cluster.nodes}) == []
    same_states([node.data_dir for node in cluster.nodes])
    for node in cluster.nodes:
        found = fsck(node)
        assert found == [], found


def same_states(directories: Sequence[Path]) -> None:
    """Compare what stopped nodes have of each partition where they have applied the same ops."""
    states = [Replayer(str(one), print, identity.read(str(one))) for one in directories]
    parts = [by_partition(one.state) for one in states]
    compared = 0
    for (left, mine), (right, theirs) in combinations(zip(states, parts, strict=True), 2):
        same = left.groups.index == right.groups.index
        for group in np.flatnonzero(same & (left.groups.index > 0)).tolist():
            assert (left.groups.digest[group] == right.groups.digest[group]).all()
            assert mine.get(group) == theirs.get(group)
            compared += group in mine
    assert compared > ACCOUNTS // 2


def by_partition(state: StateMachine) -> dict[int, dict[Any, Any]]:
    found: dict[int, dict[Any, Any]] = {}
    for key, counted in contents(state).items():
        found.setdefault(partition_of(key[0]), {})[key] = counted
    return found


def fsck(node: ClusterNode) -> list[Any]:
    """Return what a check of every byte finds in the directory of a node that is stopped."""
    said = run(node, "fsck", "--data-dir", str(node.data_dir), "--level", "full")[1]
    return [finding for check in said["checks"] for finding in check["findings"]]
