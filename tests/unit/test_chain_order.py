"""The chain of actors without its sockets: messages from different actors come in any order.

Between two actors they come in the order of sending, as ZeroMQ has it, and nothing else is sure.
"""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from meterd.actors.frames.bundle import bundle
from meterd.actors.ingest import Ingest
from meterd.actors.replication import Replication
from meterd.actors.usage import Usage
from meterd.actors.wal_writer import WalWriter
from tests.support.recording import answers, recorded, request

LIMITS = dict.fromkeys(("accounts", "series", "cells"), 10_000)
ACTORS = (WalWriter, Replication, Usage, Ingest)
NAMES = {kind.name for kind in ACTORS}
EVENTS = 60


class Chain:
    """The four actors, and the messages on their way: a queue for each pair of actors."""

    def __init__(self, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.early_commits = 0  # commits that came before their record
        sections: dict[str, Any] = {"limits": LIMITS, "wal": {"segment_size": 4 << 20}}
        self.ways: dict[tuple[str, str], deque[list[bytes]]] = {}
        self.actors: dict[str, Any] = {}
        for kind in ACTORS:
            self.actors[kind.name] = recorded(kind, path, **sections)
            self.collect(kind.name)

    def collect(self, name: str) -> None:
        """Put what an actor has sent to others of the chain on its way."""
        actor = self.actors[name]
        for to, frames in actor.sent:
            if to in NAMES:
                message = [bytes(frame) for frame in frames]
                self.ways.setdefault((name, to), deque()).append(message)
        actor.sent = [one for one in actor.sent if one[0] == "router"]

    def step(self) -> bool:
        """Let one actor take one turn: a few messages of any way to it; False: none waits."""
        waiting = [way for way, messages in self.ways.items() if messages]
        if not waiting:
            return False
        name = self.random.choice(waiting)[1]
        for _ in range(self.random.randint(1, 3)):
            ways = [way for way, messages in self.ways.items() if messages and way[1] == name]
            if ways:
                self.deliver(self.random.choice(ways))
        self.actors[name].flush()
        self.collect(name)
        return True

    def tell_durable(self) -> bool:
        """Let a moment pass, so that replication hears of what needs no commit."""
        self.actors["wal_writer"].tick(0.0)
        self.collect("wal_writer")
        return any(self.ways.values())

    def deliver(self, way: tuple[str, str]) -> None:
        frames = self.ways[way].popleft()
        if frames[0] == b"commit":
            records = self.ways.get(("replication", "usage"), ())
            self.early_commits += any(record[1] == frames[1][:8] for record in records)
        self.actors[way[1]].handle(frames)

    def send(self, kind: str, body: dict[str, Any]) -> None:
        """Send a request in, as the router does."""
        message = [b"requests", *bundle([b"ticket", *request(kind, body)])]
        self.ways.setdefault(("router", "ingest"), deque()).append(message)

    def settle(self) -> list[tuple[str, Any]]:
        """Go on until nothing is on its way; return the answers."""
        while self.step() or self.tell_durable():
            pass
        return [answer for name in ("ingest", "usage") for answer in answers(self.actors[name])]

    def close(self) -> None:
        for actor in self.actors.values():
            actor.close()


@pytest.mark.parametrize("seed", range(10))
def test_a_record_and_its_commit_may_come_to_usage_in_any_order(tmp_path: Path, seed: int) -> None:
    chain = Chain(tmp_path, seed)
    chain.settle()
    chain.send("metric_put", {"code": "calls", "aggregation": "sum"})
    assert [status for status, _ in chain.settle()] == ["ok"]
    usage = chain.actors["usage"]
    event = {"account": "acme", "metric": "calls", "timestamp": usage.state.leader_time, "value": 1}
    ids = [f"{chain.random.randrange(EVENTS // 2)}" for _ in range(EVENTS)]
    for number, name in enumerate(ids):
        chain.send("ingest", {"events": [event | {"id": name}]})
        if number % 4 == 0:
            for _ in range(chain.random.randint(0, 6)):
                chain.step()
    found = chain.settle()
    assert {status for status, _ in found} == {"ok"} and len(found) == EVENTS
    assert sum(body["stored"] for _, body in found) == len(set(ids)) == usage.state.stored
    assert sum(body["duplicate"] for _, body in found) == EVENTS - len(set(ids))
    assert all(actor.drained() for actor in chain.actors.values())
    assert chain.early_commits  # else this has shown nothing
    chain.close()
