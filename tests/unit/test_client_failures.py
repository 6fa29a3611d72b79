"""Both clients and the producer against a node that misbehaves as told, over real sockets."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Event,
    IngestResult,
    IngestUndecided,
    Item,
    ProducerFailed,
    UnknownMetric,
    Unreachable,
)
from meterd.client.connections import Connections
from tests.support.fake_node import BEHAVIOURS, FakeNode, ModelNode

PATIENCE_S = 0.03
# In that time thousands of attempts to connect are refused, one a millisecond.
FULL_SECONDS = 5.0


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterd.client.session.PATIENCE_S", PATIENCE_S)


def made(count: int, prefix: str = "id") -> list[Event]:
    return [Event("acme", "api_calls", 1, 7, f"{prefix}-{number}") for number in range(count)]


def by_threads(address: str, work: Callable[[Any], Any], timeout: float) -> Any:
    with Client([address], timeout) as client:
        return work(client)


def by_loop(address: str, work: Callable[[Any], Any], timeout: float) -> Any:
    async def main() -> Any:
        async with AsyncClient([address], timeout) as client:
            return await work(client)

    return asyncio.run(main())


@pytest.fixture(params=[by_threads, by_loop])
def using(request: pytest.FixtureRequest) -> Any:
    """Give what does one thing with a client: one test, both clients."""
    return lambda node, work, timeout=5.0: request.param(node.address, work, timeout)


def test_events_are_stored_and_duplicates_named(using: Any) -> None:
    with FakeNode() as node:
        result = using(node, lambda client: client.ingest([*made(3), *made(1)]))
    assert (result.received, result.stored, result.duplicate) == (4, 3, 1)
    assert result.items == [Item(3, "duplicate", "")]


def test_a_rejected_event_fails_alone(using: Any) -> None:
    with FakeNode() as node:
        events = [*made(1), Event("acme", "unknown")]
        result = using(node, lambda client: client.ingest(events))
    assert (result.stored, result.rejected) == (1, 1)
    assert result.items == [Item(1, "rejected", "unknown_metric")]


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_one_misfortune_is_survived(using: Any, behaviour: str) -> None:
    with FakeNode([behaviour]) as node:
        result = using(node, lambda client: client.ingest(made(2)))
        assert len(node.model.events) == 2
    done_before = behaviour in ("lose", "late", "garbage")
    assert (result.stored, result.duplicate) == ((0, 2) if done_before else (2, 0))


def test_no_events_are_no_request(using: Any) -> None:
    with FakeNode() as node:
        assert using(node, lambda client: client.ingest([])) == IngestResult()
    assert node.kinds == []


def test_an_error_is_raised_as_its_class(using: Any) -> None:
    with FakeNode() as node, pytest.raises(UnknownMetric, match="nothing: not registered"):
        using(node, lambda client: client.show_metric("nothing"))


def test_a_silent_node_ends_in_unreachable(using: Any) -> None:
    with FakeNode(["ignore"] * 100) as node, pytest.raises(Unreachable, match=node.address):
        using(node, lambda client: client.hello(), 0.2)


def test_undecided_events_are_reported_and_can_be_sent_again(using: Any) -> None:
    """The node did it, the answers were lost: the application must be able to find out."""
    with FakeNode(["lose"] * 100) as node:
        with pytest.raises(IngestUndecided) as caught:
            using(node, lambda client: client.ingest(made(2)), 0.2)
        assert isinstance(caught.value, DeadlineExceeded)
        assert caught.value.result.unknown == caught.value.result.received == 2
        node.script.clear()
        result = using(node, lambda client: client.ingest(caught.value.undecided))
    assert result.duplicate == 2


def test_undecided_columns_keep_the_ids_they_were_given(using: Any) -> None:
    with FakeNode(["lose"] * 100) as node:
        columns = {"account": ["a", "b"], "metric": "api_calls", "properties": {"k": ["x", None]}}
        with pytest.raises(IngestUndecided) as caught:
            using(node, lambda client: client.ingest_columns(**columns), 0.2)
        node.script.clear()
        again = caught.value.undecided
        result = using(node, lambda client: client.ingest_columns(**again))
    assert result.duplicate == 2 and len(node.model.events) == 2


def test_many_rows_are_split_and_their_numbers_joined(
    using: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterd.client.batches.REQUEST_EVENTS_COUNT", 10)
    ids = [f"id-{number % 700}" for number in range(1_000)]
    with FakeNode(["answer", "twice"]) as node:
        columns = {"account": "acme", "metric": "api_calls", "timestamp": 7, "id": ids}
        result = using(node, lambda client: client.ingest_columns(**columns))
    assert (result.received, result.stored, result.duplicate) == (1_000, 700, 300)
    assert [item.index for item in result.items] == list(range(700, 1_000))


@pytest.mark.slow
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=st.lists(st.sampled_from(BEHAVIOURS), max_size=6))
def test_any_misfortunes_are_survived(using: Any, script: list[str]) -> None:
    with FakeNode(script) as node:
        result = using(node, lambda client: client.ingest(made(3)), 30.0)
        assert len(node.model.events) == 3
    assert result.stored + result.duplicate == 3


def test_pages_are_followed_to_the_end(using: Any) -> None:
    async def rows_of(pages: Any) -> list[Any]:
        return [row async for row in pages]

    def listed(client: Any, **options: Any) -> Any:
        pages = client.accounts("api_calls", **options)
        return rows_of(pages) if isinstance(client, AsyncClient) else list(pages)

    with FakeNode() as node:
        events = [Event(f"account-{number:02}", "api_calls") for number in range(25)]
        using(node, lambda client: client.ingest(events))
        rows = using(node, lambda client: listed(client, page_size=10))
        top = using(node, lambda client: listed(client, page_size=10, limit=12))
    assert [row.account for row in rows] == [event.account for event in events]
    assert top == rows[:12]
    assert node.kinds.count("accounts") == 3 + 2


def test_a_dead_seed_is_passed_over() -> None:
    with FakeNode() as dead:
        address = dead.address
    with FakeNode() as node, Client([address, node.address], 5.0) as client:
        assert client.hello()["node_id"] == 1
        assert client.hello()["node_id"] == 1
    assert node.kinds.count("hello") == 2


def by_threads_of(addresses: list[str], calls: int) -> list[int]:
    with Client(addresses, 20.0) as client:
        return [client.hello()["node_id"] for _ in range(calls)]


def by_loop_of(addresses: list[str], calls: int) -> list[int]:
    async def main() -> list[int]:
        async with AsyncClient(addresses, 20.0) as client:
            return [(await client.hello())["node_id"] for _ in range(calls)]

    return asyncio.run(main())


@pytest.mark.parametrize("client_of", [by_threads_of, by_loop_of])
def test_who_refuses_connections_is_not_waited_for(
    client_of: Callable[[list[str], int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterd.client.session.PATIENCE_S", 1_000.0)
    with FakeNode() as dead:
        address = dead.address
    with FakeNode() as node:
        assert client_of([address, node.address], 2) == [1, 1]
    assert node.kinds.count("hello") == 2


@pytest.mark.parametrize("client_of", [by_threads_of, by_loop_of])
def test_a_connection_that_ends_is_not_waited_for(
    client_of: Callable[[list[str], int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that has taken a request and dies."""
    monkeypatch.setattr("meterd.client.session.PATIENCE_S", 1_000.0)
    with FakeNode() as node, socket.create_server(("127.0.0.1", 0)) as listener:

        def take_and_die() -> None:
            connection, _ = listener.accept()
            connection.recv(64)
            listener.close()
            connection.close()

        thread = threading.Thread(target=take_and_die)
        thread.start()
        dying = f"127.0.0.1:{listener.getsockname()[1]}"
        assert client_of([dying, node.address], 1) == [1]
        thread.join()


