"""Five real nodes, none of which has everything: any of them answers for all accounts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from meterd.client import Client, Event
from meterd.protocol.errors import MeterdError
from tests.support.cluster import Cluster
from tests.support.meterctl import good
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 240.0
DAY_NS = 86_400_000_000_000
ACCOUNTS = [f"account-{n:03}" for n in range(150)]
VALUES = {name: n % 40 + 1 for n, name in enumerate(ACCOUNTS)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(5) as made:
        with made.client(timeout=SECONDS) as client:
            client.put_metric("calls", aggregation="sum", dimensions=["region"])
            send(client, 1)
        yield made


def send(client: Client, batch: int) -> None:
    """Have an event of every account stored; what had to be sent again is a duplicate."""
    made = [
        Event(name, "calls", value, id=f"{name}-{batch}", properties={"region": "eu"})
        for name, value in VALUES.items()
    ]
    result = client.ingest(made)
    assert result.stored + result.duplicate == len(made), result


def alone(cluster: Cluster, number: int) -> Client:
    """A client that asks one node only."""
    client = Client([cluster.node(number).address], timeout=SECONDS)
    client._session._ask_for_map = lambda now: None
    return client


def ask(client: Client, kind: str, **fields: Any) -> dict[str, Any]:
    from meterd.client import questions

    return client.run(questions.ask(kind, fields))


def pages(cluster: Cluster, nodes: list[int], kind: str, **fields: Any) -> list[dict[str, Any]]:
    """Follow a listing to its end, the next page of the next node."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        with alone(cluster, nodes[len(found) % len(nodes)]) as client:
            page = ask(client, kind, after=cursor, **fields)
        found.append(page)
        if page["next"] is None or page["next"] == cursor:
            return found
        cursor = page["next"]


def test_every_node_gives_the_usage_of_all_accounts(cluster: Cluster) -> None:
    by_account = [(name, str(value)) for name, value in VALUES.items()]
    by_usage = sorted(by_account, key=lambda row: -int(row[1]))
    for number in cluster.numbers:
        with alone(cluster, number) as client:
            page = ask(client, "accounts", metric="calls", limit=1_000)
            assert [(row["account"], row["value"]) for row in page["rows"]] == by_account
            assert all(sorted(row) == ["account", "count", "value"] for row in page["rows"])
            assert page["next"] is None and len(page["position"].split()) > 1
            top = ask(client, "accounts", metric="calls", sort="usage", limit=40)
            assert [(row["account"], row["value"]) for row in top["rows"]] == by_usage[:40]
            none = ask(client, "accounts", metric="calls", filters={"region": ["us"]})
            assert none["rows"] == []
            old = ask(client, "accounts", metric="calls", start=1, end=2)  # read from the log
            assert old["rows"] == []
            local = ask(client, "accounts", metric="calls", consistency="local", limit=1_000)
            assert len(local["rows"]) == len(ACCOUNTS) and local["as_of"] is not None


def test_pages_belong_to_one_moment_whoever_is_asked_next(cluster: Cluster) -> None:
    found = pages(cluster, cluster.numbers, "accounts", metric="calls", limit=17)
    rows = [row for page in found for row in page["rows"]]
    assert [row["account"] for row in rows] == ACCOUNTS
    assert len({page["position"] for page in found}) == 1


def test_a_feed_gives_every_event_once_whoever_is_asked_next(cluster: Cluster) -> None:
    found = pages(cluster, cluster.numbers, "feed", limit=23)
    seen = Counter(event["id"] for page in found for event in page["events"])
    assert seen == Counter(f"{name}-1" for name in ACCOUNTS)
    cursor = found[-1]["next"]
    with cluster.client(timeout=SECONDS) as client:
        send(client, 2)
    with alone(cluster, 4) as client:
        page = ask(client, "feed", after=cursor, limit=1_000)
        assert {event["id"] for event in page["events"]} == {f"{name}-2" for name in ACCOUNTS}
        assert ask(client, "feed", after="end", limit=10)["events"] == []


def test_it_goes_on_without_a_node_and_a_cursor_holds(cluster: Cluster) -> None:
    with alone(cluster, 1) as client:
        page = ask(client, "feed", limit=5)
        found = [event["id"] for event in page["events"]]
        cursor = page["next"]
        gone = 3
        cluster.node(gone).kill9()
        expected = [(name, str(2 * value)) for name, value in VALUES.items()]

        def right() -> bool:
            try:
                page = ask(client, "accounts", metric="calls", limit=1_000)
            except MeterdError:
                return False
            return [(row["account"], row["value"]) for row in page["rows"]] == expected

        eventually(right, "the others answer for what it led", SECONDS)
        for number in (1, 2, 4, 5) * 100:
            with alone(cluster, number) as other:
                page = ask(other, "feed", after=cursor, limit=20)
            found += [event["id"] for event in page["events"]]
            if page["next"] == cursor:
                break
            cursor = page["next"]
    assert Counter(found) == Counter(f"{name}-{batch}" for name in ACCOUNTS for batch in (1, 2))
    cluster.node(gone).start()
    with alone(cluster, gone) as client:  # it has what came before, too
        assert ask(client, "feed", after=cursor, limit=200)["events"] == []


def test_every_node_expires_although_it_has_not_all_partitions(cluster):
    good(cluster.node(1), "retention", "set", "30", "--yes", timeout=SECONDS)
    oldest = (time.time_ns() // DAY_NS - 31) * DAY_NS
    for node in cluster.nodes:
        with alone(cluster, node.number) as client:
            eventually(
                lambda asked=client: ask(asked, "status")["horizon"] >= oldest,
                f"node {node.number} expires",
                SECONDS,
            )
