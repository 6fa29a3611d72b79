"""A whole cluster moves: its nodes are stopped, and start with other addresses."""

from __future__ import annotations

import pytest

from meterd.client import Client, Event
from tests.support.cluster import REPLICATION_OFFSET, Cluster, peer
from tests.support.meterctl import good
from tests.support.node import Node
from tests.support.ports import free_ports
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 60.0
ACCOUNTS = 50


def takes_events(node: Node) -> bool:
    try:
        return bool(node.get("/readyz?for=write")[0] == 200)
    except OSError:
        return False


def test_nodes_find_each_other_by_the_operators_new_list() -> None:
    with Cluster(3) as cluster:
        with cluster.client(timeout=SECONDS) as client:
            client.put_metric("calls", "count")
            events = [Event(f"account-{n}", "calls", id="before") for n in range(ACCOUNTS)]
            assert client.ingest(events).stored == ACCOUNTS
        for node in cluster.nodes:
            assert node.stop() == 0
        ports = free_ports(3, beside=REPLICATION_OFFSET)
        peers = ",".join(peer(number, port) for number, port in enumerate(ports, 1))
        for node, port in zip(cluster.nodes, ports, strict=True):
            node.port = port
            node._flags = [*node._flags]
            node._flags[node._flags.index("--peers") + 1] = peers
            node.start(wait=False)
        one = cluster.nodes[0]
        eventually(lambda: takes_events(one), "there is a quorum", SECONDS)
        for number, port in enumerate(ports, 1):  # so that clients are led to the new addresses
            address = f"127.0.0.1:{port + REPLICATION_OFFSET}"
            good(one, "node", "add", str(number), address)
        with Client([f"127.0.0.1:{port}" for port in ports], timeout=SECONDS) as client:
            again = client.ingest([Event(f"account-{n}", "calls") for n in range(ACCOUNTS)])
            assert again.stored == ACCOUNTS
            assert client.usage("account-7", "calls").value == 2
        good(one, "wait", "--for", "caught-up", timeout=SECONDS)
