"""A node that was made alone becomes a cluster: others find it, and it needs them from then on."""

from __future__ import annotations

import pytest

from meterd.actors import endings
from meterd.client import Client, Event
from tests.support.cluster import Cluster, peer
from tests.support.meterctl import good, run, topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 120.0
ACCOUNTS = [f"a-{number}" for number in range(20)]


def test_a_node_that_was_alone_grows() -> None:
    with Cluster(1) as cluster:
        one = cluster.node(1)
        with Client([one.address], timeout=SECONDS) as client:
            client.put_metric("calls", "sum")
            events = [Event(account, "calls", 1, id="x") for account in ACCOUNTS]
            assert client.ingest(events).stored == len(events)
        assert one.stop() == 0
        two = cluster.add()
        alone = one._flags
        one._flags = (*alone, "--peers", peer(2, two.port))
        one.start()
        two.start()
        good(one, "node", "promote", "2")
        good(one, "rebalance", "run")
        eventually(lambda: run(two, "rebalance", "status")[1]["moves"] == [], "moved", SECONDS)
        rows = topology(two)["nodes"]
        assert [row["peer_address"] for row in rows] == [
            f"127.0.0.1:{node.port + 1000}" for node in (one, two)
        ]
        assert all(row["reachable"] for row in rows)
        with Client([two.address], timeout=SECONDS) as client:
            assert {client.usage(account, "calls").value for account in ACCOUNTS} == {1}

        assert one.stop() == 0
        one._flags = alone
        one.start(wait=False)
        assert one.process is not None
        assert one.process.wait(SECONDS) == endings.CONFIGURATION
        assert "start it with --peers" in one.log()
