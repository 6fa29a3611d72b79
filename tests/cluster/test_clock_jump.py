"""Real nodes whose clock jumps a hundred days: nothing expires before somebody says that it may."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from meterd.actors.machine.wall_clock import VARIABLE
from meterd.client import Client, Event
from tests.support.cluster import Cluster
from tests.support.meterctl import good, run
from tests.support.node import Node
from tests.support.waiting import eventually

pytestmark = pytest.mark.cluster

DAY = 86_400_000_000_000
DAYS = 100
NOW = time.time_ns()
OLD = Event("acme", "calls", 1, NOW - 10 * DAY, "old")
SETTINGS = {"METERD__RETENTION__SWEEP_INTERVAL": "1s"}


class Shift:
    """The clock of some nodes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.to(0)

    def to(self, days: float) -> None:
        """Set the clock to so many days ahead of the right time."""
        beside = self.path.with_suffix(".tmp")
        beside.write_text(str(days * 86_400))
        beside.rename(self.path)


def clock_of(node: Node) -> Any:
    """Return the check of the clock in /health."""
    return json.loads(node.get("/health")[1])["checks"].get("clock", {})


def await_clock(node: Node, status: str) -> None:
    eventually(lambda: clock_of(node).get("status") == status, f"the clock is {status}", 60)


def check_kept(client: Client) -> None:
    """The old event is there, and known."""
    assert client.ingest([OLD]).duplicate == 1
    assert [one.id for one in client.events("acme", end=NOW - DAY)] == ["old"]


def horizon(node: Node) -> int:
    return int(good(node, "retention", "show")["horizon"])


def test_a_clock_that_jumps_expires_nothing_until_it_is_accepted(tmp_path: Path) -> None:
    shift = Shift(tmp_path / "clock")
    with Node(environment={VARIABLE: str(shift.path), **SETTINGS}) as node, node.client() as client:
        client.put_metric("calls", aggregation="sum")
        assert client.ingest([OLD]).stored == 1
        before = horizon(node)
        await_clock(node, "pass")
        shift.to(DAYS)
        await_clock(node, "warn")
        assert clock_of(node)["value"] > (DAYS - 1) * 86_400
        check_kept(client)
        assert good(node, "retention", "run")["horizon"] - before in (0, DAY)
        shown = good(node, "retention", "show")["clock"]
        assert shown["shown"] - shown["believed"] > (DAYS - 1) * DAY
        for begin_anew in (node.restart, lambda: (node.kill9(), node.start())):
            begin_anew()
            await_clock(node, "warn")
            check_kept(client)
            assert horizon(node) - before in (0, DAY)
        assert "the clock is not believed" in node.log()
        shift.to(0)
        await_clock(node, "pass")
        check_kept(client)
        shift.to(DAYS)
        await_clock(node, "warn")
        after = good(node, "retention", "run", "--accept-clock")["horizon"]
        assert after - before in (DAYS * DAY, (DAYS + 1) * DAY)
        await_clock(node, "pass")
        assert good(node, "retention", "show")["clock"] is None
        assert list(client.events("acme", end=NOW - DAY)) == []
        assert client.ingest([OLD]).rejected == 1
        node.restart()
        await_clock(node, "pass")
        shift.to(0)
        assert horizon(node) >= after


@pytest.mark.slow
def test_neither_one_node_nor_all_that_jump_expire_anything(tmp_path: Path) -> None:
    with Cluster(3, SETTINGS) as cluster:
        shifts = [Shift(tmp_path / f"clock-{number}") for number in cluster.numbers]
        for node, shift in zip(cluster.nodes, shifts, strict=True):
            node._environment[VARIABLE] = str(shift.path)
            node.restart()
        one, two, three = cluster.nodes
        with cluster.client(timeout=120) as client:
            client.put_metric("calls", aggregation="sum")
            assert client.ingest([OLD]).stored == 1
            before = horizon(one)
            shifts[0].to(DAYS)
            await_clock(one, "warn")
            check_kept(client)
            for shift in shifts[1:]:
                shift.to(DAYS)
            for node in (two, three):
                await_clock(node, "warn")
            check_kept(client)
            three.kill9()
            three.start()
            await_clock(three, "warn")
            check_kept(client)
            assert all(horizon(node) - before in (0, DAY) for node in cluster.nodes)

            def leads() -> bool:
                nodes = run(two, "topology")[1]["nodes"]
                return all(node["leads"] > 0 for node in nodes)

            eventually(leads, "all lead something again", 120)
            good(one, "retention", "run", "--accept-clock")
            for node in cluster.nodes:
                await_clock(node, "pass")
                eventually(
                    lambda node=node: horizon(node) - before >= DAYS * DAY,  # type: ignore[misc]
                    "it expires by the time that one node was told",
                    60,
                )
            assert client.ingest([OLD]).rejected == 1
