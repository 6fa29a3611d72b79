"""One node of three has no room for its log: the others lead, and events are stored."""

from __future__ import annotations

import pytest

from meterd.client import Client, Event
from tests.support.cluster import Cluster
from tests.support.disk_campaign import OPTIONS
from tests.support.failover import leaders_of
from tests.support.small_disk import MIB, SmallDisk
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FULL = 2
BATCH, BATCHES_MAX = 5_000, 120
TIMEOUT = 60.0


def test_a_leader_without_room_for_its_log_hands_over() -> None:
    with SmallDisk(256 * MIB) as disk, Cluster(3, OPTIONS, {FULL: disk.data_dir}) as cluster:
        first = cluster.nodes[0]
        with Client([first.address], timeout=TIMEOUT) as client:
            client.put_metric("calls", aggregation="count")
            sent = 0
            while FULL in leaders_of(first).values():
                assert sent < BATCH * BATCHES_MAX, "the full node leads on"
                disk.fill(0)  # also what the node itself has just given back
                batch = [Event(f"a{n % 997}", "calls", id=f"{sent + n}") for n in range(BATCH)]
                result = client.ingest(batch)
                sent += BATCH
                assert result.stored + result.duplicate == BATCH, result  # sent again meanwhile
            # All that is asked of it is stored by the others.
            more = client.ingest([Event(f"a{n}", "calls") for n in range(997)])
            assert more.stored + more.duplicate == 997
            disk.free_up()
            eventually(
                lambda: FULL in leaders_of(first).values(), "it leads again, with room", TIMEOUT
            )
        for node in cluster.nodes:
            with Client([node.address], timeout=TIMEOUT) as client:
                total = sum(int(row.value) for row in client.accounts("calls"))
                assert total == sent + 997
