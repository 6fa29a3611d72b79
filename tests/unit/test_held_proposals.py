"""What waits to be ordered keeps its order, and is bounded in number and size."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from meterd.actors.frames.bundle import bundle, unbundle
from meterd.actors.replicating import held_proposals
from meterd.actors.replicating.held_proposals import HeldProposals
from meterd.actors.replication import Replication
from meterd.actors.requests.answering import answer_frames
from meterd.core.raft.events import OVERLOADED
from meterd.protocol.body import unpack_answer
from meterd.protocol.envelope import decode_answer
from meterd.protocol.errors import exception_of


def test_what_waits_comes_out_in_its_order() -> None:
    held = HeldProposals()
    for number in range(3):
        assert held.add([b"propose" if number else b"judge", bytes([number])])
    assert (len(held), held.first_kind) == (3, b"judge")
    assert [held.pop()[1] for _ in range(3)] == [b"\0", b"\1", b"\2"]
    assert not len(held)


@pytest.mark.parametrize(("name", "limit"), [("HELD_MAX", 2), ("HELD_SIZE_MAX", 20)])
def test_there_is_room_again_when_some_has_gone(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_proposals, name, limit)
    held = HeldProposals()
    assert held.add([b"propose", b"123"]) and held.add([b"propose", b"1234567890"])
    assert not held.add([b"propose", b""])
    assert len(held) == 2
    held.pop()
    held.pop()
    assert held.add([b"propose", b""])


def replication(monkeypatch: pytest.MonkeyPatch, **replicas: Any) -> Any:
    """An actor that serves, whose engine is a table of answers; `sent` is what it says."""
    made: Any = object.__new__(Replication)
    made._serving, made._held, made._peers = True, HeldProposals(), None
    made._catching_up = made._heard = None
    made._commits, made._blocks, made._records = False, [], []
    made._replicas = SimpleNamespace(deadline=math.inf, node=None, **replicas)
    made._requests = SimpleNamespace(turn=lambda *_: None)
    made._handing_over = SimpleNamespace(leaving=lambda now: False)
    made.sent, made.leaving = [], False
    monkeypatch.setattr(Replication, "send", lambda self, *said: self.sent.append(said))
    monkeypatch.setattr(Replication, "_tell_leaders", lambda _: None)
    monkeypatch.setattr(Replication, "_carry_out", lambda *_: None)
    return made


def test_what_is_held_is_looked_at_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was under way may be given up without a message, and nothing else would come."""
    actor = replication(monkeypatch)
    actor._held.add([b"judge", b"origin"])
    actor.tick(0.0)
    assert actor.sent == [("usage", [b"judge", b"origin"])]


def test_async_events_of_which_nothing_is_taken_are_declined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = SimpleNamespace(reason=OVERLOADED, leader=0)
    step = SimpleNamespace(appends=[], refused=[refused])
    actor = replication(monkeypatch, propose=lambda *_: step)
    meta = {"kind": 1, "slices": b"", "row_count": 1, "heap_size": 0, "registry_version": 1}
    accepted = bundle([b"rid", *answer_frames(7, "ingest", b"")])
    actor._on_propose([b"propose", msgpack.packb(meta), b"", b"origin", *accepted])
    ((_, (kind, *answers)),) = [one for one in actor.sent if one[0] == "router"]
    ((rid, *answer),) = unbundle(answers)
    header, body = decode_answer(answer)
    assert (kind, rid, header.id) == (b"answers", b"rid", 7)
    assert exception_of(unpack_answer(body)).code == "overloaded"
