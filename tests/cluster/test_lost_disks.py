"""Nodes lose their disks one after the other: each comes back as a member that counts."""

from __future__ import annotations

import shutil

import pytest

from meterd.client import Event
from tests.support.cluster import Cluster
from tests.support.meterctl import good

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 120.0
ACCOUNTS = 200


def events(batch: int) -> list[Event]:
    return [Event(f"account-{n}", "calls", 1, id=f"{batch}-{n}") for n in range(ACCOUNTS)]


def test_the_second_lost_disk_comes_back_too() -> None:
    """Of those that the cluster was made of only one is left, whose word alone is no majority."""
    with Cluster(3) as cluster, cluster.client(timeout=SECONDS) as client:
        one, two, three = cluster.nodes
        client.put_metric("calls", "sum")
        for batch, (lost, asked) in enumerate(((three, one), (two, three))):
            assert client.ingest(events(batch)).stored == ACCOUNTS
            lost.kill9()
            shutil.rmtree(lost.data_dir)
            good(asked, "node", "recover", str(lost.number))
            lost.start()
            good(asked, "wait", "--for", "caught-up", timeout=SECONDS)
        three.kill9()
        assert client.ingest(events(2)).stored == ACCOUNTS
        assert client.usage("account-7", "calls").value == 3
