"""Who was away when its group let it go learns of it, and asks for votes no more."""

from __future__ import annotations

import pytest

from meterd.core.raft.events import Forgotten, MetLeader, OpsRead, ProposeChange, ReadOps, Tick
from meterd.core.raft.settings import Settings
from meterd.protocol.raft_messages import Configuration, PreVote
from tests.support.raft_lab import Lab

SETTINGS = Settings(append_ops_max=3)
OPS = 20


def removed(*, tail: bool = False) -> Lab:
    """Let 3 be away while 1 and 2 go on without it; `tail`: it has ops that nobody else has."""
    lab = Lab((1, 2, 3), settings=SETTINGS)
    lab.elect(3)
    lab.flow()
    lab.beat(3, 1, 2)
    if tail:
        lab.propose(3, 5)
        lab.drop()
    lab.elect(1, 1, 2)
    lab.drop()
    lab.beat(1, 2)
    lab.propose(1)
    settle(lab)
    lab.step(1, ProposeChange(Configuration((1, 2))))
    settle(lab)
    for _ in range(OPS):
        lab.propose(1)
    settle(lab)
    assert lab.commit(1) == lab.commit(2) == lab.groups[1].log.last
    assert 3 in lab.groups[3].log.configuration.voters
    return lab


def settle(lab: Lab) -> None:
    for _ in range(3):
        lab.wait(400)
        lab.step(1, Tick())
        lab.flow(1, 2)
        lab.beat(1, 2)
        lab.drop()


def asks(lab: Lab) -> bool:
    """Does 3 ask for votes when it has heard nobody for long?"""
    lab.drop()
    lab.wait(5_000)
    for _ in range(2):
        lab.groups[3].deadline = lab.groups[3].election_at = lab.now
        lab.step(3, Tick())
    lab.beat(1, 2)
    return any(type(message) is PreVote for _, _, message in lab.messages)


@pytest.mark.parametrize("tail", [False, True], ids=["whole", "with ops of its own"])
def test_who_was_away_learns_that_it_has_left(tail: bool) -> None:
    lab = removed(tail=tail)
    term = lab.groups[1].term
    assert asks(lab)
    lab.flow()
    three = lab.groups[3]
    assert three.log.configuration.voters == (1, 2)
    assert not three.is_voter
    assert not asks(lab)
    assert lab.groups[1].term == term
    assert 3 not in lab.groups[1].progress


def test_who_has_no_room_for_what_it_missed_is_told_once_for_each_time_it_asks() -> None:
    """Seed 43797: it was sent the same ops for ever, as fast as it answered."""
    lab = removed()
    lab.moments[3].room = False
    assert asks(lab)
    rounds = 0
    while lab.messages and rounds < 10 * OPS:
        for source, target in ((1, 3), (3, 1), (2, 3), (3, 2)):
            lab.deliver(source, target)
        rounds += 1
    assert not lab.messages
    assert 3 in lab.groups[3].log.configuration.voters
    lab.moments[3].room = True
    assert asks(lab)
    lab.flow()
    assert lab.groups[3].log.configuration.voters == (1, 2)


def test_it_learns_from_a_leader_that_was_no_voter() -> None:
    """Whom it would ask for votes follows now, and only a leader may say what it missed."""
    lab = Lab((1, 2, 3), (4,), settings=SETTINGS)
    lab.elect(1)
    lab.flow()
    lab.beat(1, 2, 3, 4)
    for voters in ((1, 2, 3, 4), (1, 2, 4)):
        for _ in range(3):
            lab.wait(400)
            lab.beat(1, 2, 4)
            lab.step(1, Tick())
            lab.flow(1, 2, 4)
        lab.step(1, ProposeChange(Configuration(voters)))
        lab.flow(1, 2, 4)
        lab.drop()
    lab.elect(4, 1, 2, 4)
    lab.flow(1, 2, 4)
    lab.beat(4, 1, 2)
    lab.drop()
    three = lab.groups[3]
    three.deadline = three.election_at = lab.now
    lab.step(3, Tick())
    lab.flow(1, 2, 3)
    assert 3 in three.log.configuration.voters
    lab.step(3, MetLeader(4))
    lab.flow()
    assert three.log.configuration.voters == (1, 2, 4)
    assert not three.is_voter


def test_it_learns_from_ops_on_disk_too() -> None:
    lab = removed()
    log = lab.groups[1].log
    kept = {op.index: op for op in log.ops}
    lab.step(1, Forgotten(lab.commit(1)))
    assert log.base.index == lab.commit(1)
    lab.propose(1)
    settle(lab)
    assert asks(lab)
    for _ in range(3 * OPS):
        lab.flow()
        wanted = [action for action in lab.actions[1] if isinstance(action, ReadOps)]
        lab.actions[1].clear()
        for one in wanted:
            before, first = kept[one.first - 1], kept[one.first]
            ops = tuple(kept[index] for index in range(first.index, one.last + 1))
            lab.step(1, OpsRead(one.to, one.term, before.term, before.digest, ops))
    assert lab.groups[3].log.configuration.voters == (1, 2)
    assert not asks(lab)


def test_a_member_that_was_away_is_told_by_nobody_else() -> None:
    """Who is still a member gets its ops as ever: two ways at once would be one too many."""
    lab = Lab((1, 2, 3), settings=SETTINGS)
    lab.elect(1)
    lab.flow(1, 2)
    lab.drop()
    assert asks(lab)
    lab.flow(3, 1)
    answers = [
        type(message).__name__ for source, to, message in lab.messages if (source, to) == (1, 3)
    ]
    assert "Append" not in answers
