"""Cut links: a minority, an even split and one-way links behave as the contract says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from meterd.client import Client, Event, questions
from meterd.client.partitions import partition_of
from meterd.client.results import IngestUndecided
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.failover import is_calm
from tests.support.meterctl import good, run
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 180.0
ACCOUNTS = [f"account-{n}" for n in range(300)]
NOW = time.time_ns()  # sent again, an event has the same


def cluster_of(node: ClusterNode) -> dict[str, Any]:
    """The cluster section of `meterctl status`."""
    found: dict[str, Any] = run(node, "status")[1]["cluster"]
    return found


def says_ready(node: ClusterNode) -> bool:
    """Is it ready to write, and knows all leaders?"""
    code, body = node.get("/readyz?for=write")
    return code == 200 and bool(json.loads(body)["checks"]["quorum"]["status"] == "pass")


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


def of_replica(client: Client, account: str) -> int:
    """What the node that is asked has itself of an account, as old as that may be."""
    fields = {"account": account, "metric": "calls", "consistency": "local"}
    return int(client.run(questions.ask("usage", fields))["count"])


def quorum_check(node: ClusterNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.get("/health")[1])["checks"]["quorum"]
    return found


def check_logs(cluster: Cluster) -> None:
    """Stop all nodes: they must have one history of each group."""
    for node in cluster.nodes:
        assert node.stop() == 0, node.log()
    logs = {node.number: read_ops(node.data_dir) for node in cluster.nodes}
    assert disagreements(logs) == []


def is_led(node: ClusterNode) -> bool:
    return cluster_of(node)["without_leader"] == 0


def started(count: int) -> Iterator[Cluster]:
    with Cluster(count) as made:
        eventually(lambda: is_led(made.node(1)), "every partition has a leader", SECONDS)
        with made.client(timeout=SECONDS) as client:
            client.put_metric("calls", aggregation="sum")
            assert stored(client, "first", ACCOUNTS) == len(ACCOUNTS)
        for one in made.nodes:  # what a node says of itself is up to a second old
            eventually(lambda one=one: says_ready(one), "all say that they are ready", SECONDS)
        yield made


@pytest.fixture
def three() -> Iterator[Cluster]:
    yield from started(3)


@pytest.fixture
def four() -> Iterator[Cluster]:
    yield from started(4)


def test_who_is_cut_off_commits_nothing_and_says_so(three: Cluster) -> None:
    one, two, _ = three.nodes
    three.links.isolate(1, three.numbers)
    eventually(lambda: one.get("/readyz?for=write")[0] == 503, "it is not ready", SECONDS)
    body = json.loads(one.get("/readyz?for=write")[1])
    assert (body["checks"]["quorum"]["status"], body["ready"]["write"]) == ("fail", False)
    assert one.get("/livez")[0] == 200 and one.get("/readyz?for=read")[0] == 200
    code, said = run(one, "health")
    assert code == 1 and said["status"] == "fail"
    with alone(one, 4.0) as client:
        assert stored(client, "second", ACCOUNTS) == 0
    # The others lead everything, and say what is missing.
    eventually(lambda: is_led(two), "the others lead what it led", SECONDS)
    with alone(two, SECONDS) as client:
        assert stored(client, "second", ACCOUNTS[:200]) == 200
    code, said = run(two, "status")
    section = said["cluster"]
    assert code == 1 and section["under_replicated"] == 257
    assert (section["quorum"], section["meta_leader"] in (2, 3)) == ("ok", True)
    assert next(row for row in section["nodes"] if row["node"] == 1)["leads"] == 0
    # Who asks it for the members is told of those that it has not heard of.
    good(two, "node", "add", "4", "127.0.0.1:2001")
    assert [row["node"] for row in run(one, "node")[1]["nodes"]] == [1, 2, 3, 4]
    good(two, "node", "remove", "4")
    three.links.heal()
    eventually(lambda: one.get("/readyz?for=write")[0] == 200, "it is ready again", SECONDS)
    with alone(one, SECONDS) as client:
        assert stored(client, "second", ACCOUNTS) == len(ACCOUNTS)
        assert totals(client) == dict.fromkeys(ACCOUNTS, 2)
    eventually(lambda: run(one, "status")[0] == 0, "nothing is missing", SECONDS)
    eventually(
        lambda: {row["lag_ops"] for row in cluster_of(one)["nodes"]} == {0}, "none lags", SECONDS
    )


def test_of_an_even_split_one_side_only_commits_what_an_account_sends(four: Cluster) -> None:
    """Two of four nodes: of a partition's three replicas two are on one of the sides."""
    rows = run(four.node(1), "topology", "--partitions")[1]["partitions"]
    voters = {row["group"]: set(row["planned"]) for row in rows}
    sides = [{1, 2}, {3, 4}]
    of_side = [
        [name for name in ACCOUNTS if len(voters[partition_of(name)] & side) == 2] for side in sides
    ]
    assert sum(map(len, of_side)) == len(ACCOUNTS) and all(of_side)
    four.links.cut([(a, b) for a in four.numbers for b in four.numbers if (a < 3) != (b < 3)])
    for number, mine, others in ((1, *of_side), (3, *reversed(of_side))):
        node = four.node(number)
        with alone(node, SECONDS) as client:
            assert stored(client, "second", mine) == len(mine)
        with alone(node, 4.0) as client:
            assert stored(client, "third", others) == 0
            for account in [*mine, *others]:
                if number in voters[partition_of(account)]:
                    known = (1, 2) if account in mine else (1,)
                    assert of_replica(client, account) in known
    for node in four.nodes:  # each has replicas of what only the other side commits
        eventually(lambda node=node: quorum_check(node)["status"] == "warn", "it says so", SECONDS)
        assert node.get("/readyz?for=write")[0] == 200 and node.get("/readyz?for=read")[0] == 200
    four.links.heal()
    for node in four.nodes:
        eventually(lambda node=node: quorum_check(node)["status"] == "pass", "all is led", SECONDS)
        with alone(node, SECONDS) as client:
            for batch in ("second", "third"):
                assert stored(client, batch, ACCOUNTS) == len(ACCOUNTS)
            assert totals(client) == dict.fromkeys(ACCOUNTS, 3)
    check_logs(four)


