"""An actor whose work takes long goes on telling the supervisor that it lives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from meterd.actors import actor
from meterd.actors.actor import BEAT_SECONDS, Actor
from meterd.actors.usage import Usage


def test_applying_a_great_deal_at_once_beats_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that catches up may be told at once that tens of thousands of records count."""
    now, said = 1_000.0, []
    monkeypatch.setattr(actor, "time", SimpleNamespace(monotonic=lambda: now))
    usage = object.__new__(Usage)
    usage.lifeline = SimpleNamespace(say=said.append)  # type: ignore[assignment]
    usage._work_beat_due = 0.0
    usage.serving = False
    usage.reads = SimpleNamespace(applied=lambda: None)  # type: ignore[assignment]
    usage._judging = SimpleNamespace(applied=lambda record: None)  # type: ignore[assignment]
    ready = [SimpleNamespace(done=False, record=None)] * 100
    usage.queue = SimpleNamespace(position=[1], ready=lambda: iter(ready))  # type: ignore[assignment]

    def apply(_: object) -> None:
        nonlocal now
        now += BEAT_SECONDS / 10

    monkeypatch.setattr(usage, "_apply", apply)
    usage.apply_ready()
    assert said == ["beat"] * 10


def test_what_works_all_the_time_reports_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else telemetry would stand still under load, and nobody see that the supervisor has died."""
    now, beats = 1_000.0, 0
    monkeypatch.setattr(actor, "time", SimpleNamespace(monotonic=lambda: now))
    worker = object.__new__(Actor)
    worker.lifeline = SimpleNamespace(say=lambda line: None)  # type: ignore[assignment]
    worker._work_beat_due = worker._tick_due = 0.0
    worker.stopping = False

    def turn(_: int) -> bool:
        nonlocal now
        for _part in range(32):
            now += BEAT_SECONDS / 32
            worker.beat()
        worker.stopping = now > 1_000 + 10 * BEAT_SECONDS
        return False

    def beat() -> None:
        nonlocal beats
        beats += 1

    monkeypatch.setattr(worker, "turn", turn)
    monkeypatch.setattr(worker, "_beat", beat)
    worker._serve()
    assert beats >= 10
