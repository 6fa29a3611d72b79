"""The wall clock that tests can set."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from meterd.actors.machine import wall_clock
from meterd.actors.machine.wall_clock import NS, ShiftedClock


def test_without_the_variable_nothing_is_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(wall_clock.wall_ns() - time.time_ns()) < 60 * NS
    monkeypatch.setattr("time.time_ns", lambda: 5)
    assert wall_clock.wall_ns() == 5
    assert wall_clock.running_ns() <= wall_clock.running_ns()


def test_a_file_sets_it_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wall_clock, "LOOK_SECONDS", 0.0)
    path = tmp_path / "clock"
    clock = ShiftedClock(path)
    for text, shift in (("", 0), ("1000", 1_000), ("nonsense", 1_000), ("-2000.5", -2_000.5)):
        path.write_text(text)
        assert abs(clock() - time.time_ns() - shift * NS) < 60 * NS
    path.unlink()
    assert clock() < time.time_ns() - 1_000 * NS