@pytest.mark.parametrize("hears", [False, True])
def test_who_hears_nobody_or_is_not_heard_commits_nothing_and_says_so(
    three: Cluster, hears: bool
) -> None:
    one, two, _ = three.nodes
    three.links.cut([(1, 2), (1, 3)] if hears else [(2, 1), (3, 1)])
    eventually(lambda: quorum_check(one)["status"] == "fail", "it says so", SECONDS)
    assert one.get("/readyz?for=write")[0] == 503 and one.get("/readyz?for=read")[0] == 200
    with alone(one, 4.0) as client:
        assert stored(client, "second", ACCOUNTS) == 0
        assert of_replica(client, ACCOUNTS[0]) >= 1
    eventually(lambda: is_led(two), "the others lead what it led", SECONDS)
    with alone(two, SECONDS) as client:
        assert stored(client, "second", ACCOUNTS) == len(ACCOUNTS)
        assert stored(client, "third", ACCOUNTS) == len(ACCOUNTS)
    eventually(lambda: quorum_check(two)["status"] == "pass", "a majority is enough", SECONDS)
    three.links.heal()
    eventually(lambda: quorum_check(one)["status"] == "pass", "it is heard again", SECONDS)
    for node in three.nodes:
        with alone(node, SECONDS) as client:
            assert stored(client, "third", ACCOUNTS) == len(ACCOUNTS)
            assert totals(client) == dict.fromkeys(ACCOUNTS, 3)
    check_logs(three)


def test_one_link_less_stops_nothing_and_both_its_ends_say_so(three: Cluster) -> None:
    """What node 1 sends node 2 is lost; the rest passes."""
    # Who leads nothing yet is missed by nobody.
    eventually(lambda: all(map(is_calm, three.nodes)), "leaders are at home", SECONDS)
    three.links.cut([(1, 2)])
    with three.client(timeout=SECONDS) as client:
        for batch in range(5):
            assert stored(client, f"more-{batch}", ACCOUNTS) == len(ACCOUNTS)
    for node in three.nodes[:2]:
        eventually(lambda node=node: quorum_check(node)["status"] == "warn", "it says so", SECONDS)
        assert node.get("/readyz?for=write")[0] == 200
    assert quorum_check(three.node(3))["status"] == "pass"
    three.links.heal()
    for node in three.nodes:
        eventually(lambda node=node: quorum_check(node)["status"] == "pass", "all is led", SECONDS)
        with alone(node, SECONDS) as client:
            assert totals(client) == dict.fromkeys(ACCOUNTS, 6)
    check_logs(three)


def test_one_link_less_to_who_leads_the_meta_group_stops_nothing(three: Cluster) -> None:
    """Who does not hear of a new metric can apply nothing made under it, and has others lead."""
    eventually(lambda: all(map(is_calm, three.nodes)), "leaders are at home", SECONDS)
    meta = cluster_of(three.node(1))["meta_leader"]
    cut, third = (number for number in three.numbers if number != meta)
    three.links.cut([(meta, cut), (cut, meta)])
    with alone(three.node(third), SECONDS) as client:
        client.put_metric("fresh", aggregation="sum")
    sent = [Event(name, "fresh", 1, timestamp=NOW, id=f"fresh-{name}") for name in ACCOUNTS]
    with three.client(timeout=SECONDS) as client:
        assert client.ingest(sent).unknown == 0
        assert stored(client, "second", ACCOUNTS) == len(ACCOUNTS)
    three.links.heal()
    eventually(lambda: all(map(is_calm, three.nodes)), "leaders are at home again", SECONDS)
    for node in three.nodes:
        with alone(node, SECONDS) as client:
            assert totals(client) == dict.fromkeys(ACCOUNTS, 2)
    check_logs(three)
