"""The loop of an actor: no message is left although its socket says once only that it has news."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from meterd.actors.actor import Actor, Lifeline
from meterd.actors.frames import sockets
from meterd.actors.options import Options
from tests.support.waiting import eventually

WAIT_MS = 50
MESSAGES = 7
OPENED: list[Any] = []  # the sockets of a test


class Looped(Actor):
    name = "looped"
    taken: list[list[bytes]]
    limit = 1_000  # messages of a turn

    def handle(self, frames: list[bytes]) -> None:
        self.taken.append(frames)

    def enough(self) -> bool:
        return len(self.taken) % self.limit == 0


@pytest.fixture
def actor(tmp_path: Path, lifeline: Lifeline) -> Iterator[Looped]:
    made = Looped(Options.from_mapping({}), str(tmp_path), lifeline)
    made.taken = []
    yield made
    while OPENED:
        OPENED.pop().close(linger=0)
    sockets.close()


def pair(kind: int, other: int) -> tuple[Any, Any]:
    """Two connected sockets of this process, the first one bound."""
    bound, connected = sockets.context().socket(kind), sockets.context().socket(other)
    port = bound.bind_to_random_port("tcp://127.0.0.1")
    connected.connect(f"tcp://127.0.0.1:{port}")
    OPENED.extend((bound, connected))
    return bound, connected


def arrived(socket: Any) -> None:
    """Wait until a message is there; the socket's news of it is taken note of, as by sending."""
    eventually(lambda: sockets.waits(socket), "a message comes", 20.0)


def test_every_message_is_taken_however_turns_end(actor: Looped) -> None:
    inbox, outbox = pair(zmq.PULL, zmq.PUSH)
    actor.listen(inbox, actor.handle)
    actor.limit = 2  # so the rest waits, and the socket has no more news of it
    for number in range(MESSAGES):
        outbox.send(b"%d" % number)
    eventually(lambda: actor.turn(WAIT_MS) and len(actor.taken) == MESSAGES, "all come", 20.0)
    assert actor.taken == [[b"%d" % number] for number in range(MESSAGES)]
    assert not actor.turn(0)


def test_what_comes_while_something_is_sent_on_the_same_socket_is_taken(actor: Looped) -> None:
    router, dealer = pair(zmq.ROUTER, zmq.DEALER)
    actor.listen(router, actor.handle)
    dealer.send(b"first")
    eventually(lambda: actor.turn(WAIT_MS), "the first comes", 20.0)
    dealer.send(b"second")
    arrived(router)
    assert actor.turn(0)
    assert [frames[1] for frames in actor.taken] == [b"first", b"second"]


def test_a_socket_that_is_not_served_any_more_is_left_alone(actor: Looped) -> None:
    first, to_first = pair(zmq.PULL, zmq.PUSH)
    second, to_second = pair(zmq.PULL, zmq.PUSH)
    actor.listen(first, lambda frames: actor.unlisten(second) or actor.handle(frames))
    actor.listen(second, actor.handle)
    to_first.send(b"first")
    to_second.send(b"second")
    arrived(first)
    arrived(second)
    assert actor.turn(0) and not actor.turn(0)
    assert actor.taken == [[b"first"]]


def test_descriptors_are_watched_beside_sockets(actor: Looped) -> None:
    reading, writing = os.pipe()
    actor.watch(reading, lambda: actor.taken.append([os.read(reading, 10)]))
    os.write(writing, b"x")
    assert not actor.turn(WAIT_MS)  # no message
    assert actor.taken == [[b"x"]]
    os.close(reading)
    os.close(writing)
