"""Cut links: who is cut off behaves as the contract says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from meterd.client import Client, Event
from meterd.client.results import IngestUndecided
from tests.support.cluster import Cluster, ClusterNode
from tests.support.node import ROOT
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 180.0
ACCOUNTS = [f"account-{n}" for n in range(300)]
NOW = time.time_ns()  # sent again, an event has the same


def meterctl(node: ClusterNode, *arguments: str) -> tuple[int, Any]:
    """Run meterctl; return its exit code and its JSON."""
    command = [sys.executable, str(ROOT / "bin" / "meterctl"), "-n", node.address, "-o", "json"]
    command += ["--timeout", "20", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return ended.returncode, json.loads(ended.stdout) if ended.stdout else ended.stderr


def cluster_of(node: ClusterNode) -> dict[str, Any]:
    """The cluster section of `meterctl status`."""
    found: dict[str, Any] = meterctl(node, "status")[1]["cluster"]
    return found


def alone(node: ClusterNode, timeout: float) -> Client:
    """A client that sends everything to one node."""
    client = Client([node.address], timeout=timeout)
    client._session._ask_for_map = lambda now: None
    return client


def events(batch: str, accounts: list[str]) -> list[Event]:
    return [
        Event(account, "calls", 1, timestamp=NOW, id=f"{batch}-{account}") for account in accounts
    ]


def stored(client: Client, batch: str, accounts: list[str]) -> int:
    """Send; return how many are stored: an attempt whose answer came too late counts as well."""
    try:
        result = client.ingest(events(batch, accounts))
    except IngestUndecided as undecided:
        result = undecided.result
    assert result.rejected == 0
    return result.stored + result.duplicate


def totals(client: Client) -> dict[str, int]:
    return {row.account: int(row.value) for row in client.accounts("calls")}


def is_led(node: ClusterNode) -> bool:
    return cluster_of(node)["without_leader"] == 0


def started(count: int) -> Iterator[Cluster]:
    with Cluster(count) as made:
        eventually(lambda: is_led(made.node(1)), "every partition has a leader", SECONDS)
        with made.client(timeout=SECONDS) as client:
            client.put_metric("calls", aggregation="sum")
            assert stored(client, "first", ACCOUNTS) == len(ACCOUNTS)
        yield made


@pytest.fixture
def three() -> Iterator[Cluster]:
    yield from started(3)


def test_who_is_cut_off_commits_nothing_and_says_so(three: Cluster) -> None:
    one, two, _ = three.nodes
    three.links.isolate(1, three.numbers)
    eventually(lambda: one.get("/readyz?for=write")[0] == 503, "it is not ready", SECONDS)
    body = json.loads(one.get("/readyz?for=write")[1])
    assert (body["checks"]["quorum"]["status"], body["ready"]["write"]) == ("fail", False)
    assert one.get("/livez")[0] == 200 and one.get("/readyz?for=read")[0] == 200
    code, said = meterctl(one, "health")
    assert code == 1 and said["status"] == "fail"
    with alone(one, 4.0) as client:
        assert stored(client, "second", ACCOUNTS) == 0
    # The others lead everything, and say what is missing.
    eventually(lambda: is_led(two), "the others lead what it led", SECONDS)
    with alone(two, SECONDS) as client:
        assert stored(client, "second", ACCOUNTS[:200]) == 200
    code, said = meterctl(two, "status")
    section = said["cluster"]
    assert code == 1 and section["under_replicated"] == 257
    assert (section["quorum"], section["meta_leader"] in (2, 3)) == ("ok", True)
    assert next(row for row in section["nodes"] if row["node"] == 1)["leads"] == 0
    three.links.heal()
    eventually(lambda: one.get("/readyz?for=write")[0] == 200, "it is ready again", SECONDS)
    with alone(one, SECONDS) as client:
        assert stored(client, "second", ACCOUNTS) == len(ACCOUNTS)
        assert totals(client) == dict.fromkeys(ACCOUNTS, 2)
    eventually(lambda: meterctl(one, "status")[0] == 0, "nothing is missing", SECONDS)
    eventually(
        lambda: {row["lag_ops"] for row in cluster_of(one)["nodes"]} == {0}, "none lags", SECONDS
    )