def test_who_has_not_listened_for_long_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node is gone and its client at rest: what the monitor says fills its queue."""
    monkeypatch.setattr("meterd.client.connections.RECONNECT_MS", 1)
    monkeypatch.setattr("meterd.client.connections.RECONNECT_MS_MAX", 1)
    with FakeNode() as dead:
        address = dead.address
    connections = Connections(lambda opened: None, lambda closed: None)
    connections.send(address, [b"nobody hears it"])
    time.sleep(FULL_SECONDS)
    closing = threading.Thread(target=connections.close, daemon=True)
    closing.start()
    closing.join(20.0)
    assert not closing.is_alive()


def test_events_of_each_leader_go_there() -> None:
    model, other = ModelNode(), ModelNode()
    with FakeNode(model=model) as first, FakeNode(model=other) as second:
        for one in (model, other):
            one.nodes = {1: first.address, 2: second.address}
            one.leaders = [1, 2] * 128
        with Client([first.address], 5.0) as client:
            while client._session.map is None:
                client.hello()  # takes the map's answer along when it is there
            events = [Event(f"account-{number}", "api_calls") for number in range(50)]
            assert client.ingest(events).stored == 50
    from meterd.client.partitions import partition_of

    for parity, one in enumerate((model, other)):
        stored = {account.decode() for account, _ in one.events}
        assert stored == {
            event.account for event in events if partition_of(event.account) % 2 == parity
        }


@pytest.mark.parametrize("address", ["", "bad host:7001", "*:7001"])
def test_a_node_without_an_address_is_reached_through_others(address: str) -> None:
    model, other = ModelNode(), ModelNode()
    with FakeNode(model=model) as first, FakeNode(model=other) as second:
        for one in (model, other):
            one.nodes = {1: first.address, 2: second.address, 3: address}
            one.leaders = [3, 3, 1, 2] * 64
        with Client([first.address], 5.0) as client:
            while client._session.map is None:
                client.hello()
            events = [Event(f"account-{number}", "api_calls") for number in range(50)]
            assert client.ingest(events).stored == 50
            assert client._session.addresses == [first.address, second.address]
    assert model.events and other.events


def test_threads_share_one_client() -> None:
    """The driving thread changes all the time; nobody must be left waiting."""
    script = ["answer", "lose", "twice", "overloaded", "late"] * 10
    with FakeNode(script) as node, Client([node.address], 20.0) as client:
        results: list[IngestResult] = []

        def work(name: int) -> None:
            for number in range(20):
                results.append(client.ingest(made(2, f"{name}-{number}")))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(node.model.events) == 240
    assert sum(result.stored + result.duplicate for result in results) == 240


def test_an_interrupted_call_leaves_the_client_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeNode(["ignore"]) as node, Client([node.address], 5.0) as client:
        with monkeypatch.context() as patch:
            patch.setattr(client._driver, "_poll", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.hello()
        assert client.hello()["node_id"] == 1


def _interrupted(wake: float | None) -> Sequence[tuple[object, int]]:
    raise KeyboardInterrupt


def test_a_cancelled_task_leaves_the_client_usable() -> None:
    async def main(address: str) -> dict[str, Any]:
        async with AsyncClient([address], 5.0) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.hello(), 0.01)
            return await client.hello()

    with FakeNode(["ignore"]) as node:
        assert asyncio.run(main(node.address))["node_id"] == 1


def test_a_call_that_could_not_be_sent_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("too many open files")

    async def main(address: str) -> None:
        async with AsyncClient([address], 5.0) as client:
            with monkeypatch.context() as patch:
                patch.setattr(Connections, "send", broken)
                with pytest.raises(OSError, match="too many"):
                    await client.hello()
            assert not client._session._active and not client._driver._futures
            assert (await client.hello())["node_id"] == 1

    with FakeNode() as node:
        asyncio.run(main(node.address))


def test_tasks_share_one_client() -> None:
    async def main(address: str) -> list[IngestResult]:
        async with AsyncClient([address], 20.0) as client:
            return await asyncio.gather(
                *(client.ingest(made(2, f"{number}")) for number in range(60))
            )

    with FakeNode(["answer", "lose", "twice", "overloaded", "late"] * 4) as node:
        results = asyncio.run(main(node.address))
        assert len(node.model.events) == 120
    assert sum(result.stored + result.duplicate for result in results) == 120


def test_a_client_does_not_survive_a_fork() -> None:
    with FakeNode() as node, Client([node.address], 5.0) as client:
        client.hello()
        client._driver._owner_pid = os.getppid()  # what a child would see
        with pytest.raises(RuntimeError, match="make one after the fork"):
            client.hello()
        client._driver._owner_pid = os.getpid()


def test_a_closed_client_says_so() -> None:
    with FakeNode() as node:
        client = Client([node.address], 5.0)
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.hello()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("127.0.0.1:7001",), TypeError),
        (([],), ValueError),
        ((["127.0.0.1"],), ValueError),
        ((["bad host:7001"],), ValueError),
        ((["127.0.0.1:7001"], 0), ValueError),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: Any, error: type[Exception]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(error):
            kind(*arguments)


def test_a_misspelt_option_is_named() -> None:
    with Client(["127.0.0.1:1"]) as client:
        with pytest.raises(TypeError, match="did you mean 'group_by'"):
            client.usage("acme", "api_calls", groupby=["region"])
        with pytest.raises(TypeError, match="is a list of keys"):
            client.usage("acme", "api_calls", group_by="region")
        with pytest.raises(ValueError, match="neither sync nor async"):
            client.ingest(made(1), durability="fast")
        with pytest.raises(TypeError, match="is no Event"):
            client.ingest([{"account": "acme"}])


@pytest.fixture
def client_of() -> Iterator[Callable[[FakeNode, float], Client]]:
    clients: list[Client] = []

    def make(node: FakeNode, timeout: float = 5.0) -> Client:
        clients.append(Client([node.address], timeout))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_a_producer_sends_everything_in_batches(client_of: Any) -> None:
    with FakeNode(["lose", "overloaded", "twice"]) as node:
        with client_of(node).producer(max_batch=50, linger=0.001) as producer:
            for event in made(1_000):
                producer.send(event)
            assert producer.flush().received == 1_000
            producer.send(Event("acme", "api_calls"))
        assert len(node.model.events) == 1_001
    counters = producer.counters
    assert counters.stored + counters.duplicate == counters.received == 1_001
    assert counters.batches >= 20


def test_a_producer_blocks_while_its_queue_is_full(client_of: Any) -> None:
    """Nothing is answered until the application is seen waiting."""
    answer = threading.Event()

    def ingest(events: Sequence[Event]) -> IngestResult:
        assert answer.wait(10.0)
        return IngestResult(received=len(events), stored=len(events))

    from meterd.client.outbox import SENDERS_COUNT
    from meterd.client.producer import Producer

    with Producer(ingest, 1, 0.0, 2, None) as producer:
        sent_count = 0

        def send() -> None:
            nonlocal sent_count
            for event in made(20):
                producer.send(event)
                sent_count += 1

        sender = threading.Thread(target=send)
        sender.start()
        sender.join(0.1)
        assert sender.is_alive() and sent_count <= 2 + SENDERS_COUNT
        answer.set()
        sender.join()
        assert producer.flush().stored == 20


def test_a_producer_tells_what_was_not_stored(client_of: Any) -> None:
    told: list[tuple[Event, Item]] = []
    bad = Event("acme", "unknown")
    with FakeNode() as node:
        producer = client_of(node).producer(on_item=lambda event, item: told.append((event, item)))
        with producer:
            for event in [*made(3), bad]:
                producer.send(event)
    assert told == [(bad, Item(3, "rejected", "unknown_metric"))]
    assert producer.counters.rejected == 1


def test_a_producer_raises_what_failed_once_and_goes_on(client_of: Any) -> None:
    with FakeNode(["ignore"] * 100) as node, client_of(node, 0.2).producer() as producer:
        events = made(3)
        for event in events:
            producer.send(event)
        with pytest.raises(ProducerFailed) as caught:
            producer.flush()
        assert caught.value.undecided == events and producer.counters.unknown == 3
        node.script.clear()
        for event in caught.value.undecided:
            producer.send(event)
        assert producer.flush().stored == 3


def test_a_producers_broken_callback_is_raised(client_of: Any) -> None:
    def broken(event: Event, item: Item) -> None:
        raise KeyError(event.id)

    with FakeNode() as node:
        producer = client_of(node).producer(on_item=broken)
        producer.send(Event("acme", "unknown"))
        with pytest.raises(ProducerFailed):
            producer.close()
        with pytest.raises(RuntimeError, match="closed"):
            producer.send(Event("acme", "api_calls"))


def refuse(events: Sequence[Event]) -> IngestResult:
    items = [Item(row, "rejected", "") for row in range(len(events))]
    return IngestResult(received=len(events), rejected=len(events), items=items)


def flushed(producer: Any) -> BaseException | None:
    """Flush in a thread that the test does not wait for; give the cause of what it raises."""
    causes: list[BaseException | None] = []

    def flush() -> None:
        try:
            producer.flush()
        except ProducerFailed as error:
            causes.append(error.__cause__)

    flusher = threading.Thread(target=flush, daemon=True)
    flusher.start()
    flusher.join(10.0)
    assert not flusher.is_alive()
    return causes[0] if causes else None


def test_a_producer_whose_callback_exits_goes_on() -> None:
    from meterd.client.producer import Producer

    producer = Producer(refuse, 1, 0.0, 10, lambda event, item: sys.exit(1))
    for event in made(5):
        producer.send(event)
    assert isinstance(flushed(producer), SystemExit)
    assert producer.counters.rejected == 5
    assert producer.close().rejected == 5


@pytest.mark.parametrize("call", ["flush", "close"])
def test_a_callback_cannot_wait_for_itself(call: str) -> None:
    from meterd.client.producer import Producer

    producer = Producer(refuse, 1, 0.0, 10, lambda event, item: getattr(producer, call)())
    producer.send(made(1)[0])
    cause = flushed(producer)
    assert isinstance(cause, RuntimeError) and "on_item can neither" in str(cause)
    assert producer.close().rejected == 1


def test_callbacks_send_again_until_nobody_is_left_to_send() -> None:
    """Both threads have a bad event, and a full queue before them: one waits, one is told."""
    from meterd.client.outbox import SENDERS_COUNT
    from meterd.client.producer import Producer

    all_busy = threading.Barrier(SENDERS_COUNT + 1)
    full = threading.Event()

    def again(event: Event, item: Item) -> None:
        if event.id.startswith("first"):
            all_busy.wait(10.0)
            assert full.wait(10.0)
            producer.send(Event("acme", "api_calls"))

    producer = Producer(refuse, 1, 0.0, 1, again)
    for event in made(SENDERS_COUNT, "first"):
        producer.send(event)
    all_busy.wait(10.0)
    producer.send(made(1)[0])
    full.set()
    cause = flushed(producer)
    assert isinstance(cause, RuntimeError) and "all who could send" in str(cause)
    assert producer.close().rejected == 2 * SENDERS_COUNT


def test_a_flush_does_not_wait_for_what_is_sent_behind_it() -> None:
    from meterd.client.producer import Producer

    flushed = threading.Event()

    def ingest(events: Sequence[Event]) -> IngestResult:
        for one in events:  # there is always one more
            if not flushed.is_set():
                producer.send(one)
        return IngestResult(received=len(events), stored=len(events))

    with Producer(ingest, 5, 0.0, 100, None) as producer:
        for event in made(7):
            producer.send(event)

        def flush() -> None:
            producer.flush()
            flushed.set()

        flusher = threading.Thread(target=flush, daemon=True)
        flusher.start()
        flusher.join(10.0)
        ended = flushed.is_set()
        flushed.set()
    assert ended and producer.counters.received >= 7


def test_a_producer_does_not_survive_a_fork(client_of: Any) -> None:
    """A child has none of its threads: it would take events and send nothing."""
    with FakeNode() as node, client_of(node).producer() as producer:
        producer.send(Event("acme", "api_calls"))
        producer._owner_pid = os.getppid()  # what a child would see
        for refused in (lambda: producer.send(Event("acme", "api_calls")), producer.flush):
            with pytest.raises(RuntimeError, match="make one after the fork"):
                refused()
        producer.close()  # is the parent's to do
        producer._owner_pid = os.getpid()
        assert producer.flush().stored == 1


@pytest.mark.parametrize("count", [1, 4])
def test_who_still_waits_hears_that_the_client_was_closed(count: int) -> None:
    """Its sockets are another thread's while that one polls: it closes them."""
    errors: list[BaseException] = []
    with FakeNode(["ignore"] * 1_000) as node:
        client = Client([node.address], 20.0)

        def ask() -> None:
            try:
                client.ingest(made(1))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        while len(client._session._active) < count:
            time.sleep(0.001)
        client.close()
        for thread in threads:
            thread.join(10.0)
    assert [str(error) for error in errors] == ["this client was closed"] * count
    assert {type(error) for error in errors} == {RuntimeError}


