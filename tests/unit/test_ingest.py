"""The ingest actor without its sockets: what it sends on, and when it must not judge yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from meterd.actors import identity
from meterd.actors.actor import Lifeline
from meterd.actors.bundle import bundle
from meterd.actors.ingest import Ingest
from meterd.actors.options import Options
from meterd.core.registry import Registry
from meterd.protocol.envelope import RequestHeader, encode_request


class Recorded(Ingest):
    """Keeps what it would send."""

    def send(self, actor: str, frames: list[bytes]) -> None:
        self.__dict__.setdefault("sent", []).append((actor, frames[0]))

    def taken(self) -> list[Any]:
        """Return to whom which kinds of messages were sent since the last call."""
        return self.__dict__.pop("sent", [])


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Recorded]:
    identity.claim(str(tmp_path), 7, "auto")
    reading, writing = os.pipe()
    options = Options.from_mapping({"node": {"data_dir": str(tmp_path), "id": 7}})
    actor = Recorded(options, str(tmp_path), Lifeline(writing))
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
