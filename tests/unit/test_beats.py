"""An actor whose work takes long goes on telling the supervisor that it lives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from meterd.actors import actor
from meterd.actors.actor import BEAT_SECONDS
from meterd.actors.usage import Usage


def test_applying_a_great_deal_at_once_beats_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that catches up may be told at once that tens of thousands of records count."""
    now, said = 1_000.0, []
    monkeypatch.setattr(actor, "time", SimpleNamespace(monotonic=lambda: now))
    usage = object.__new__(Usage)
    usage.lifeline = SimpleNamespace(say=said.append)  # type: ignore[assignment]
    usage._beat_due = 0.0
    usage.serving = False
    usage.reads = SimpleNamespace(applied=lambda: None)  # type: ignore[assignment]
    ready = [SimpleNamespace(done=False)] * 100
    usage.queue = SimpleNamespace(position=[1], ready=lambda: iter(ready))  # type: ignore[assignment]

    def apply(_: object) -> None:
        nonlocal now
        now += BEAT_SECONDS / 10

    monkeypatch.setattr(usage, "_apply", apply)
    usage.apply_ready()
    assert said == ["beat"] * 10
