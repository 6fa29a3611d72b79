"""Any of three real nodes takes anything, and answers exactly; also when one of them dies."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from meterd.client import Client, Event
from tests.support.cluster import Cluster
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ACCOUNTS = [f"account-{n}" for n in range(90)]
CALL_SECONDS = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as made:
        yield made


def alone(cluster: Cluster, number: int) -> Client:
    """A client that sends everything to one node: it never learns of others."""
    client = Client([cluster.node(number).address], timeout=CALL_SECONDS)
    client._session._ask_for_map = lambda now: None
    return client


def made(count: int, metric: str, each: int = 1) -> list[Event]:
    return [Event(ACCOUNTS[n % len(ACCOUNTS)], metric, value=each) for n in range(count)]


def done(result: Any) -> int:
    """How many events are stored: an attempt whose answer came too late counts as well."""
    return result.stored + result.duplicate


def _ask(kind: str, **fields: Any) -> Any:
    from meterd.client import questions

    return questions.ask(kind, fields)


def test_all_nodes_give_the_same_map(cluster: Cluster) -> None:
    maps: list[Any] = []

    def agreed() -> bool:
        maps.clear()
        for number in (1, 2, 3):
            with alone(cluster, number) as client:
                maps.append(client.run(_ask("map")))
        return 0 not in maps[0]["leaders"] and maps[0] == maps[1] == maps[2]

    try:
        eventually(agreed, "all nodes give one map", 120.0)
    except AssertionError as error:
        said = [(one["version"], one["nodes"], Counter(one["leaders"])) for one in maps]
        raise AssertionError(f"{error}: {said}") from error


def test_any_node_takes_any_event_and_any_command(cluster: Cluster) -> None:
    for number in (1, 2, 3):
        metric = f"any-{number}"
        with alone(cluster, number) as client:
            client.put_metric(metric, aggregation="sum")
            assert done(client.ingest(made(450, metric))) == 450
            # Another node knows the metric as soon as the first has answered.
            with alone(cluster, number % 3 + 1) as other:
                assert done(other.ingest(made(90, metric))) == 90
                assert other.usage(ACCOUNTS[0], metric).value == Decimal(6)
                rows = {row.account: row.value for row in other.accounts(metric)}
                assert rows == dict.fromkeys(ACCOUNTS, Decimal(6))


def test_the_same_events_by_another_node_are_duplicates(cluster: Cluster) -> None:
    with alone(cluster, 1) as one, alone(cluster, 2) as two:
        one.put_metric("twice", aggregation="count")
        events = made(300, "twice")
        assert done(one.ingest(events)) == 300
        again = two.ingest(events)
        assert (again.duplicate, again.stored) == (300, 0)


def test_every_node_answers_every_question_exactly(cluster: Cluster) -> None:
    with cluster.client(timeout=CALL_SECONDS) as client:
        client.put_metric("asked", aggregation="sum")
        for round_ in range(1, 6):
            assert done(client.ingest(made(90, "asked"))) == 90
            for number in (1, 2, 3):
                with alone(cluster, number) as one:
                    assert one.usage(ACCOUNTS[round_], "asked").value == Decimal(round_)
                    assert sum(row.value for row in one.accounts("asked")) == 90 * round_
                    events = list(one.events(ACCOUNTS[round_], metric="asked", page_size=2))
                    assert len(events) == round_


def test_nothing_is_lost_or_doubled_when_a_node_dies_under_load(cluster: Cluster) -> None:
    sent: list[int] = [0, 0]
    stop = threading.Event()
    failures: list[BaseException] = []

    def load(place: int) -> None:
        try:
            with cluster.client(timeout=60.0) as client:
                while not stop.is_set():
                    result = client.ingest(made(90, "killed"))
                    assert done(result) == 90
                    sent[place] += 1
        except BaseException as error:
            failures.append(error)

    with cluster.client(timeout=60.0) as client:
        client.put_metric("killed", aggregation="count")
        threads = [threading.Thread(target=load, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        eventually(lambda: min(sent) >= 3 or failures, "both have stored something", 60.0)
        node = cluster.node(2)
        assert node.process is not None
        os.killpg(node.process.pid, signal.SIGKILL)
        node.process.wait()
        eventually(node._is_gone, "all its processes have gone")
        before = list(sent)
        eventually(
            lambda: min(a - b for a, b in zip(sent, before, strict=True)) >= 3 or failures,
            "both have gone on",
            90.0,
        )
        node.start(wait=False)
        node.ready()
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        total = sum(sent)
        for number in (1, 2, 3):
            with alone(cluster, number) as one:
                rows = {row.account: row.value for row in one.accounts("killed")}
                assert rows == dict.fromkeys(ACCOUNTS, Decimal(total))
