"""A cluster of three: how it is looked at, how leaders move, and how a lost disk comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from meterd.client import Client, Event
from meterd.exits import AdminExit
from tests.support.cluster import Cluster
from tests.support.meterctl import good, run, topology
from tests.support.node import Node
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 240.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as made:
        yield made


def events(batch: int) -> list[Event]:
    return [Event(f"account-{n}", "calls", 1, id=f"{batch}-{n}") for n in range(200)]


def total(client: Client) -> int:
    return sum(int(client.usage(f"account-{n}", "calls").value) for n in range(0, 200, 20))


def test_one_list_makes_one_cluster_and_any_node_changes_it(cluster: Cluster) -> None:
    one, two, three = cluster.nodes
    good(one, "wait", "--for", "leader", timeout=SECONDS)
    rows = topology(three)["nodes"]
    assert [(row["node"], row["state"], row["incarnation"]) for row in rows] == [
        (1, "voter", 1),
        (2, "voter", 1),
        (3, "voter", 1),
    ]
    assert len({json.loads(node.get("/health")[1])["cluster_id"] for node in cluster.nodes}) == 1
    links = good(two, "replication")["links"]
    assert {(row["from"], row["node"]) for row in links} == {
        (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2),
    }  # fmt: skip
    good(two, "leader", "transfer", "17", "meta", "--to", "3", timeout=SECONDS)
    planned = {row["group"]: row for row in topology(one, "--partitions")["partitions"]}
    assert planned[17]["planned_leader"] == planned[256]["planned_leader"] == 3
    good(one, "drain", "2", timeout=SECONDS)
    eventually(lambda: _leads(one, 2) == 0, "a drained node leads nothing", SECONDS)
    good(one, "undrain", "2")


def _leads(asked: Node, number: int) -> int:
    rows = run(asked, "topology")[1]["nodes"]
    return next(int(row["leads"]) for row in rows if row["node"] == number)


def test_a_minority_says_so(cluster: Cluster) -> None:
    one, two, three = cluster.nodes
    good(one, "wait", "--for", "leader", timeout=SECONDS)
    eventually(lambda: one.get("/readyz?for=write")[0] == 200, "it is ready", SECONDS)
    two.kill9()
    three.kill9()
    eventually(lambda: one.get("/readyz?for=write")[0] == 503, "it is not ready", SECONDS)
    body = json.loads(one.get("/readyz?for=write")[1])
    assert body["checks"]["quorum"]["status"] == "fail"
    assert one.get("/livez")[0] == 200
    code, said = run(one, "topology")
    # Nodes that do not answer weigh more than what is missing (`meterd.exits.worst`).
    assert code == AdminExit.PARTLY and said["without_leader"] == 257
    assert [row["reachable"] for row in said["nodes"]] == [True, False, False]


def test_a_lost_disk_is_refused_and_comes_back_as_a_new_incarnation(cluster: Cluster) -> None:
    one, two, three = cluster.nodes
    good(one, "wait", "--for", "leader", timeout=SECONDS)
    with cluster.client(timeout=SECONDS) as client:
        client.put_metric("calls", aggregation="sum", decimals=0)
        assert client.ingest(events(1)).stored == 200
        three.kill9()
        shutil.rmtree(three.data_dir)
        three.start(wait=False)
        assert three.process is not None
        assert three.process.wait(SECONDS) == 79
        assert "node recover 3" in three.log()
        assert client.ingest(events(2)).stored == 200
        assert good(two, "node", "recover", "3")["node"]["incarnation"] == 2
        three.start()
        good(one, "wait", "--for", "caught-up", timeout=SECONDS)
        rows = topology(one)["nodes"]
        assert [row["incarnation"] for row in rows] == [1, 1, 2]
        assert client.ingest(events(3)).stored == 200
        one.kill9()
        assert client.ingest(events(4)).stored == 200
        assert total(client) == 40
