"""What a leader says to who lacks what cannot be read any more, and what that one does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meterd.actors.replicating import behind_notes, catching_up
from meterd.actors.replicating.behind_notes import BehindNotes
from meterd.actors.replicating.catching_up import CatchingUp
from meterd.actors.replicating.op_reader import Answer, Asked
from meterd.actors.starting import peer_copy
from meterd.core.log.op_places import OpPlace
from meterd.core.raft.events import Damaged, FollowerBehind, OpsGone, ReadOps
from meterd.core.raft.repair import FOR_REPAIR

GROUP, TERM, FIRST, FOLLOWER = 3, 7, 50, 2


def taken(monkeypatch: pytest.MonkeyPatch, term: int, found: Any) -> catching_up.Taken:
    """What comes of an answer of the reader."""
    asked = Asked(ReadOps(GROUP, FOLLOWER, term, FIRST, FIRST + 5), OpPlace(1, 4096))
    reader = SimpleNamespace(take=lambda: [Answer(asked, found)])
    monkeypatch.setattr(catching_up, "OpReader", lambda directory, void: reader)
    return CatchingUp("", 1, 4096).take()


@pytest.mark.parametrize("term", [TERM, FOR_REPAIR])
@pytest.mark.parametrize("found", [None, Damaged(FIRST)])
def test_the_engine_hears_what_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, term: int, found: Any
) -> None:
    told = [one.event for one in taken(monkeypatch, term, found).events]
    damage = [] if found is None else [found]
    assert told == [*damage, OpsGone(FOLLOWER, term, FIRST)]


class Clock:
    """A clock that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(behind_notes.time, "monotonic", lambda: self.now)


def test_who_is_behind_is_told_once_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sent = Clock(monkeypatch), []
    notes = BehindNotes("", lambda node, frames: sent.append((node, frames)) is None, lambda: None)
    for _ in range(30):
        notes.tell(FollowerBehind(GROUP, FOLLOWER, FIRST))
        clock.now += 0.1
    place = GROUP.to_bytes(2, "little") + FIRST.to_bytes(8, "little")
    assert sent == [(FOLLOWER, [b"behind", place])] * 3


def node(commit: int, first_hole: int) -> Any:
    log = SimpleNamespace(first_hole=first_hole)
    view = SimpleNamespace(last=60, commit=commit)
    return SimpleNamespace(groups={GROUP: SimpleNamespace(log=log)}, view=lambda group: view)


def note(group: int, first: int) -> list[bytes]:
    return [b"behind", group.to_bytes(2, "little") + first.to_bytes(8, "little")]


@pytest.mark.parametrize(("first", "late"), [(49, True), (50, False), (61, False)])
def test_a_log_that_is_longer_does_not_make_it_late(tmp_path: Path, first: int, late: bool) -> None:
    """Its end may be what its leader contradicts: what counts is what is committed."""
    asked: list[int] = []
    notes = BehindNotes(str(tmp_path), lambda *_: True, lambda: asked.append(1))
    notes.take(1, note(GROUP, first), node(49, 0))
    assert peer_copy.behind_whom(str(tmp_path)) == (0 if late else 1)
    assert peer_copy.behind_in(str(tmp_path)) == (None if late else GROUP)
    notes.take(2, note(GROUP, first), node(49, 0))
    assert peer_copy.behind_whom(str(tmp_path)) == (0 if late else 1), "the copy is on its way"
    assert len(asked) == (0 if late else 2)


@pytest.mark.parametrize("commit", [40, 49])
def test_damage_waits_until_all_were_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: int
) -> None:
    """Though what is damaged here is committed: it is not applied."""
    clock, asked = Clock(monkeypatch), []
    notes = BehindNotes(str(tmp_path), lambda *_: True, lambda: asked.append(clock.now))
    for _ in range(30):
        notes.take(1, note(GROUP, 45), node(commit, 45))
        clock.now += 0.2
    assert 1_003.0 <= asked[0] < 1_003.5


def test_damage_of_another_day_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = Clock(monkeypatch), []
    notes = BehindNotes(str(tmp_path), lambda *_: True, lambda: asked.append(1))
    for _ in range(3):
        notes.take(1, note(GROUP, 45), node(49, 45))
        clock.now += 1_000.0
    assert (peer_copy.behind_whom(str(tmp_path)), asked) == (0, [])


def test_a_note_that_is_none_of_ours_is_dropped(tmp_path: Path) -> None:
    asked: list[int] = []
    notes = BehindNotes(str(tmp_path), lambda *_: True, lambda: asked.append(1))
    for frames in ([b"behind"], [b"behind", b"short"], note(GROUP + 1, 99), note(GROUP, 0)):
        notes.take(1, frames, node(49, 0))
    assert (peer_copy.behind_whom(str(tmp_path)), asked) == (0, [])
