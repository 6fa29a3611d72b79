"""Replaying the log into the usage actor, without its sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterd.actors.actor import Lifeline
from meterd.actors.log import opened_log
from meterd.actors.log.replay import NOTHING, LogReader, Position, Replay, replay
from meterd.actors.options import Options
from meterd.actors.starting import identity
from meterd.actors.usage import Usage
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory, SealsMeanwhile

BLOCKS = 6


class Recorded(Usage):
    """Notes how far it was whenever a checkpoint might have been saved."""

    def send(self, actor: str, frames: list[bytes]) -> None:
        raise AssertionError(f"nothing is to be told to {actor} in a replay")

    def maybe_save(self) -> None:
        applied = self.groups.sequence
        self.__dict__.setdefault("saved", []).append((applied, self.position.block_seq))


@pytest.fixture
def usage(tmp_path: Path, lifeline: Lifeline) -> Recorded:
    identity.write(str(tmp_path), identity.new_cluster(7))
    limits = dict.fromkeys(("accounts", "series", "cells"), 10_000)
    options = Options.from_mapping({"node": {"data_dir": str(tmp_path), "id": 7}, "limits": limits})
    actor = Recorded(options, str(tmp_path), lifeline)
    actor.open()
    # Records of the builder are made under version 1 of the registry.
    actor.state.registry.version = 1
    return actor


def test_a_checkpoint_saved_on_the_way_begins_after_what_it_holds(
    usage: Recorded, tmp_path: Path
) -> None:
    """Else the next start applies a block twice: it saw that, and never started again."""
    log = LogDirectory(tmp_path)
    last = []  # sequence of each block
    for number in range(BLOCKS):
        log.write([LoggedEvent("acme", f"{number}", 0, 1, 1)])
        last.append(log.builder.sequence - 1)
        if number % 2:
            log.seal(segmented=False)
    assert replay(usage, last[-1]) == BLOCKS
    # All of a block was applied, and the next is expected.
    assert usage.__dict__["saved"] == [(one, place + 2) for place, one in enumerate(last)]


def test_a_file_that_becomes_full_while_it_is_looked_for_is_found(
    usage: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The WAL-writer goes on as soon as it has checked its log: a node halted with `Corrupt`."""
    log = LogDirectory(tmp_path)
    log.write([LoggedEvent("acme", "a", 0, 1, 1)])
    last = log.builder.sequence - 1
    monkeypatch.setattr(opened_log, "os", SealsMeanwhile(log))
    assert replay(usage, last) == 1
    assert log.builder.file_number == 2


@pytest.mark.parametrize("told", [True, False])
def test_what_the_newest_checkpoint_has_applied_is_committed_for_an_older_one_too(
    usage: Recorded, tmp_path: Path, told: bool
) -> None:
    """The engine begins at the newest one, and says nothing of what lies before: a usage actor that
    had to take the older one waited for ever."""
    log = LogDirectory(tmp_path)
    log.write([LoggedEvent("acme", "a", 0, 1, 1)])
    last = log.builder.sequence - 1
    marks, _ = LogReader(str(tmp_path), Position(*usage.position), last).survey()
    assert marks.any()
    assert Replay(usage, last, marks.tobytes() if told else NOTHING).turn(heard=True)
    assert usage.groups.index.tolist() == (marks if told else marks * 0).tolist()
