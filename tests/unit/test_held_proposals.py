"""What waits to be ordered keeps its order, and is bounded in number and size."""

from __future__ import annotations

import pytest

from meterd.actors import held_proposals
from meterd.actors.held_proposals import HeldProposals


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
