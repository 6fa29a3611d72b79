"""Three real nodes keep one log for each group, also when one of them dies and comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from meterd.client import Client, Event
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 120.0
ACCOUNTS = 300  # enough for most partitions


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as made:
        yield made


def number(node: ClusterNode, name: str) -> float:
    """Return a number of a node's telemetry."""
    found = re.search(rf"^billing_{re.escape(name)} (\S+)$", node.get("/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else -1.0


def all_led(nodes: list[ClusterNode]) -> bool:
    led = sum(number(node, "partition_leader") for node in nodes)
    return led == 256 and all(number(node, "partitions_without_leader") == 0 for node in nodes)


def lags(nodes: list[ClusterNode], behind: int) -> float:
    return sum(number(node, f'replication_lag_ops{{peer="{behind}"}}') for node in nodes)


def events(batch: int) -> list[Event]:
    return [Event(f"account-{n}", "calls", 2, id=f"{batch}-{n}") for n in range(ACCOUNTS)]


def test_a_node_dies_and_comes_back(cluster: Cluster) -> None:
    eventually(lambda: all_led(cluster.nodes), "every partition has a leader", SECONDS)
    with cluster.client(timeout=SECONDS) as client:
        client.put_metric("calls", "sum")
        send(client, 1)

        dead = cluster.node(3)
        dead.kill9()
        two = cluster.nodes[:2]
        send(client, 2)
        eventually(lambda: all_led(two), "the others lead what it led", SECONDS)
        send(client, 3)

        dead.start()
        eventually(lambda: all_led(cluster.nodes), "it knows who leads", SECONDS)
        eventually(lambda: lags(two, behind=3) == 0, "it has what the others have", SECONDS)
        send(client, 4)
        check_totals(client)
    for node in cluster.nodes:
        assert node.stop() == 0, node.log()
    logs = {node.number: read_ops(node.data_dir) for node in cluster.nodes}
    assert disagreements(logs) == []
    for one in logs.values():
        assert sum(map(len, one.values())) >= 4 * 200


def send(client: Client, batch: int) -> None:
    """Have a batch stored; what had to be sent again is a duplicate."""
    result = client.ingest(events(batch))
    assert (result.stored + result.duplicate, result.unknown) == (ACCOUNTS, 0), result


def check_totals(client: Client) -> None:
    for account in range(0, ACCOUNTS, 37):
        assert client.usage(f"account-{account}", "calls").value == 8
