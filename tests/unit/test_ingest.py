"""The ingest actor without its sockets: what it sends on, and when it must not judge yet."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from meterd.actors.actor import Lifeline
from meterd.actors.frames.bundle import bundle
from meterd.actors.ingest import Ingest
from meterd.actors.options import Options
from meterd.actors.requests import under_way
from meterd.actors.requests.outcomes import parse_origin
from meterd.actors.requests.under_way import GATHERINGS_MAX, SMALL_EVENTS
from meterd.actors.starting import identity
from meterd.core.questions.zones import UTC
from meterd.core.state.registry import Registry
from meterd.protocol.envelope import RequestHeader, encode_request
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.metric import MetricDefinition
from tests.support.segments import registry_of


class Recorded(Ingest):
    """Keeps what it would send."""

    def send(self, actor: str, frames: list[bytes]) -> None:
        self.__dict__.setdefault("sent", []).append((actor, frames[0]))
        self.last = frames

    def taken(self) -> list[Any]:
        """Return to whom which kinds of messages were sent since the last call."""
        return self.__dict__.pop("sent", [])


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Recorded]:
    yield from opened(tmp_path)


@pytest.fixture
def of_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """The ingest actor of a node that leads everything in a cluster of three."""
    monkeypatch.setattr(under_way, "SECONDS_MAX", 3600.0)
    monkeypatch.setattr(under_way, "SMALL_SECONDS_MAX", 3600.0)
    peers = "7:127.0.0.1:8107,8:127.0.0.1:8108,9:127.0.0.1:8109"
    for actor in opened(tmp_path, peers=peers):
        leaders = np.full(GROUP_COUNT, 7, np.uint8).tobytes()
        actor.handle([b"leaders", (1).to_bytes(8, "little"), leaders])
        actor.handle([b"registry", registry_of(1).to_bytes(), *bundle([])])
        actor.taken()
        yield actor


def opened(directory: Path, **node: Any) -> Iterator[Recorded]:
    identity.write(str(directory), identity.new_cluster(7))
    reading, writing = os.pipe()
    options = Options.from_mapping({"node": {"data_dir": str(directory), "id": 7} | node})
    actor = Recorded(options, str(directory), Lifeline(writing))
    actor.open()
    yield actor
    os.close(reading)
    os.close(writing)


def request(kind: str, body: dict[str, Any]) -> list[bytes]:
    header = RequestHeader(id=1, kind=kind)
    return [b"requests", *bundle([b"ticket", *encode_request(header, msgpack.packb(body))])]


EVENT = {"account": "acme", "metric": "calls", "timestamp": 1, "id": "one"}


def test_it_judges_nothing_before_it_has_the_registry(ingest: Recorded) -> None:
    """After a restart requests wait already; `unknown_metric` would make a client give up.

    A metric would be worse off: replication, which has no log yet, takes no proposal.
    """
    ingest.handle(request("ingest", {"events": [EVENT]}))
    ingest.handle(request("metric_put", {"code": "calls", "aggregation": "count"}))
    ingest.flush()
    assert ingest.taken() == []


def test_it_says_hello_once_it_can_serve(ingest: Recorded) -> None:
    """At the hello the router tells all clients of the chain to send again."""
    ingest.handle([b"registry", Registry().to_bytes(), *bundle([])])
    assert ingest.taken() == [("router", b"hello")]
    ingest.handle([b"hello", b"router"])  # the router has started again
    assert ingest.taken() == [("router", b"hello")]
    ingest.handle(request("metric_put", {"code": "calls", "aggregation": "count"}))
    assert ingest.taken() == [("replication", b"propose")]
    ingest.handle(request("ingest", {"events": [EVENT]}))
    ingest.flush()
    assert ingest.taken() == [("replication", b"judge")]  # behind the records before it


def test_an_event_without_a_good_account_or_id_is_kept_for_people_too(ingest: Recorded) -> None:
    ingest.handle([b"registry", registry_of(1).to_bytes(), *bundle([])])
    ingest.taken()
    code = next(iter(ingest._registry.entries)).code
    event = EVENT | {"metric": code, "value": "1.5"}
    events = [event | {"account": "a" * 200}, event | {"id": ""}, event]
    ingest.handle(request("ingest", {"events": events}))
    assert ingest.taken() == [("retention_sweeper", b"refused_events")]
    kept = msgpack.unpackb(ingest.last[1])
    assert [(one["reason"], one["account"], one["id"]) for one in kept] == [
        ("bad_account", "a" * 128, "one"),
        ("bad_id", "acme", ""),
    ]
    assert {(one["metric"], one["value"], one["exponent"]) for one in kept} == {(code, 15, 1)}


def send_one(actor: Recorded, number: int, count: int = 1) -> list[Any]:
    """Have a turn with one request, of one event; return what it led to."""
    code = next(iter(actor._registry.entries)).code
    event = {"account": "acme", "metric": code, "timestamp": 1, "value": 1}
    events = [event | {"id": f"event {number}, {k}"} for k in range(count)]
    actor.handle(request("ingest", {"events": events}))
    actor.flush()
    return actor.taken()


def decide(actor: Recorded, count: int) -> list[Any]:
    """Have so many gatherings decided; return what that led to."""
    actor.handle([b"decided", count.to_bytes(4, "little")])
    actor.flush()
    return actor.taken()


def test_it_gathers_further_while_enough_is_under_way_to_other_nodes(of_three: Recorded) -> None:
    proposed = [("replication", b"propose")]
    for number in range(GATHERINGS_MAX):
        assert send_one(of_three, number, SMALL_EVENTS) == proposed
    assert send_one(of_three, 10, SMALL_EVENTS) == []
    assert decide(of_three, 1) == proposed


def test_what_is_small_is_gathered_while_anything_is_under_way(of_three: Recorded) -> None:
    proposed = [("replication", b"propose")]
    assert send_one(of_three, 1) == proposed  # alone it goes at once
    assert [send_one(of_three, number) for number in (10, 11, 12)] == [[], [], []]
    assert decide(of_three, 1) == proposed  # all three as one
    assert send_one(of_three, 20) == []
    assert send_one(of_three, 21, SMALL_EVENTS) == proposed  # with the one that waited


def test_it_goes_on_when_nobody_decides(
    of_three: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(GATHERINGS_MAX + 1):
        send_one(of_three, number)
    of_three.tick(time.monotonic())
    assert of_three.taken() == []
    monkeypatch.setattr(under_way, "SECONDS_MAX", 0.0)
    of_three.tick(time.monotonic())
    assert of_three.taken() == [("replication", b"propose")]


def test_it_keeps_nothing_back_when_it_ends(of_three: Recorded) -> None:
    for number in range(GATHERINGS_MAX + 1):
        send_one(of_three, number)
    assert of_three.drained()
    assert of_three.taken() == [("replication", b"propose")]


def newer_registry() -> Registry:
    """Metric m1 with two decimals from its second moment on."""
    registry = registry_of(1)
    definition = registry.entries[0].definition.to_map() | {"decimals": 2}
    registry.put(MetricDefinition.from_map(definition), UTC, True, 2)
    return registry


def test_a_newer_registry_may_take_a_value_that_has_too_many_decimals(of_three: Recorded) -> None:
    """Another node may have answered `metric_put` a moment ago; `bad_value` would be final."""
    event = {"account": "acme", "metric": "m1", "timestamp": 5, "value": "1.5", "id": "one"}
    of_three.handle(request("ingest", {"events": [event | {"value": "1", "id": "whole"}, event]}))
    of_three.flush()
    assert of_three.taken() == [("usage", b"fresh_registry")]
    of_three.handle([b"fresh_registry", newer_registry().to_bytes(), *bundle([])])
    of_three.flush()
    assert of_three.taken() == [("replication", b"propose")]
    assert parse_origin(of_three.last[3]).refusals is None


def test_what_no_registry_takes_is_refused_after_one_question(of_three: Recorded) -> None:
    event = {"account": "acme", "metric": "m1", "timestamp": 5, "value": "1.555", "id": "one"}
    of_three.handle(request("ingest", {"events": [event]}))
    assert of_three.taken() == [("usage", b"fresh_registry")]
    of_three.handle([b"fresh_registry", newer_registry().to_bytes(), *bundle([])])
    of_three.flush()
    assert of_three.taken() == [("replication", b"judge")]
    of_three.handle(request("ingest", {"events": [event | {"value": "many"}]}))  # never a number
    assert decide(of_three, 1) == [("replication", b"judge")]


def test_a_request_that_begins_a_record_is_waited_for_as_long_as_any(of_three: Recorded) -> None:
    """One that did not fit beside what was staged: its client's patience went with that."""
    others = np.full(GROUP_COUNT, 7, np.uint8)
    others[:5] = 8
    of_three.handle([b"leaders", (2).to_bytes(8, "little"), others.tobytes()])

    def large(rows: int) -> dict[str, Any]:
        ends = np.arange(rows + 1, dtype=np.uint32)
        texts = [{"key": f"k{k}", "values": ["x" * 255]} for k in range(9)]
        index = np.zeros(rows, np.uint32).tobytes()
        return {
            "n": rows,
            "timestamp": np.ones(rows, np.int64).tobytes(),
            "metric": {"values": ["m1"]},
            "account": {"values": ["acme"], "index": index},
            "id": {
                "offsets": (8 * ends).tobytes(),
                "text": b"".join(b"%08d" % row for row in range(rows)),
            },
            "properties": [text | {"index": index} for text in texts],
        }

    for rows in (10, 1_000, 10_000):
        of_three.handle(request("ingest", large(rows)))
        of_three._under_way._since.clear()
    of_three.flush()
    origin = parse_origin(of_three.last[3])
    assert [asked[2] for asked in origin.requests] == [10_000]
    assert origin.wait is not None and origin.wait.due > time.monotonic() + 1
