"""Pins: leases on log files that survive a restart and end by themselves."""

from __future__ import annotations

import pytest

from meterd.actors.housekeeping import pins as module
from meterd.actors.housekeeping.pins import FILE_NAME, Pin, Pins
from meterd.actors.housekeeping.service import NEVER
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.protocol.errors import Busy, DiskFull
from tests.support.recording import recorded


@pytest.fixture
def sweeper(tmp_path):
    made = recorded(RetentionSweeper, tmp_path)
    yield made
    made.close()


class Clock:
    now = 100

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_pin_holds_until_it_is_given_back_or_ends(sweeper, clock):
    pins = Pins(sweeper, clock)
    assert (pins.active, pins.due) == ([], NEVER)
    pins.pin("b", 7, 200)
    pins.pin("a", 3, 150)
    assert pins.active == [Pin("a", 3, 150), Pin("b", 7, 200)]
    assert pins.unpin("a") == Pin("a", 3, 150)
    assert pins.unpin("a") is None
    clock.now = 200
    assert pins.active == []


def test_a_pin_survives_a_restart(sweeper, clock):
    Pins(sweeper, clock).pin("a", 3, 150)
    Pins(sweeper, clock).pin("b", 4, 150)
    assert [pin.name for pin in Pins(sweeper, clock).active] == ["a", "b"]
    clock.now = 150
    again = Pins(sweeper, clock)
    assert again.active == []
    again.turn(0.0)
    clock.now = 100
    assert Pins(sweeper, clock).active == []


def test_a_lease_is_renewed_under_its_name(sweeper, clock):
    pins = Pins(sweeper, clock)
    pins.pin("a", 3, 150)
    pins.pin("a", 5, 300)
    assert pins.active == [Pin("a", 5, 300)]


def test_pins_are_bounded(sweeper, clock, monkeypatch):
    monkeypatch.setattr(module, "PINS_MAX", 2)
    pins = Pins(sweeper, clock)
    pins.pin("a", 1, 150)
    pins.pin("b", 1, 150)
    with pytest.raises(Busy):
        pins.pin("c", 1, 150)
    pins.pin("b", 2, 150)


def test_a_pin_that_is_not_durable_is_none(sweeper, clock, monkeypatch):
    pins = Pins(sweeper, clock)

    def full(*_):
        raise DiskFull("no space left")

    monkeypatch.setattr(module, "atomic_write", full)
    with pytest.raises(DiskFull):
        pins.pin("a", 1, 150)
    assert pins.active == []


def test_what_has_ended_is_forgotten_also_on_a_full_disk(sweeper, clock, monkeypatch):
    pins = Pins(sweeper, clock)
    pins.pin("a", 1, 150)

    def full(*_):
        raise DiskFull("no space left")

    monkeypatch.setattr(module, "atomic_write", full)
    clock.now = 150
    pins.turn(0.0)
    assert pins.active == []


def test_a_damaged_file_pins_nothing_and_stops_nobody(sweeper, clock, tmp_path, caplog):
    (tmp_path / FILE_NAME).write_bytes(b"no pins")
    assert Pins(sweeper, clock).active == []
    assert "damaged" in caplog.text
