"""Actors that keep files for others, on a real full disk: they serve on and write them later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from meterd.actors.keeping.checkpoints import CURRENT
from meterd.actors.keeping.registry_file import REGISTRY_FILE
from meterd.actors.log.replay import NOTHING
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.actors.router import MAP_FILE, Router
from meterd.actors.usage import Usage
from meterd.core.questions.zones import UTC
from meterd.protocol import checkpoint_format, log_format
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.metric import MetricDefinition
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory
from tests.support.ports import free_ports
from tests.support.recording import recorded
from tests.support.small_disk import MIB, SmallDisk
from tests.support.waiting import eventually

LIMITS = dict.fromkeys(("accounts", "series", "cells"), 10_000)


@pytest.fixture
def small() -> Iterator[SmallDisk]:
    with SmallDisk(8 * MIB) as made:
        made.data_dir.mkdir()
        yield made


@pytest.fixture
def usage(small: SmallDisk) -> Iterator[Any]:
    actor = recorded(Usage, small.data_dir, limits=LIMITS)
    actor.serving = True
    actor.sent = []
    yield actor
    small.free_up()
    actor.close()


def command(usage: Any) -> None:
    """Tell usage that a metric was registered by a client."""
    record = log_format.Record(*[0] * len(log_format.Record._fields))._replace(kind=log_format.META)
    usage._after_command(record, {"outcome": "created"}, msgpack.packb([[b"rid", 1, "metric_put"]]))


def test_metrics_can_be_registered_on_a_full_disk(small, usage, caplog):
    small.fill()
    command(usage)
    assert [to for to, _ in usage.take(b"registry")] == ["ingest"]
    usage.tick(1.0)
    assert not (small.data_dir / REGISTRY_FILE).exists()
    assert caplog.text.count("it is written later") == 1
    small.free_up()
    usage.tick(2.0)
    checkpoint_format.decode((small.data_dir / REGISTRY_FILE).read_bytes())


def test_a_registry_that_found_no_room_before_the_end_is_written_after_the_start(small, usage):
    definition = MetricDefinition.from_map({"code": "calls", "aggregation": "count"})
    usage.state.registry.put(definition, UTC, False, 1)
    path = small.data_dir / REGISTRY_FILE
    path.write_bytes(b"of an earlier version")
    usage.serving = False
    usage.handle([b"replay", msgpack.packb({"sequence": 0}), NOTHING])
    usage.handle([b"leaders", bytes(8), b"\1" * GROUP_COUNT])
    state = checkpoint_format.read_state(path.read_bytes())
    assert state["registry"] == usage.state.registry.to_bytes()


def told(usage: Any) -> list[bytes]:
    return [frames[2] for _, frames in usage.take(b"no_room")]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterd.actors.keeping.checkpoints.RETRY_SECONDS", 0.0)


def save(usage: Any) -> None:
    """Try to save, and take over what became of it."""
    usage.save()
    usage._checkpoints.step(wait=True)


def test_a_checkpoint_without_room_has_events_refused_until_it_is_saved(small, usage, at_once):
    """Although no event comes meanwhile: they are refused."""
    small.fill()
    save(usage)
    usage.tick(1.0)
    usage.tick(2.0)
    assert told(usage) == [b"1"]
    usage.handle([b"hello", b"retention_sweeper"])  # has started again
    usage.tick(3.0)
    assert told(usage) == [b"1"]
    small.free_up()

    def saved() -> bool:
        usage.tick(4.0)
        return (small.data_dir / CURRENT).exists() and not usage._checkpoints.waiting

    eventually(saved, "it is saved")
    usage.tick(5.0)
    assert told(usage) == [b"0"]


def test_no_checkpoint_is_begun_while_the_disk_is_all_but_full(usage):
    usage.handle([b"disk", b"hard"])
    usage._records_unsaved = 10**6
    usage.maybe_save()
    assert usage._records_unsaved
    usage.handle([b"disk", b"stop"])
    usage.maybe_save()
    assert usage._records_unsaved == 0
    usage._checkpoints.step(wait=True)


def test_a_node_stops_although_a_checkpoint_finds_no_room(small, usage, caplog):
    small.fill()
    usage._records_unsaved = 1
    Usage.close(usage)
    assert "no room for a checkpoint" in caplog.text
    assert not (small.data_dir / CURRENT).exists()
    usage._records_unsaved = 0


def test_the_log_is_replayed_on_a_full_disk(small, usage):
    """It writes nothing; what is due is saved when there is room."""
    log = LogDirectory(small.data_dir)
    log.write([LoggedEvent("acme", "1", 0, 1, time.time_ns())])
    small.fill()
    usage.state.registry.version = 1
    usage.serving = False
    usage.handle([b"replay", msgpack.packb({"sequence": 1}), NOTHING])
    usage.handle([b"leaders", bytes(8), b"\1" * GROUP_COUNT])
    every, index = np.arange(GROUP_COUNT, dtype=np.uint16), np.ones(GROUP_COUNT, np.uint64)
    usage.handle([b"committed", every.tobytes(), index.tobytes()])
    assert usage.serving
    assert usage.groups.sequence == 1


def test_the_router_opens_on_a_full_disk_and_writes_its_map_later(small, caplog):
    (port,) = free_ports(1)
    node = {"data_dir": str(small.data_dir), "port": port}
    (small.data_dir / "node.json").write_bytes(b"\0" * 4096)
    small.fill()
    router = recorded(Router, small.data_dir, node=node)
    assert not (small.data_dir / MAP_FILE).exists()
    router.tick(1.0)
    assert not (small.data_dir / MAP_FILE).exists()
    small.free_up()
    router.tick(3.0)
    before = (small.data_dir / MAP_FILE).stat().st_ino
    router._write_map()  # as at the next start: nothing has changed
    assert (small.data_dir / MAP_FILE).stat().st_ino == before
    assert caplog.text.count("it is written later") == 1
    router.close()


def test_who_looks_and_finds_the_disk_full_gives_the_ballast_back(small):
    """Also who looks out of turn: until the next turn there could be a second."""
    sizes = {"ballast": MIB // 2, "warn_free": 4 * MIB, "stop_free": 2 * MIB, "hard_free": MIB}
    sweeper = recorded(RetentionSweeper, small.data_dir, disk=sizes)
    try:
        ballast = small.data_dir / "ballast"
        sweeper._disk.turn(time.monotonic())
        assert ballast.stat().st_size == MIB // 2
        small.fill()
        sweeper._disk.handle([b"no_room", b"usage", b"1"])
        assert (sweeper._disk.standing.state, ballast.exists()) == ("hard", False)
    finally:
        small.free_up()
        sweeper.close()
