"""Asking for a checkpoint: what was acknowledged before the request is in the one that answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meterd.actors.frames.bundle import unbundle
from meterd.actors.keeping.checkpoint_requests import CheckpointRequests
from meterd.actors.keeping.checkpoints import CURRENT
from meterd.actors.measuring.telemetry import Telemetry
from meterd.actors.options import Options
from meterd.actors.requests.answering import Answers
from meterd.protocol.body import unpack_answer
from meterd.protocol.envelope import decode_answer


class Saver:
    """Saves as the usage actor does, in as many turns as the test wants."""

    def __init__(self, directory: Path) -> None:
        self.options = Options.from_mapping({"node": {"data_dir": str(directory)}})
        self.telemetry = Telemetry("usage")
        self.saving, self.saved_at = False, 0.0
        self.applied = self.saved = self._copied = 0
        self.answered: list[tuple[int, Any]] = []
        self.answers = Answers(SimpleNamespace(send=self._send))  # type: ignore[arg-type]
        self.requests = CheckpointRequests(self)  # type: ignore[arg-type]
        self._path = directory / CURRENT

    def save(self) -> None:
        assert not self.saving
        self.saving, self._copied = True, self.applied
        self.requests.begun()

    def end(self) -> None:
        """The save is durable."""
        self._path.write_bytes(b"checkpoint")
        self.saving, self.saved, self.saved_at = False, self._copied, 5.0

    @property
    def may_save(self) -> bool:
        return not self.saving

    def checkpoint_facts(self) -> dict[str, int]:
        return {"events": self.saved}

    def _send(self, to: str, frames: list[Any]) -> None:
        assert to == "router"
        for _, *answer in unbundle(frames[1:]):
            header, body = decode_answer(answer)
            self.answered.append((header.id, unpack_answer(body)))

    def took(self) -> list[tuple[int, int]]:
        """(request, events in the checkpoint that answers it) since the last call."""
        found = [(number or 0, body["events"]) for number, body in self.answered]
        self.answered = []
        return found


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    return Saver(tmp_path)


def test_the_answer_comes_when_it_is_durable(saver):
    saver.applied = 3
    saver.requests.ask(b"a", 1)
    saver.requests.turn()
    assert saver.saving and saver.took() == []
    saver.end()
    saver.requests.turn()
    ((number, body),) = saver.answered
    assert (number, body["events"], body["bytes"]) == (1, 3, len(b"checkpoint"))
    assert body["saved_at"] == 5_000_000_000 and body["seconds"] >= 0
    saver.requests.turn()
    assert not saver.saving and not saver.requests.busy


def test_one_that_is_under_way_is_not_the_one_that_is_asked_for(saver):
    saver.save()
    saver.applied = 7
    saver.requests.ask(b"a", 1)
    saver.requests.ask(b"b", 2)
    saver.end()
    saver.requests.turn()
    assert saver.saving and saver.took() == []
    saver.applied = 9
    saver.requests.ask(b"c", 3)
    saver.end()
    saver.requests.turn()
    assert saver.took() == [(1, 7), (2, 7)]
    saver.end()
    saver.requests.turn()
    assert saver.took() == [(3, 9)]
    assert not saver.saving


def test_who_is_the_node_itself_gets_no_answer(saver):
    saver.requests.ask()
    saver.end()
    saver.requests.turn()
    assert saver.took() == [] and not saver.requests.busy


def test_a_save_that_nobody_asked_for_is_measured_too(saver):
    saver.save()
    saver.end()
    saver.requests.turn()
    snapshot = saver.telemetry.snapshot()
    assert snapshot["gauges"]["checkpoint_bytes"] == len(b"checkpoint")
    assert "checkpoint_duration_seconds" in snapshot["histograms"]


def test_a_disk_without_room_is_said_to_those_who_wait_for_that_save(saver):
    saver.requests.ask(b"a", 1)
    saver.applied = 4
    saver.saving = False
    saver.requests.failed()
    ((number, body),) = saver.answered
    assert (number, body["code"]) == (1, "disk_stop")
    saver.answered = []
    assert not saver.requests.busy
    saver.requests.ask(b"b", 2)
    saver.end()
    saver.requests.turn()
    assert saver.took() == [(2, 4)]


def test_one_that_came_to_nothing_is_followed_by_another(saver):
    saver.requests.ask(b"a", 1)
    saver.applied = 4
    saver.saving = False
    saver.requests.spoiled()
    saver.requests.turn()
    assert saver.saving and saver.took() == []
    saver.end()
    saver.requests.turn()
    assert saver.took() == [(1, 4)]
