"""A fourth node joins three, and the first one leaves, while nodes die and clients write.

What each partition's replicas say is compared with what clients were told, account by account: no
node of four has all partitions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from random import Random

import pytest

from meterd.actors.endings import IDENTITY
from meterd.client import Client, Event
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_campaign import ACCOUNTS, ENVIRONMENT
from tests.support.cluster_logs import Ops, disagreements, read_ops
from tests.support.kill_check import Check
from tests.support.kill_ledger import Ledger, put_metrics
from tests.support.kill_load import Load
from tests.support.meterctl import good, run, topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow]

SEED = 4
SECONDS = 600.0


class Grown:
    """A cluster under load, and what has been acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ledger = Ledger(ACCOUNTS)
        with cluster.client() as client:
            put_metrics(client)
        self.load = Load(cluster.addresses, self.ledger, SEED)
        self.load.start()

    def moved(self, asked: ClusterNode) -> int:
        """Return how many groups are not yet what the plan says."""
        return len(run(asked, "rebalance", "status", timeout=SECONDS)[1]["moves"])

    def rebalance(self, asked: ClusterNode, *victims: ClusterNode) -> None:
        """Have the plan carried out; each of some nodes is killed while it is."""
        moves = len(good(asked, "rebalance", "run", timeout=SECONDS)["moves"])
        assert moves > 50
        for victim in victims:
            left = self.moved(asked)
            eventually(lambda left=left: self.moved(asked) < left, "replicas move", SECONDS)  # type: ignore[misc]
            victim.kill9()
            time.sleep(1.0)  # the others notice
            victim.start()
        eventually(lambda: self.moved(asked) == 0, "everything is where it should be", SECONDS)

    def check(self, through: ClusterNode) -> None:
        """Compare what the cluster says with what was acknowledged."""
        self.load.pause()
        with Client([through.address], timeout=SECONDS) as client:
            check = Check(client, self.ledger.expected(), Random(SEED))
            check.run_by_account()
        assert check.violations == []
        assert (check.missing, check.doubled) == (0, 0)
        # A deadline that is missed says nothing on a busy machine; a wrong answer does.
        wrong = [one for one in self.load.violations if not one.startswith("no answer")]
        assert wrong == []
        self.load.resume()


@pytest.fixture
def grown() -> Iterator[Grown]:
    with Cluster(3, ENVIRONMENT) as cluster:
        made = Grown(cluster)
        try:
            yield made
        finally:
            made.load.stop()


def state_of(asked: ClusterNode, number: int) -> str:
    rows = run(asked, "node")[1]["nodes"]
    return next((str(row["state"]) for row in rows if row["node"] == number), "")


def replicas(asked: ClusterNode) -> dict[int, list[int]]:
    """Return the voters of each group."""
    rows = topology(asked, "--partitions")["partitions"]
    return {row["group"]: row["replicas"] for row in rows}


def ends_as_removed(node: ClusterNode) -> None:
    """It was stopped before or after it had heard of that, and says so then."""
    node.start(wait=False)
    eventually(lambda: "was given up" in node.log(), "it hears that it is removed", SECONDS)
    assert node.process is not None
    if node.process.poll() is None:
        node.stop()
        node.start(wait=False)
    assert node.process.wait(SECONDS) == IDENTITY, node.log()


def test_a_fourth_node_comes_and_the_first_goes(grown: Grown) -> None:
    cluster = grown.cluster
    one, two, three = cluster.nodes
    four = cluster.add()
    good(two, "node", "add", "4", f"127.0.0.1:{four.port + 1000}")
    four.start(wait=False)
    eventually(lambda: state_of(one, 4) == "learner", "it has joined", SECONDS)
    four.kill9()  # it may have its identity, or not
    four.start()
    good(three, "node", "promote", "4")
    planned = good(three, "rebalance", "plan")
    come = [(set(move["to"]) - set(move["from"])) for move in planned["moves"]]
    assert come == [{4}] * 192, "and nothing moves between the others"
    leads = {node["node"]: node["leads_after"] for node in planned["nodes"]}
    assert all(count in (64, 65) for count in leads.values()), (leads, planned["nodes"])
    grown.rebalance(two, four, one)
    good(two, "wait", "--for", "caught-up", timeout=SECONDS)
    assert sum(4 in voters for voters in replicas(two).values()) >= 256 * 3 // 4 - 1
    assert all(len(voters) == 3 for voters in replicas(two).values())
    grown.check(four)

    good(two, "drain", "1", timeout=SECONDS)
    grown.rebalance(three, two, four)
    assert all(1 not in voters for voters in replicas(two).values())
    grown.check(three)
    grown.load.stop()  # its clients would have to be told of other nodes than the first
    good(two, "node", "remove", "1")
    assert one.stop() == 0, one.log()
    ends_as_removed(one)
    left = [two, three, four]
    with Client([node.address for node in left], timeout=SECONDS) as client:
        events = [Event(f"team-{number}", "calls", id=f"after-{number}") for number in range(500)]
        assert client.ingest(events).stored == len(events)
    good(two, "wait", "--for", "caught-up", timeout=SECONDS)
    for node in left:
        assert node.stop() == 0, node.log()
    logs: dict[int, Ops] = {node.number: read_ops(node.data_dir) for node in left}
    assert disagreements(logs) == []