INTERRUPTED = """
import os, signal, sys, threading
from meterd.client import Client, Event

def interrupted(function):
    def call(*given):
        os.kill(os.getpid(), signal.SIGUSR1)
        return function(*given)
    return call

def ask():
    try:
        client.ingest([Event("acme", "api_calls")])
    except RuntimeError as error:
        os.write(1, f"{error}\\n".encode())  # in one piece: threads end at the same time

client = Client([sys.argv[1]], 20.0)
signal.signal(signal.SIGUSR1, lambda *_: client.close())
others = [threading.Thread(target=ask) for _ in range(int(sys.argv[2]))]
for other in others:
    other.start()
while len(client._session._active) < len(others):
    pass
if others:
    threading.Event.wait = interrupted(threading.Event.wait)
else:
    client._session.start = interrupted(client._session.start)
ask()
for other in others:
    other.join()
assert client._driver._released.is_set()
"""


@pytest.mark.parametrize("others_count", [0, 2])
def test_a_signal_closes_the_client_of_the_call_that_it_interrupts(others_count: int) -> None:
    """That call holds the lock, or waits for the thread that drives: who closes waits for none."""
    with FakeNode(["ignore"] * 1_000) as node:
        command = [sys.executable, "-c", INTERRUPTED, node.address, str(others_count)]
        root = Path(__file__).parent.parent.parent
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    assert done.stdout == b"this client was closed\n" * (others_count + 1)


def test_a_client_that_was_forgotten_does_not_hang_its_program() -> None:
    program = (
        "import sys; from meterd.client import Client, Event\n"
        "for _ in range(5):\n"
        "    client = Client([sys.argv[1]], 5.0)\n"
        "    assert client.ingest([Event('acme', 'api_calls')]).stored == 1\n"
        "    del client; import gc; gc.collect()\n"
    )
    with FakeNode() as node:
        command = [sys.executable, "-c", program, node.address]
        root = Path(__file__).parent.parent.parent
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
