"""A whole node: it starts, says how it does, survives the death of every part, and stops."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meterd.actors.measuring.catalog import ACTORS, FAMILIES, PREFIX
from meterd.actors.starting import start_checks
from meterd.client import Event
from tests.support.node import Node
from tests.support.processes import is_gone
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

START_SECONDS_MAX = 5.0  # 2 s on an idle machine; tests share theirs


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as one:
        yield one


def numbers(node: Node) -> dict[tuple[str, tuple[str, ...]], float]:
    status, page = node.get("/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_it_is_healthy_and_ready(node: Node) -> None:
    status, _ = node.get("/health")
    assert status == 200
    assert node.get("/livez")[0] == 200
    assert node.get("/readyz?for=read")[0] == 200
    assert node.get("/readyz")[0] == 200
    assert node.get("/readyz?for=fun")[0] == 400
    assert node.get("/nonsense")[0] == 404


def test_a_start_has_checked_everything_in_order(node: Node) -> None:
    """Each check says how long it took; nothing is served before the last."""
    checks = "|".join(start_checks.ORDER)
    said = re.findall(rf": ({checks}|ready)\b.* seconds=\d+\.\d{{3}}$", node.log(), re.MULTILINE)
    assert tuple(said) == (*start_checks.ORDER, "ready")


def test_the_page_of_telemetry_has_every_family(node: Node) -> None:
    _, page = node.get("/metrics")
    for family in FAMILIES:
        name = PREFIX + family.name
        assert f"# TYPE {name} {family.kind}" in page
    assert 'billing_events_ingested_total{mode="sync"}' in page


def test_health_and_telemetry_are_answered_to_clients_too(node: Node) -> None:
    with node.client() as client:
        assert client.health()["state"] == "active"
        assert "billing_uptime_seconds" in client.metrics("uptime")


def test_events_are_counted_in_telemetry(node: Node) -> None:
    with node.client() as client:
        client.put_metric("calls", aggregation="count")
        events = [Event("acme", "calls", id=str(number)) for number in range(10)]
        assert client.ingest(events).stored == 10
        assert client.ingest(events).duplicate == 10
        assert client.ingest([Event("acme", "none")]).rejected == 1
        assert client.usage("acme", "calls").value == 10

    def counted() -> bool:
        page = numbers(node)
        return (
            page["billing_events_ingested_total", ("sync",)] == 10
            and page["billing_events_duplicate_total", ()] == 10
            and page["billing_events_rejected_total", ("unknown_metric",)] == 1
            and page["billing_ingest_duration_seconds_count", ("sync",)] >= 2
            and page["billing_query_duration_seconds_count", ("usage",)] >= 1
            and page["billing_wal_offset_bytes", ()] > 0
            and page["billing_wal_fsync_duration_seconds_count", ()] >= 1
        )

    eventually(counted, "telemetry of the events")


@pytest.mark.parametrize("name", ACTORS)
def test_every_actor_may_be_killed(node: Node, name: str) -> None:
    """Each comes back, work goes on, what was stored is still there, and no counter has fallen."""
    before, shown = node.pids(), numbers(node)
    node.kill_actor(name)

    def back() -> bool:
        page = node.page()
        actor = page["actors"][name]
        others = all(one["ready"] for one in page["actors"].values())
        return actor["pid"] != before[name] and others

    eventually(back, f"{name} is ready again")
    now = numbers(node)
    counted = {key for key in shown if key[0].endswith(("_total", "_count", "_sum"))}
    assert {key: (shown[key], now[key]) for key in counted if now[key] < shown[key]} == {}
    with node.client() as client:
        client.put_metric("deaths", aggregation="count")
        event = Event(name, "deaths")
        assert client.ingest([event]).stored == 1
        assert client.ingest([event]).duplicate == 1
        assert client.usage(name, "deaths").value == 1
    eventually(
        lambda: numbers(node)["billing_actor_restarts_total", (name,)] >= 1,
        "the restart is counted",
    )


def test_the_supervisor_holds_no_socket(node: Node) -> None:
    pid = node.pids()["supervisor"]
    targets = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert not [target for target in targets if target.startswith("socket:")]
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1


def test_it_stops_in_order_starts_quickly_and_remembers() -> None:
    with Node() as node:
        with node.client() as client:
            client.put_metric("calls", aggregation="count")
            event = Event("acme", "calls")
            client.ingest([event])
        pids = node.pids()
        assert node.stop(signal.SIGINT) == 0
        assert "graceful shutdown complete" in node.log()
        assert all(map(is_gone, pids.values()))
        began = time.monotonic()
        node.start()
        assert time.monotonic() - began < START_SECONDS_MAX
        with node.client() as client:
            assert client.usage("acme", "calls").value == 1
            assert client.ingest([event]).duplicate == 1


def test_a_killed_node_remembers_what_it_answered() -> None:
    with Node() as node:
        with node.client() as client:
            client.put_metric("calls", aggregation="count")
            events = [Event("acme", "calls") for _ in range(20)]
            for event in events:
                client.ingest([event])
        node.kill9()
        node.start()
        with node.client() as client:
            assert client.usage("acme", "calls").value == 20
            assert client.ingest(events).duplicate == 20


def test_a_port_that_is_taken_ends_the_start_with_a_reason() -> None:
    with Node() as first:
        second = Node("--port", str(first.port))
        try:
            second.start(wait=False)
            assert second.process is not None
            assert second.process.wait(60) in (69, 74)
            assert str(first.port) in second.log()
        finally:
            second.remove()
