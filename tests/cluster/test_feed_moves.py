"""A fourth node comes and replicas move to it: feeds go on, and every answer is exact meanwhile."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from meterd.client import Client, Event, questions
from meterd.protocol.errors import MeterdError
from tests.support.cluster import Cluster
from tests.support.meterctl import good, run, topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 240.0
ACCOUNTS = [f"account-{n:03}" for n in range(120)]


class Reader:
    """Follows a feed, each page from another node."""

    def __init__(self, cluster: Cluster, account: str | None = None) -> None:
        self.cluster = cluster
        self.account = account
        self.cursor: str | None = None
        self.seen: dict[str, list[int]] = {}
        self.random = Random(7)

    def page(self) -> int:
        """Read a page; return how many events came.  A node that cannot now is asked again."""
        node = self.random.choice(self.cluster.nodes)
        fields: dict[str, Any] = {"after": self.cursor, "limit": self.random.randint(1, 40)}
        if self.account is not None:
            fields["account"] = self.account
        with Client([node.address], timeout=30.0) as client:
            client._session._ask_for_map = lambda now: None
            try:
                page = client.run(questions.ask("feed", fields))
            except MeterdError as error:
                assert error.code in ("not_leader", "deadline_exceeded", "restarting"), error
                return 1
        for event in page["events"]:
            account, _, number = event["id"].rpartition("/")
            assert account == event["account"]
            self.seen.setdefault(account, []).append(int(number))
        self.cursor = page["next"]
        return len(page["events"])

    def wrong(self, accounts: list[str], expected: list[int]) -> dict[str, list[int]]:
        """Return what was read of accounts of which not just the expected was."""
        assert set(self.seen) <= set(accounts)
        seen = {account: self.seen.get(account, []) for account in accounts}
        return {account: numbers for account, numbers in seen.items() if numbers != expected}

    def read_all(self) -> None:
        eventually(lambda: self.page() == 0, "the feed ends", SECONDS)


def store(client: Client, batch: int) -> None:
    made = [Event(name, "calls", 1, id=f"{name}/{batch}") for name in ACCOUNTS]
    result = client.ingest(made)
    assert result.stored + result.duplicate == len(made), result


def test_a_cursor_holds_while_replicas_move() -> None:
    with Cluster(3) as cluster, cluster.client(timeout=SECONDS) as client:
        client.put_metric("calls", aggregation="sum")
        readers = [Reader(cluster), Reader(cluster, ACCOUNTS[5])]
        for batch in range(5):
            store(client, batch)
        for reader in readers:
            for _ in range(3):
                reader.page()
        four = cluster.add()
        four.start()
        good(four, "node", "promote", "4", timeout=SECONDS)
        good(four, "rebalance", "run", timeout=SECONDS)
        batches = 5

        def settled() -> bool:
            nonlocal batches
            store(client, batches)
            batches += 1
            with cluster.nodes[batches % 4].client(timeout=30.0) as asked:
                rows = [*asked.accounts("calls")]
            assert [int(row.value) for row in rows] == [batches] * len(ACCOUNTS)
            for reader in readers:
                reader.page()
            moves = run(four, "rebalance", "status", timeout=SECONDS)[1]["moves"]
            return moves == []

        eventually(settled, "replicas have moved", 2 * SECONDS)
        store(client, batches)
        for reader in readers:
            reader.read_all()
        held = topology(four, timeout=SECONDS)["nodes"]
        assert [node["planned"] for node in held] == [192] * 4
        expected = list(range(batches + 1))
        assert readers[0].wrong(ACCOUNTS, expected) == {}
        assert readers[1].wrong([ACCOUNTS[5]], expected) == {}
