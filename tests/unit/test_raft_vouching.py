"""Who is uncertain is counted for nothing; its leader vouches for it, also without clients."""

from __future__ import annotations

from meterd.core.raft import leading
from meterd.core.raft.events import NO_QUORUM, NOT_CAUGHT_UP, UNFIT, ProposeChange, Tick
from meterd.core.raft.state import LEADER
from meterd.protocol.raft_messages import Configuration, Vouch
from tests.support.raft_lab import Lab


def lab_with_uncertain(member: int, *learners: int) -> Lab:
    """1 leads, and has heard that a member has lost its last block; nobody else has heard."""
    lab = Lab((1, 2, 3), learners)
    lab.elect(1)
    lab.propose(1, 2)
    lab.flow()
    lab.beat(1, 2, 3, *learners)
    lab.crash(member)
    lab.restart_without(member, 3)
    leading.on_start(lab.groups[1], member)  # as a node does that hears of it
    lab.beat(1, member)
    assert lab.groups[1].progress[member].uncertain_since
    return lab


def test_a_group_without_clients_gets_a_no_op_and_the_word() -> None:
    lab = lab_with_uncertain(2)
    assert lab.groups[1].log.last == 4
    for _ in range(2):
        lab.flow()
        lab.beat(1, 2, 3)
    lab.flow()
    assert not lab.groups[2].uncertain
    assert lab.groups[1].log.last == 4  # one is enough
    assert not lab.groups[1].progress[2].uncertain_since


def test_a_word_that_is_lost_comes_again() -> None:
    lab = lab_with_uncertain(2)
    for _ in range(3):
        lab.flow(1, 3)
        lab.deliver(1, 2)
        lab.deliver(2, 1)
        lab.messages = [m for m in lab.messages if not isinstance(m[2], Vouch)]
    assert lab.groups[2].uncertain
    lab.beat(1, 2)
    lab.flow()
    assert not lab.groups[2].uncertain


def test_it_counts_for_no_commit_but_gets_ops() -> None:
    lab = lab_with_uncertain(2)
    commit = lab.commit(1)
    lab.propose(1)
    lab.flow(1, 2)
    lab.beat(1, 2)
    lab.flow(1, 2)
    assert lab.groups[2].match == lab.groups[1].log.last
    assert lab.commit(1) == commit
    lab.flow()
    lab.beat(1, 2)
    lab.flow()
    assert lab.commit(1) == lab.groups[1].log.last
    lab.propose(1)
    lab.flow(1, 2)
    assert lab.commit(1) == lab.groups[1].log.last  # with 2 alone, now that it is certain


def test_nothing_is_handed_over_to_it() -> None:
    lab = lab_with_uncertain(2)
    lab.transfer(1, 2)
    assert lab.refusals(1) == [UNFIT]


def test_it_keeps_no_leader_in_office() -> None:
    lab = lab_with_uncertain(2)
    for _ in range(11):
        lab.wait(150)
        lab.beat(1, 2)
        lab.step(1, Tick())
    assert lab.groups[1].role != LEADER


def test_a_learner_that_is_uncertain_is_not_promoted() -> None:
    lab = lab_with_uncertain(4, 4)
    lab.flow(1, 2, 3)
    lab.beat(1, 2, 3)
    promotion = ProposeChange(Configuration((1, 2, 3, 4)))
    lab.step(1, promotion)
    assert lab.refusals(1) == [NOT_CAUGHT_UP]
    for _ in range(3):
        lab.flow()
        lab.beat(1, 2, 3, 4)
    lab.flow()
    lab.step(1, promotion)
    assert lab.refusals(1) == [NOT_CAUGHT_UP]  # no other
    assert lab.groups[1].log.configuration.voters == (1, 2, 3, 4)


def test_no_change_rests_on_it() -> None:
    lab = lab_with_uncertain(2)
    lab.flow()
    lab.wait(5000)
    lab.beat(1, 2)
    lab.groups[1].progress[2].uncertain_since = 1
    lab.step(1, ProposeChange(Configuration((1, 2))))
    assert lab.refusals(1) == [NO_QUORUM]


def test_of_two_voters_the_other_can_only_remove_it() -> None:
    lab = Lab((1, 2))
    lab.elect(1)
    lab.flow()
    lab.crash(2)
    lab.restart_without(2, 9)
    for _ in range(3):
        lab.beat(1, 2)
        lab.flow()
    assert lab.groups[2].uncertain
    assert lab.commit(1) == 1 < lab.groups[1].log.last
    lab.step(1, ProposeChange(Configuration((1,), (2,))))
    lab.flow()
    assert lab.commit(1) == lab.groups[1].log.last
    lab.beat(1, 2)
    lab.flow()
    assert not lab.groups[2].uncertain
