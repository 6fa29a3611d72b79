"""What a leader says to who lacks what cannot be read any more, and what that one does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meterd.actors import catching_up, peer_copy
from meterd.actors.catching_up import Behind, CatchingUp
from meterd.actors.op_reader import Answer, Asked
from meterd.actors.replication import Replication
from meterd.core.op_places import OpPlace
from meterd.core.raft.events import Damaged, OpsGone, ReadOps
from meterd.core.raft.repair import FOR_REPAIR
from meterd.protocol.errors import BootFailed

GROUP, TERM, FIRST, FOLLOWER = 3, 7, 50, 2


def taken(monkeypatch: pytest.MonkeyPatch, term: int, found: Any) -> catching_up.Taken:
    """What comes of an answer of the reader."""
    asked = Asked(ReadOps(GROUP, FOLLOWER, term, FIRST, FIRST + 5), OpPlace(1, 4096))
    reader = SimpleNamespace(take=lambda: [Answer(asked, found)])
    monkeypatch.setattr(catching_up, "OpReader", lambda directory: reader)
    return CatchingUp("", 1, 4096).take()


@pytest.mark.parametrize("found", [None, Damaged(FIRST)])
def test_who_lacks_what_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    told = taken(monkeypatch, TERM, found)
    assert told.behind == [Behind(FOLLOWER, GROUP, FIRST)]
    assert told.events[-1].event == OpsGone(FOLLOWER, TERM, FIRST)
    assert len(told.events) == (1 if found is None else 2)  # the engine hears of the damage, too


def test_a_repair_that_is_not_there_says_nothing_of_who_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = taken(monkeypatch, FOR_REPAIR, Damaged(FIRST))
    assert not told.behind
    assert [one.event for one in told.events] == [Damaged(FIRST)]


@pytest.mark.parametrize(("first", "late"), [(49, True), (50, False), (61, False)])
def test_a_log_that_is_longer_does_not_make_it_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, late: bool
) -> None:
    """Its end may be what its leader contradicts: what counts is what is committed."""
    view = SimpleNamespace(last=60, commit=49)
    replicas = SimpleNamespace(node=SimpleNamespace(view=lambda group: view))
    monkeypatch.setattr(Replication, "replicas", replicas)
    replication = object.__new__(Replication)
    replication.options = SimpleNamespace(  # type: ignore[assignment]
        node=SimpleNamespace(data_dir=str(tmp_path))
    )
    place = GROUP.to_bytes(2, "little") + first.to_bytes(8, "little")
    if late:
        replication._fall_behind(1, [b"behind", place])
    else:
        with pytest.raises(BootFailed):
            replication._fall_behind(1, [b"behind", place])
    assert peer_copy.behind_whom(str(tmp_path)) == (0 if late else 1)
