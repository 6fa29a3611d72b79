"""A byte of one replica's log rots: the node has its peers repair it, and a node alone refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterd.client import Client, Event, questions
from meterd.client.results import Usage
from meterd.core.log.scan import FileScan
from meterd.protocol.log_format import ACTIVE_NAME, EVENTS, Record
from tests.support.cluster import Cluster
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.one_node import OneNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = 120.0
ACCOUNTS = 300
BATCHES = 12


def events(batch: int) -> list[Event]:
    return [Event(f"account-{n}", "calls", 2, id=f"{batch}-{n}") for n in range(ACCOUNTS)]


def records(directory: Path) -> list[Record]:
    data = memoryview((directory / ACTIVE_NAME).read_bytes())
    scan = FileScan(ACTIVE_NAME, data, active=True)
    return [record for block in scan for record in block.records]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x04]))


def middle(directory: Path) -> Record:
    """Return a record of events in the middle of a log, of ops that the node has."""
    found = [r for r in records(directory) if r.kind == EVENTS and (r.slices["flags"] == 0).all()]
    return found[len(found) // 2]


def damaged_blocks(text: str) -> int:
    found = [line for line in text.splitlines() if "wal_damaged_blocks_total " in line]
    return int(float(found[-1].split()[-1]))


def local_total(client: Client) -> int:
    """Return what the node itself has of all accounts."""
    total = 0
    for number in range(ACCOUNTS):
        fields = {"account": f"account-{number}", "metric": "calls", "consistency": "local"}
        total += int(Usage.from_answer(client.run(questions.ask("usage", fields))).value or 0)
    return total


def local_ids(client: Client, account: str) -> list[str]:
    """Return the ids of the account's events that the node itself lists."""
    fields = {"account": account, "consistency": "local", "limit": 1_000}
    return sorted(event["id"] for event in client.run(questions.ask("events", fields))["events"])


@pytest.mark.parametrize("part", ["payload", "head", "whole head"])
def test_peers_repair_what_has_rotted(part: str) -> None:
    with Cluster(3) as cluster, cluster.client(timeout=SECONDS) as client:
        client.put_metric("calls", "sum")
        for batch in range(BATCHES):
            assert client.ingest(events(batch)).stored == ACCOUNTS
        node = cluster.node(3)
        node.kill9()
        record = middle(node.data_dir)
        path = node.data_dir / ACTIVE_NAME
        if part == "payload":
            flip(path, record.offset + record.size - 5)
        elif part == "head":
            flip(path, record.offset + 70)
        else:
            for at in range(record.offset, record.offset + 100):
                flip(path, at)
        assert client.ingest(events(BATCHES)).stored == ACCOUNTS
        total = 2 * ACCOUNTS * (BATCHES + 1)
        ids_of_all = [f"{batch}-{n}" for batch in range(BATCHES + 1) for n in range(ACCOUNTS)]
        for start in range(2):
            node.start()
            assert damaged_blocks(node.get("/metrics")[1]) == (start == 0)
            with Client([node.address], timeout=SECONDS) as asked:
                eventually(lambda: local_total(asked) == total, "it has everything", SECONDS)
                for n in range(0, ACCOUNTS, 7):
                    ids = sorted(f"{batch}-{n}" for batch in range(BATCHES + 1))
                    assert local_ids(asked, f"account-{n}") == ids
            with OneNode(node) as asked_alone:
                given = asked_alone.feed()
                assert sorted(given) == sorted(ids_of_all)
            node.kill9()
        node.start()
        cluster.ready()
        for one in cluster.nodes:
            assert one.stop() == 0, one.log()
        logs = {one.number: read_ops(one.data_dir) for one in cluster.nodes}
        assert disagreements(logs) == []
        for group, ops in logs[3].items():
            assert sorted(ops) == list(range(1, len(ops) + 1)), f"group {group} has a gap"


def test_a_node_alone_names_file_and_offset() -> None:
    with Cluster(1) as cluster, cluster.client(timeout=SECONDS) as client:
        client.put_metric("calls", "sum")
        for batch in range(BATCHES):
            client.ingest(events(batch))
        node = cluster.node(1)
        node.kill9()
        record = middle(node.data_dir)
        flip(node.data_dir / ACTIVE_NAME, record.offset + record.size - 5)
        node.start(wait=False)
        assert node.process is not None
        assert node.process.wait(SECONDS) == 65
        assert f"{node.data_dir / ACTIVE_NAME} at offset {record.offset}" in node.log()
