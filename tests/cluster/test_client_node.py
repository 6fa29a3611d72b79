"""The client library against a real node: the manual's examples, kills in the middle, pages."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from meterd.client import AsyncClient, Client, Event, IngestUndecided
from tests.support.node import Node

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MANUAL = Path(__file__).resolve().parent.parent.parent / "docs" / "CLIENT.md"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    with Client([node.address]) as client:
        yield client


def test_the_manuals_examples_run() -> None:
    """In order and in one program, on a node that has seen nothing else."""
    with Node() as fresh:
        text = MANUAL.read_text().replace("127.0.0.1:7001", fresh.address)
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert len(blocks) >= 7
        names: dict[str, object] = {}
        for number, block in enumerate(blocks):
            exec(compile(block, f"CLIENT.md, example {number + 1}", "exec"), names)


def test_a_hundred_thousand_rows_are_stored_once(client: Client) -> None:
    client.put_metric("rows", "sum", decimals=0)
    count = 100_000
    columns = {
        "account": np.char.add("account-", (np.arange(count) % 100).astype(str)),
        "metric": "rows",
        "value": np.arange(count),
        "id": np.arange(count).astype(str),
        "timestamp": np.array(["now"] * count, "datetime64[ns]"),
    }
    assert client.ingest_columns(**columns).stored == count
    assert client.ingest_columns(**columns).duplicate == count
    rows = list(client.accounts("rows", page_size=30))
    assert len(rows) == 100
    assert sum(row.value for row in rows) == count * (count - 1) // 2
    assert sum(row.count for row in rows) == count


def test_events_come_back_as_they_were_sent(client: Client) -> None:
    client.put_metric("calls", "sum", decimals=2)
    sent = [
        Event("reader", "calls", f"{number}.25", properties={"n": str(number)})
        for number in range(50)
    ]
    assert client.ingest(sent).stored == 50
    listed = list(client.events("reader", page_size=7))
    assert [(event.id, event.timestamp, event.properties) for event in listed] == [
        (event.id, event.timestamp, event.properties)
        for event in sorted(sent, key=lambda event: event.timestamp)
    ]
    fed = list(client.feed(account="reader", page_size=7))
    assert [event.id for event in fed] == [event.id for event in sent]
    assert {str(event.value) for event in fed} == {event.value for event in sent}


def test_an_event_that_fits_no_request_fails_alone(client: Client) -> None:
    client.put_metric("whole", "count")
    many = {f"k{number}": "v" for number in range(300)}
    assert client.ingest([Event("known", "whole", id="e")]).stored == 1
    result = client.ingest(
        [
            Event("acme", "whole"),
            Event("acme", "whole", properties=many),
            Event("known", "whole", id="e", properties=many),
            Event("a" * 5_000_000, "whole"),
            Event("acme", "whole", id="i" * 5_000_000),
            Event("acme", "w" * 5_000_000),
            Event("acme", "whole", "1" * 5_000_000),
            Event("acme", "whole"),
        ]
    )
    assert result.stored == 2
    assert result.items == [
        (1, "rejected", "bad_properties"),
        (2, "conflict", ""),
        (3, "rejected", "bad_account"),
        (4, "rejected", "bad_id"),
        (5, "rejected", "bad_metric"),
        (6, "rejected", "bad_value"),
    ]
    half = client.ingest_columns(account=["acme", "\ud83d", "acme"], metric="whole")
    assert half.stored == 2 and half.items == [(1, "rejected", "bad_account")]


def test_a_local_answer_says_how_old_it_is_of_a_node_alone_too(client: Client) -> None:
    client.put_metric("local", "count")
    before = time.time_ns()
    assert client.ingest([Event("here", "local")]).stored == 1
    usage = client.usage("here", "local", consistency="local")
    assert usage.value == 1 and usage.as_of is not None and usage.as_of > before
    pages = client.events("here", start=before, consistency="local")
    assert len(list(pages)) == 1 and pages.head["as_of"] > usage.as_of
    assert client.usage("here", "local").as_of is None


@pytest.mark.parametrize("actor", ["router", "ingest", "usage", "wal_writer"])
def test_nothing_is_lost_or_doubled_when_an_actor_is_killed(
    node: Node, client: Client, actor: str
) -> None:
    """The client sees lost answers and `restarting`; the application sees only results."""
    client.put_metric("kills", "count")
    killed = threading.Event()

    def kill() -> None:
        node.kill_actor(actor)
        killed.set()

    killer = threading.Timer(0.2, kill)
    killer.start()
    sent_count = 0
    while not killed.is_set() or sent_count < 400:
        events = [Event(f"{actor}/{sent_count}", "kills") for _ in range(20)]
        result = client.ingest(events)
        assert result.stored + result.duplicate == 20
        sent_count += 20
    killer.join()
    assert client.usage(actor, "kills", subtree=True).value == sent_count


def test_nothing_is_lost_or_doubled_when_the_node_is_killed() -> None:
    with Node() as fresh, fresh.client(timeout=60.0) as client:
        client.put_metric("kills", "count")
        events = [Event("acme", "kills") for _ in range(500)]
        results = []
        sender = threading.Thread(
            target=lambda: results.extend(client.ingest([event]) for event in events)
        )
        sender.start()
        fresh.kill9()
        fresh.start()
        sender.join()
        assert sum(result.stored + result.duplicate for result in results) == 500
        assert client.usage("acme", "kills").value == 500


def test_async_tasks_and_a_producer_count_together(node: Node, client: Client) -> None:
    client.put_metric("together", "count")

    async def by_tasks() -> None:
        async with AsyncClient([node.address]) as tasks:
            await asyncio.gather(*(tasks.ingest([Event("acme", "together")]) for _ in range(200)))

    with client.producer(max_batch=100) as producer:
        for _ in range(1_000):
            producer.send(Event("acme", "together"))
        asyncio.run(by_tasks())
    assert producer.counters.stored == 1_000
    assert client.usage("acme", "together").value == 1_200


def test_a_node_that_is_down_is_reported_with_what_is_undecided() -> None:
    with Node() as fresh:
        with fresh.client() as client:
            client.put_metric("down", "count")
        fresh.kill9()
        with fresh.client(timeout=1.0) as client, pytest.raises(IngestUndecided) as caught:
            client.ingest([Event("acme", "down")])
        fresh.start()
        with fresh.client() as client:
            assert client.ingest(caught.value.undecided).stored == 1
            assert client.usage("acme", "down").value == 1
