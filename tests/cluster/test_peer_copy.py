"""A node that is so far behind that no log helps takes a copy of a peer, and ends equal to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterd.client import Client, Event, questions
from meterd.client.results import Usage
from meterd.protocol.log_format import number_of
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 150.0
ACCOUNTS, SIZE = 300, 6_000
BEFORE, MISSED, AFTER = 2, 40, 2
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


def oldest_file(directory: Path) -> int:
    numbers = [n for path in directory.iterdir() if (n := number_of(path.name)) is not None]
    return min(numbers, default=0)


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


def test_who_is_behind_all_logs_takes_a_copy() -> None:
    with Cluster(3, LITTLE_LOG) as cluster, cluster.client(timeout=SECONDS) as client:
        client.put_metric("calls", "sum")
        for batch in range(BEFORE):
            assert client.ingest(events(batch)).stored == SIZE
        node, others = cluster.node(3), cluster.nodes[:2]
        node.kill9()
        for batch in range(BEFORE, BEFORE + MISSED):
            assert client.ingest(events(batch)).stored == SIZE
        for other in others:
            eventually(lambda o=other: oldest_file(o.data_dir) > 1, "old files have gone", SECONDS)

        for _ in range(2):  # a crash in the middle, twice
            node.start(wait=False)
            eventually(lambda: copying(node), "it knows that it needs a copy", SECONDS)
            node.kill9()
        node.start(wait=False)
        eventually(lambda: "a copy of a peer now" in node.log(), "it takes a copy", SECONDS)
        node.ready()
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
        node.start()
        with Client([node.address], timeout=SECONDS) as asked:
            eventually(lambda: local_total(asked) == total, "also after a start", SECONDS)
        for one in cluster.nodes:
            assert one.stop() == 0, one.log()
        logs = {one.number: read_ops(one.data_dir) for one in cluster.nodes}
        assert disagreements(logs) == []
        assert not (node.data_dir / "incoming").exists()
        assert not (node.data_dir / "behind.json").exists()
