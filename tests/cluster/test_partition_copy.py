"""In a cluster of more than three no node has all partitions: who lacks some takes them of peers.

The logs of all are short.  A node loses its disk, one is away for long, one comes and one goes;
each ends with what was acknowledged, of every account of its partitions.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import pytest
import zmq

from meterd.client import Client, Event, partition_of
from meterd.client.results import Usage
from meterd.protocol.body import pack, unpack_answer
from meterd.protocol.envelope import RequestHeader, decode_answer, encode_request
from tests.cluster.test_growing import replicas, state_of
from tests.cluster.test_peer_copy import LITTLE_LOG, await_short_logs, copying
from tests.support.cluster import Cluster, ClusterNode
from tests.support.cluster_logs import disagreements, read_ops
from tests.support.meterctl import good, run
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 240.0
ACCOUNTS, SIZE, LONG, SHORT = 300, 6_000, 44, 2
LISTED = 7  # every so many accounts' events are listed
ERASED, OPENED = "account-11", "account-13"
ANSWER_MS = 20_000
TOOK = "partitions of a peer are in this directory now"


class Books:
    """A cluster, and what it has acknowledged."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self.cluster, self.client = cluster, client
        self.events = 0
        self.sums: Counter[str] = Counter()
        self.users: dict[str, set[str]] = {}
        self.ids: dict[str, list[str]] = {}
        client.put_metric("calls", "sum", dimensions=["region"])
        client.put_metric("users", "unique", unique_on="user")

    def write(self, batches: int) -> None:
        for _ in range(batches):
            first, self.events = self.events, self.events + SIZE
            found = [self._event(number) for number in range(first, self.events)]
            result = self.client.ingest(found)
            assert result.stored + result.duplicate == SIZE  # some were perhaps sent again

    def _event(self, number: int) -> Event:
        account, name = f"account-{number % ACCOUNTS}", f"event-{number}"
        self.ids.setdefault(account, []).append(name)
        if number // ACCOUNTS % 4:
            self.sums[account] += 2
            return Event(account, "calls", 2, id=name, properties={"region": "eu"})
        user = f"u{number // ACCOUNTS % 17}"
        self.users.setdefault(account, set()).add(user)
        return Event(account, "users", 1, id=name, properties={"user": user})

    def erase(self, account: str) -> None:
        self.client.erase_account(account)
        self.sums[account] = 0
        self.users[account], self.ids[account] = set(), []

    def open_with(self, account: str, value: int) -> None:
        row = {"account": account, "metric": "calls", "at": 7, "count": 1, "sum": str(value)}
        assert self.client.import_balances("moved", [row])["balances"] == 1
        self.sums[account] += value

    def check(self, node: ClusterNode) -> None:
        """Compare what a node has itself with what was acknowledged."""
        held = {group for group, nodes in replicas(node).items() if node.number in nodes}
        names = [f"account-{number}" for number in range(ACCOUNTS)]
        mine = [name for name in names if partition_of(name) in held]
        assert len(mine) > ACCOUNTS // 4
        with OneNode(node) as asked:
            eventually(asked.serves, "it has read its log", SECONDS)
            for name in mine:
                assert asked.usage(name, "calls", start=0, end=2**62) == self.sums[name], name
                assert asked.usage(name, "users") == len(self.users[name]), name
            for name in mine[::LISTED]:
                assert sorted(asked.ids(name)) == sorted(self.ids[name])
        # Nothing that was counted before counts again, whoever leads.
        again = [Event(name, "calls", 2, id=one) for name in mine for one in self.ids[name][:2]]
        assert self.client.ingest(again).stored == 0


