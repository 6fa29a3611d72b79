"""Whose turn it is when a leader dies, and who may lead."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from meterd.core.raft import elections
from meterd.core.raft.events import Moment
from meterd.core.raft.group import Group
from meterd.core.raft.log import Log
from meterd.core.raft.settings import Settings
from meterd.core.raft.state import FOLLOWER, Recovered
from meterd.protocol.raft_messages import CONFIG, Configuration, Mark, Op, Vote, VoteReply
from tests.support.raft_lab import Lab, chain

SETTINGS = Settings(jitter_ms=0)
PARTITIONS = 256


def replica(group: int, member: int, voters: tuple[int, ...], leader: int) -> Group:
    log = Log(Mark(0, 0, 0, Configuration(voters)))
    one = Group(
        group,
        member,
        Recovered(0, 0, log),
        Moment(0),
        settings=SETTINGS,
        random=Random(0),
        chain=chain,
    )
    one.leader = leader
    elections.wait_turn(one)
    return one


@pytest.mark.parametrize("voters", [(1, 2, 3), (1, 2, 3, 4, 5), (2, 5, 9)])
@pytest.mark.parametrize("leader_at", [0, 1, 2, None])
def test_turns_are_taken_one_by_one_and_spread(
    voters: tuple[int, ...], leader_at: int | None
) -> None:
    """No two voters of a group wait equally long, and each is first in its share of groups."""
    leader = 0 if leader_at is None else voters[leader_at]
    left = [m for m in voters if m != leader]
    first: Counter[int] = Counter()
    for group in range(PARTITIONS):
        patience = {m: replica(group, m, voters, leader).patience for m in left}
        ranks = sorted((p - SETTINGS.suspicion_ms) // SETTINGS.rank_ms for p in patience.values())
        assert ranks == list(range(len(left)))
        first[min(left, key=lambda m: patience[m])] += 1
    assert max(first.values()) - min(first.values()) <= 1


def test_a_full_disk_waits_until_all_others_had_their_turn() -> None:
    one = replica(0, 2, (1, 2, 3), 1)
    one.moment.room = False
    elections.wait_turn(one)
    others = [replica(0, m, (1, 2, 3), 1).patience for m in (2, 3)]
    assert one.patience > max(others)


@pytest.mark.parametrize("what", ["hole", "uncertain", "clock", "stranger"])
def test_who_may_not_lead_does_not_campaign(what: str) -> None:
    lab = Lab((1, 2, 3), logs={2: [1, 1]})
    group = lab.groups[2]
    if what == "stranger":
        group.write_ops([Op(3, 1, 7, CONFIG, 100, Configuration((1, 3)))])
        group.commit = 3
    if what == "hole":
        group.log.damage(1)
    group.uncertain = what == "uncertain"
    lab.moments[2].fit = what != "clock"
    lab.wait(10_000)
    for _ in range(5):
        lab.wait(5000)
        elections.on_tick(group)
    assert (group.role, group.term) == (FOLLOWER, 1)


def test_a_learner_campaigns_when_no_voter_is_elected() -> None:
    lab = Lab((1, 2, 3), (4,))
    learner = lab.groups[4]
    elections.wait_turn(learner)
    others = [replica(0, m, (1, 2, 3), 1).patience for m in (1, 2, 3)]
    assert learner.patience > max(others) + lab.settings.check_quorum_ms
    assert elections.may_stand(learner) and not elections.may_campaign(learner)


def test_a_replica_with_a_hole_votes_by_what_it_knows_of_it() -> None:
    lab = Lab((1, 2, 3), logs={1: [1], 2: [1, 1, 1]})
    lab.groups[2].log.damage(3)
    lab.wait(5000)
    lab._done(2, lab.groups[2].receive(1, Vote(0, 2, 1, 1, False)))
    assert lab.groups[2].vote == 0
    lab._done(2, lab.groups[2].receive(3, Vote(0, 2, 3, 1, False)))
    assert lab.groups[2].vote == 3


def test_a_candidate_that_is_damaged_meanwhile_does_not_lead() -> None:
    lab = Lab((1, 2, 3), logs={m: [1, 1] for m in (1, 2, 3)})
    group = lab.groups[1]
    lab.wait(5000)
    elections.campaign(group, transfer=False)
    lab._done(1, group._taken())
    group.log.damage(2)
    lab._done(1, group.receive(2, VoteReply(0, 2, True, 2)))
    assert group.role == FOLLOWER
