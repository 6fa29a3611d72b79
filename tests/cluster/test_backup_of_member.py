"""Backups of members of a cluster: what counts in them, and what a restore makes of them."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from meterd.actors.backups.replaying import replay_directory
from meterd.actors.backups.shelf import Shelf
from meterd.actors.backups.verifying import fetch
from meterd.client import Client, Event
from meterd.client.results import IngestUndecided
from meterd.exits import DaemonExit
from tests.support.cluster import Cluster
from tests.support.cluster_logs import read_ops
from tests.support.meterctl import good
from tests.support.node import Node
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = 120.0
meterctl = partial(good, timeout=SECONDS)

COMMITTED = 300
NOW = time.time_ns()  # sent again, an event has the same


def events(batch: str) -> list[Event]:
    return [
        Event(f"account-{n}", "calls", 1, timestamp=NOW, id=f"{batch}-{n}")
        for n in range(COMMITTED)
    ]


def tail_of(data_dir: Path, committed: dict[int, int]) -> int:
    """Return how many ops a stopped node's log has behind what is committed."""
    ops = read_ops(data_dir)
    return sum(index > committed.get(group, 0) for group, held in ops.items() for index in held)


def test_the_tail_of_its_log_is_not_in_a_backup(tmp_path: Path) -> None:
    shelf, fetched = tmp_path / "shelf", tmp_path / "fetched"
    shelf.mkdir()
    fetched.mkdir()
    with Cluster(3) as cluster:
        one = cluster.node(1)
        with cluster.client(timeout=SECONDS) as client:
            client.put_metric("calls", "sum")
            assert client.ingest(events("kept")).stored == COMMITTED
        meterctl(one, "wait", "--for", "caught-up")
        with Client([one.address], timeout=SECONDS) as client:
            client._session._ask_for_map = lambda now: None
            eventually(lambda: applied(client) == COMMITTED, "it has applied all", SECONDS)

        cluster.links.isolate(1, cluster.numbers)
        with Client([one.address], timeout=3.0) as client:
            client._session._ask_for_map = lambda now: None
            with pytest.raises(IngestUndecided):
                client.ingest(events("lost"))
        made = meterctl(one, "backup", "create", "--to", str(shelf))
        assert made["events"] == COMMITTED, made
        assert meterctl(one, "backup", "verify", "--from", str(shelf), "--level", "replay")

        found = Shelf.at(str(shelf))
        (manifest,) = found.contents().manifests.values()
        fetch(found, manifest, str(fetched), lambda _: None)
        committed = {group: index for group, (_, index, _) in manifest.cut.groups.items()}
        assert tail_of(fetched, committed) > 0, "there is nothing to be left out"
        names = [file.name for file in manifest.files]
        whole = replay_directory(str(fetched), names, lambda _: None)
        assert whole.events > COMMITTED, "it takes the manifest to know what counts"

        cluster.links.heal()
        with cluster.client(timeout=SECONDS) as client:
            result = client.ingest(events("kept"))
            assert (result.duplicate, result.stored) == (COMMITTED, 0)


def test_members_are_restored_alone_and_all_together(tmp_path: Path) -> None:
    """One alone has forgotten what it promised, and is told; all together go on from the cut."""
    shelf = str(tmp_path / "shelf")
    Path(shelf).mkdir()
    with Cluster(3) as cluster:
        one = cluster.node(1)
        with cluster.client(timeout=SECONDS) as client:
            client.put_metric("calls", "sum")
            assert client.ingest(events("kept")).stored == COMMITTED
        meterctl(one, "wait", "--for", "caught-up")
        for node in cluster.nodes:
            meterctl(node, "backup", "create", "--to", shelf)
        made = meterctl(one, "backup", "list", "--from", shelf)["backups"]
        names = {row["node_id"]: row["name"] for row in made}
        assert [*sorted(names)] == cluster.numbers
        for node in cluster.nodes:
            named = ("--from", shelf, "--backup", names[node.number])
            proved = meterctl(one, "backup", "verify", *named, "--level", "replay")
            assert [row["good"] for row in proved["backups"]] == [True], proved
            drilled = meterctl(one, "drill", *named)
            assert (drilled["totals_equal"], drilled["started"]) == (True, False), drilled
            assert drilled["events"] == COMMITTED
        with cluster.client(timeout=SECONDS) as client:
            assert client.ingest(events("later")).stored == COMMITTED

        assert one.stop() == 0
        restore(one, "node", shelf, names[1])
        one.start(wait=False)
        assert one.process.wait(SECONDS) == DaemonExit.IDENTITY
        assert "meterctl node recover 1" in one.log()

        for node, scope in zip(cluster.nodes, ("node", "cluster", "node"), strict=True):
            if node is not one:
                assert node.stop() == 0
            restore(node, scope, shelf, names[node.number])
        cluster.start()
        with cluster.client(timeout=SECONDS) as client:
            again = client.ingest(events("kept"))
            assert (again.duplicate, again.stored) == (COMMITTED, 0)
            assert client.ingest(events("later")).stored == COMMITTED
            rows = list(client.accounts("calls"))
            assert [row.count for row in rows] == [2] * COMMITTED


def test_one_that_was_restored_to_another_past_says_what_helps(tmp_path: Path) -> None:
    """Two are restored to a moment before the leaders changed, and use the same term again."""
    shelf = str(tmp_path / "shelf")
    Path(shelf).mkdir()
    with Cluster(3) as cluster:
        *first, last = cluster.nodes
        with cluster.client(timeout=SECONDS) as client:
            client.put_metric("calls", "sum")
            client.ingest(events("kept"))
        meterctl(last, "wait", "--for", "caught-up")
        for node in first:
            meterctl(node, "backup", "create", "--to", shelf)
        meterctl(last, "leader", "transfer", *map(str, range(256)), "--to", "3")
        with cluster.client(timeout=SECONDS) as client:
            client.ingest(events("later"))
        meterctl(last, "backup", "create", "--to", shelf)
        made = meterctl(last, "backup", "list", "--from", shelf)["backups"]
        names = {row["node_id"]: row["name"] for row in made}
        for node in cluster.nodes:
            assert node.stop() == 0
        for node in cluster.nodes:
            restore(node, "node", shelf, names[node.number])
        for node in first:
            node.start(wait=False)
        for node in first:
            node.ready()
        with cluster.client(timeout=SECONDS) as client:
            assert client.ingest(events("new")).stored == COMMITTED
        last.start(wait=False)
        assert last.process.wait(SECONDS) == DaemonExit.IDENTITY
        assert "meterctl node recover 3" in last.log()


def restore(node: Node, scope: str, shelf: str, name: str) -> None:
    """Give a stopped node the directory of a backup."""
    where = ("--from", shelf, "--backup", name, "--data-dir", str(node.data_dir))
    assert meterctl(node, "restore", scope, *where)["done"]


def applied(client: Client) -> int:
    """Count what one node has, as old as that may be."""
    from meterd.client import questions

    fields = {"metric": "calls", "consistency": "local", "limit": 1_000}
    rows = client.run(questions.ask("accounts", fields))["rows"]
    return sum(row["count"] for row in rows)