class OneNode:
    """Asks one node for what it has itself; a client would go on to others that it hears of."""

    def __init__(self, node: ClusterNode) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = node.dealer(self._context)
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def serves(self) -> bool:
        return self._ask("usage", account="nobody", metric="calls")[0].status == "ok"

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        answer, found = self._ask(kind, **fields)
        assert answer.status == "ok", found
        return found

    def _ask(self, kind: str, **fields: Any) -> tuple[Any, dict[str, Any]]:
        self._asked += 1
        header = RequestHeader(self._asked, kind, ANSWER_MS)
        body = pack({**fields, "consistency": "local"})
        self._socket.send_multipart(encode_request(header, body))
        assert self._socket.poll(ANSWER_MS), "it answers"
        answer, raw = decode_answer(self._socket.recv_multipart())
        assert answer.id == self._asked
        return answer, unpack_answer(raw)

    def usage(self, account: str, metric: str, **span: int) -> int:
        found = self.ask("usage", account=account, metric=metric, **span)
        return int(Usage.from_answer(found).value or 0)

    def ids(self, account: str) -> list[str]:
        found: list[str] = []
        page = self.ask("events", account=account, limit=500)
        while True:
            found += [event["id"] for event in page["events"]]
            if page["next"] is None:
                return found
            page = self.ask("events", account=account, limit=500, after=page["next"])


def take_over(node: ClusterNode, crashes: int = 0) -> None:
    """Start a node that lacks what no log has any more, with crashes in the middle of it."""
    before = node.log().count(TOOK)
    for _ in range(crashes):
        node.start(wait=False)
        eventually(lambda: copying(node), "it knows that it needs a copy", SECONDS)
        node.kill9()
    node.start(wait=False)
    eventually(lambda: node.log().count(TOOK) > before, "it takes partitions over", SECONDS)


@pytest.fixture
def books() -> Iterator[Books]:
    with Cluster(4, LITTLE_LOG) as cluster, cluster.client(timeout=SECONDS) as client:
        yield Books(cluster, client)


def test_partitions_come_of_several_peers(books: Books) -> None:
    cluster = books.cluster
    one, two, three, four = cluster.nodes
    books.write(LONG)
    books.erase(ERASED)
    books.open_with(OPENED, 1_000)
    books.write(SHORT)
    await_short_logs(cluster.nodes)

    three.kill9()
    shutil.rmtree(three.data_dir)
    good(one, "node", "recover", "3")
    take_over(three, crashes=1)
    good(one, "wait", "--for", "caught-up", timeout=SECONDS)
    books.check(three)

    two.kill9()  # and is away for long: what it has is replaced
    books.write(LONG)
    await_short_logs([one, three, four])
    take_over(two, crashes=1)
    good(one, "wait", "--for", "caught-up", timeout=SECONDS)
    books.write(SHORT)
    for node in (two, three):
        books.check(node)

    five = cluster.add()
    good(one, "node", "add", "5", f"127.0.0.1:{five.port + 1000}")
    five.start(wait=False)
    eventually(lambda: state_of(one, 5) == "learner", "it has joined", SECONDS)
    good(one, "node", "promote", "5")
    good(one, "rebalance", "run", timeout=SECONDS)
    settle(one)
    books.check(five)
    good(two, "drain", "4", timeout=SECONDS)
    good(two, "rebalance", "run", timeout=SECONDS)
    settle(two)
    books.write(SHORT)
    for node in (one, two, three, five):
        books.check(node)
    for node in cluster.nodes:
        assert node.stop() == 0, node.log()
    assert disagreements({node.number: read_ops(node.data_dir) for node in cluster.nodes}) == []
    for node in (one, two, three, five):
        node.start()
        books.check(node) if node is five else None
    for node in cluster.nodes:
        assert node.process is None or node.stop() == 0


def settle(asked: ClusterNode) -> None:
    def done() -> bool:
        code, said = run(asked, "rebalance", "status", timeout=SECONDS)
        return code in (0, 1) and not said["moves"]

    eventually(done, "replicas are where they should be", SECONDS)
    good(asked, "wait", "--for", "caught-up", timeout=SECONDS)
