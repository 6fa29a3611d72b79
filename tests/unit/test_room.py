"""Who refuses events says so again to whoever has started anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from meterd.actors.housekeeping.log_holding import LogHolding
from meterd.actors.keeping.room import FILL_MAX, Room
from meterd.actors.replication import Replication
from meterd.protocol.errors import CODES


class Usage:
    name = "usage"

    def __init__(self) -> None:
        self.codes: list[Any] = []
        self.telemetry = SimpleNamespace(set=lambda *_: None)

    def send(self, actor: str, frames: list[bytes]) -> None:
        if actor == "router":
            self.codes.append(msgpack.unpackb(frames[1])["code"])


def test_a_router_that_starts_anew_hears_that_tables_are_full() -> None:
    usage = Usage()
    room = Room(usage)  # type: ignore[arg-type]
    for fill in (0.5, 0.5, FILL_MAX + 0.01, FILL_MAX + 0.01):
        room.turn(fill, False)
    assert usage.codes == [None, "memory_full"]  # an earlier process may have said it was full
    room.forget_full()
    room.turn(FILL_MAX + 0.01, False)
    assert usage.codes[2:] == ["memory_full"]
    assert set(usage.codes) - {None} <= CODES.keys()


@pytest.mark.parametrize("peers", [(), ("2:127.0.0.1:8001",)])
def test_before_replication_has_spoken_every_file_may_be_needed(peers: tuple[str, ...]) -> None:
    node = SimpleNamespace(data_dir="", peers=peers)
    sweeper = SimpleNamespace(options=SimpleNamespace(node=node))
    holding = LogHolding(sweeper, SimpleNamespace())  # type: ignore[arg-type]
    assert holding.replicas_from == (0 if peers else None)


def test_the_engine_hears_once_that_the_log_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool] = []
    replication = object.__new__(Replication)
    replication._peers, replication._room = object(), True  # type: ignore[assignment]
    step = SimpleNamespace(step=lambda event, clock: said.append(event.room))
    monkeypatch.setattr(Replication, "replicas", step)
    monkeypatch.setattr(replication, "_carry_out", lambda _: None)
    for there in (b"1", b"0", b"0", b"1"):
        replication.handle([b"room", there])
    assert said == [False, True]
