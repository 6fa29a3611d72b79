"""A node that is so far behind that no log helps takes a copy of a peer, and ends equal to it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import pytest

from meterd.client import Client, Event, partition_of, questions
from meterd.client.results import Usage
from tests.support.absence import COPIED, oldest_file
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.failover import leaders_of
from tests.support.meterctl import good, topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 150.0
ACCOUNTS, SIZE = 300, 6_000
BEFORE, MISSED, AFTER, MOVED = 2, 40, 2, 5
LITTLE_LOG = {
    "METERD__WAL__SEGMENT_SIZE": "4MiB",
    "METERD__WAL__RETENTION_DAYS": "0",
    "METERD__WAL__MAX_SEGMENTS": "1",
    "METERD__WAL__MIN_SEGMENTS": "1",
    "METERD__WAL__REPLICA_SEGMENTS": "0",
    "METERD__STORAGE__CHECKPOINT_EVENTS": "10000",
    "METERD__STORAGE__COPY_GRACE": "0s",
    "METERD__RETENTION__SWEEP_INTERVAL": "1s",
}


def events(batch: int) -> list[Event]:
    return [
        Event(f"account-{n % ACCOUNTS}", "calls", 2, id=f"event-{batch}-{n}") for n in range(SIZE)
    ]


def local_total(client: Client) -> int:
    """Return what the node itself has of all accounts."""
    total = 0
    for number in range(ACCOUNTS):
        fields = {"account": f"account-{number}", "metric": "calls", "consistency": "local"}
        total += int(Usage.from_answer(client.run(questions.ask("usage", fields))).value or 0)
    return total


def local_ids(client: Client, account: str) -> list[str]:
    """Return the ids of all events of an account that the node itself lists."""
    found: list[str] = []
    fields = {"account": account, "consistency": "local", "limit": 500, "after": None}
    while True:
        answer = client.run(questions.ask("events", fields))
        found += [event["id"] for event in answer["events"]]
        if answer["next"] is None:
            return found
        fields["after"] = answer["next"]


def copying(node: ClusterNode) -> bool:
    """Is a copy on its way, or about to be?"""
    return (node.data_dir / "behind.json").exists()


def await_short_logs(nodes: Sequence[ClusterNode]) -> None:
    """Wait until the logs of nodes no longer begin at the beginning."""
    for node in nodes:
        eventually(lambda n=node: oldest_file(n) > 1, "old files have gone", SECONDS)  # type: ignore[misc]


def take_copy(node: ClusterNode, crashes: int) -> None:
    """Start a node that needs a copy of a peer, with some crashes in the middle of it."""
    for _ in range(crashes):
        node.start(wait=False)
        eventually(lambda: copying(node), "it knows that it needs a copy", SECONDS)
        node.kill9()
    node.start(wait=False)
    eventually(lambda: COPIED in node.log(), "it takes a copy", SECONDS)
    node.ready()


def test_who_is_behind_all_logs_takes_a_copy() -> None:
    with Cluster(3, LITTLE_LOG) as cluster, cluster.client(timeout=SECONDS) as client:
        client.put_metric("calls", "sum")
        for batch in range(BEFORE):
            assert client.ingest(events(batch)).stored == SIZE
        node, others = cluster.node(3), cluster.nodes[:2]
        node.kill9()
        for batch in range(BEFORE, BEFORE + MISSED):
            assert client.ingest(events(batch)).stored == SIZE
        await_short_logs(others)
        take_copy(node, crashes=2)
        for batch in range(BEFORE + MISSED, BEFORE + MISSED + AFTER):
            assert client.ingest(events(batch)).stored == SIZE
        total = 2 * SIZE * (BEFORE + MISSED + AFTER)
        with Client([node.address], timeout=SECONDS) as asked:
            eventually(lambda: local_total(asked) == total, "it has everything", SECONDS)
            # Raw events come from files of both: the donor's and its own.
            wanted = [
                f"event-{batch}-{n}"
                for batch in range(BEFORE + MISSED + AFTER)
                for n in range(7, SIZE, ACCOUNTS)
            ]
            assert sorted(local_ids(asked, "account-7")) == sorted(wanted)
        node.kill9()
        # A new leader writes an op; the one before is in no file any more where nothing happened.
        busy = {partition_of(f"account-{number}") for number in range(ACCOUNTS)}
        led = {group for group, leader in leaders_of(others[0]).items() if leader == 1}
        moved = [str(group) for group in sorted(led - busy)[:MOVED]]
        good(others[0], "leader", "transfer", *moved, "--to", "2", timeout=SECONDS)
        node.start()
        with Client([node.address], timeout=SECONDS) as asked:
            eventually(lambda: local_total(asked) == total, "also after a start", SECONDS)
        good(others[0], "wait", "--for", "caught-up", timeout=SECONDS)
        assert node.log().count(COPIED) == 1
        for one in cluster.nodes:
            assert one.stop() == 0, one.log()
        logs = {one.number: read_ops(one.data_dir) for one in cluster.nodes}
        assert disagreements(logs) == []
        assert not (node.data_dir / "incoming").exists()
        assert not (node.data_dir / "behind.json").exists()


def test_an_empty_disk_is_filled_by_a_copy() -> None:
    """A node is recovered whose peers' logs no longer begin at the beginning."""
    with Cluster(3, LITTLE_LOG) as cluster, cluster.client(timeout=SECONDS) as client:
        one, two, three = cluster.nodes
        client.put_metric("calls", "sum")
        for batch in range(MISSED):
            assert client.ingest(events(batch)).stored == SIZE
        await_short_logs([one, two])
        three.kill9()
        shutil.rmtree(three.data_dir)
        good(two, "node", "recover", "3")
        take_copy(three, crashes=1)
        good(one, "wait", "--for", "caught-up", timeout=SECONDS)
        rows = topology(one)["nodes"]
        assert [(row["incarnation"], row["state"]) for row in rows] == [
            (1, "voter"),
            (1, "voter"),
            (2, "voter"),
        ]
        one.kill9()  # now it is needed for everything
        assert client.ingest(events(MISSED)).stored == SIZE
        with Client([three.address], timeout=SECONDS) as asked:
            total = 2 * SIZE * (MISSED + 1)
            eventually(lambda: local_total(asked) == total, "it has everything", SECONDS)
        one.start()
        good(one, "wait", "--for", "caught-up", timeout=SECONDS)
        for node in cluster.nodes:
            assert node.stop() == 0, node.log()
        logs = {node.number: read_ops(node.data_dir) for node in cluster.nodes}
        assert disagreements(logs) == []
