"""What is read for who is behind gives way to clients, unless they wait for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from meterd.actors import replication
from meterd.actors.replication import CATCH_UP_REST_SECONDS, CATCH_UP_SHARE, Replication

DESCRIPTOR = 7
SENDING_SECONDS = 0.02


class Clock:
    """A clock that moves on while something is sent."""

    def __init__(self) -> None:
        self.now = 500.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(replication.time, "monotonic", clock.monotonic)
    return clock


class Paced(Replication):
    """An actor of which only the pace is real."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, clock: Clock, there: list[bool], congested: bool
    ) -> None:
        self.clock = clock
        self.sent = 0
        self.watched = True
        self.ticked_by: list[float] = []
        self._proposed_at, self._read_due = clock.now - 0.1, replication.NEVER
        self._caught_up_at = clock.now
        self._catching_up: Any = SimpleNamespace(descriptor=DESCRIPTOR)
        self._peers: Any = SimpleNamespace(congested=lambda count: congested)
        monkeypatch.setattr(Replication, "replicas", SimpleNamespace(node=None))
        monkeypatch.setattr(replication, "there", lambda node, now: there)

    def _send_what_was_read(self, catching_up: Any) -> None:
        self.sent += 1
        self.clock.now += SENDING_SECONDS

    def unwatch(self, descriptor: int) -> None:
        assert descriptor == DESCRIPTOR
        self.watched = False

    def tick_by(self, moment: float) -> None:
        self.ticked_by.append(moment)


def test_it_takes_its_share_and_rests(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    actor = Paced(monkeypatch, clock, [True, True], congested=False)
    began = clock.now
    actor._on_read()
    assert (actor.sent, actor.watched) == (1, False)
    assert actor.ticked_by == [actor._read_due]
    assert SENDING_SECONDS / (actor._read_due - began) == pytest.approx(CATCH_UP_SHARE)


def test_it_leaves_room_on_the_way(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    actor = Paced(monkeypatch, clock, [True, True], congested=True)
    actor._on_read()
    assert (actor.sent, actor.watched) == (0, False)
    assert actor._read_due == clock.now + CATCH_UP_REST_SECONDS


def test_it_does_not_wait_for_room_for_ever(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    actor = Paced(monkeypatch, clock, [True, True], congested=True)
    for _ in range(100):
        clock.now += CATCH_UP_REST_SECONDS
        actor._on_read()
    assert actor.sent == pytest.approx(0.5 / replication.CATCH_UP_WAIT_SECONDS, abs=1)


@pytest.mark.parametrize(("there", "idle"), [([True, False], False), ([True, True], True)])
def test_it_does_not_rest_when_nobody_writes_or_a_majority_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, there: list[bool], idle: bool
) -> None:
    actor = Paced(monkeypatch, clock, there, congested=True)
    if idle:
        actor._proposed_at = clock.now - replication.BUSY_SECONDS
    actor._on_read()
    assert (actor.sent, actor.watched) == (1, True)
    assert actor._read_due == replication.NEVER
