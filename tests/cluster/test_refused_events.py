"""Refused events of a cluster: each node keeps what it has judged, and an operator sees all."""

from __future__ import annotations

from typing import Any

import pytest

from meterd.client import Event
from meterd.exits import AdminExit
from tests.support.cluster import Cluster
from tests.support.failover import CALM_SECONDS, is_calm
from tests.support.meterctl import good, run
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

Row = dict[str, Any]
ACCOUNTS = 60  # so many that every node judges some


def test_events_rejected_shows_what_all_nodes_have_refused() -> None:
    with Cluster(3) as cluster:
        first = cluster.nodes[0]
        eventually(lambda: all(map(is_calm, cluster.nodes)), "every node leads", CALM_SECONDS)
        with cluster.client() as client:
            client.put_metric("calls", aggregation="count")
            events = [Event(f"account-{n}", "unknown") for n in range(ACCOUNTS)]
            assert client.ingest(events).rejected == ACCOUNTS

        def all_of_them() -> list[Row]:
            rows: list[Row] = good(first, "events", "rejected", "--limit", "1000")["events"]
            return rows if len(rows) >= ACCOUNTS else []

        shown = eventually(all_of_them, "all refused events are noted")
        assert len(shown) == ACCOUNTS
        assert {row["account"] for row in shown} == {event.account for event in events}
        times = [row["time"] for row in shown]
        assert times == sorted(times, reverse=True)
        assert len(good(first, "events", "rejected", "--limit", "7")["events"]) == 7
        cluster.nodes[2].kill9()
        code, found = run(first, "events", "rejected", timeout=5.0)
        assert code == AdminExit.PARTLY
        assert 0 < len(found["events"]) < ACCOUNTS
