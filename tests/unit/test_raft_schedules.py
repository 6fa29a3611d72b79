"""Schedules that random simulation seldom meets: the paper's figures, and where bugs were found.

Those that end with a mutant show that the schedule would notice the bug.
"""

from __future__ import annotations

import pytest

from meterd.core.raft import membership
from meterd.core.raft.events import Damaged, OpsGone, ProposeChange, Read, ReadReady, Tick
from meterd.core.raft.log import Log
from meterd.core.raft.settings import Settings
from meterd.core.raft.state import FOLLOWER, LEADER, Recovered
from meterd.protocol.raft_messages import Configuration, TimeoutNow
from tests.sim.mutants import BUGS
from tests.support.raft_lab import Lab

FIGURE_7 = {
    1: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
    2: [1, 1, 1, 4, 4, 5, 5, 6, 6],
    3: [1, 1, 1, 4],
    4: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    5: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    6: [1, 1, 1, 4, 4, 4, 4],
    7: [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


def test_figure_7_every_log_becomes_the_leaders() -> None:
    """Followers miss ops, have ops that were never committed, or both."""
    lab = Lab(tuple(FIGURE_7), logs=FIGURE_7, terms=dict.fromkeys(FIGURE_7, 7))
    lab.elect(1, 1, 2, 3, 6, 7)
    assert lab.groups[1].term == 8
    for _ in range(10):
        lab.flow()
        lab.wait(400)
        lab.beat(1, 2, 3, 4, 5, 6, 7)
    for member in FIGURE_7:
        assert lab.terms(member) == [*FIGURE_7[1], 8], member
        assert lab.commit(member) == 11
    assert len({group.log.digest_at(11) for group in lab.groups.values()}) == 1


def figure_8() -> Lab:
    """Play Figure 8 up to (c): an op of an old term is on a majority, nothing of the new one is."""
    lab = Lab((1, 2, 3, 4, 5), settings=Settings(append_ops_max=1))
    lab.elect(1)
    lab.flow()
    lab.propose(1)
    lab.flow(1, 2)  # (a) op 2 of term 1 is on 1 and 2
    lab.drop()
    lab.crash(1)
    lab.elect(5, 3, 4, 5)  # (b) 5 leads term 2 and has another op 2, which reaches nobody
    lab.drop()
    lab.crash(5)
    lab.restart(1)
    lab.elect(1, 1, 2, 3)  # (c) 1 leads term 3 and sends op 2 to 3
    lab.deliver(1, 2)
    lab.deliver(2, 1)
    while lab.groups[3].log.last < 2:
        lab.deliver(1, 3)
        lab.deliver(3, 1)
    return lab


def test_figure_8_an_op_of_an_old_term_is_not_committed_by_counting() -> None:
    lab = figure_8()
    assert lab.terms(3) == [1, 1]
    assert lab.commit(1) == 0  # 1 has started anew and knows of no commit yet
    lab.drop()
    lab.crash(1)
    lab.restart(5)
    lab.elect(5, 3, 4, 5)  # (d) and 5 may replace it
    lab.flow(3, 4, 5)
    assert lab.terms(3)[:2] == [1, 2]


def test_figure_8_it_is_committed_by_an_op_of_the_leaders_own_term() -> None:
    lab = figure_8()
    lab.flow(1, 3)
    assert lab.terms(3) == [1, 1, 3]
    assert lab.commit(1) == 3
    lab.crash(1)
    lab.restart(5)
    with pytest.raises(AssertionError):
        lab.elect(5, 2, 3, 4, 5)  # (e) and 5 cannot win


def test_figure_8_notices_the_bug() -> None:
    with BUGS.applied("commits_old_terms_by_count"):
        assert figure_8().commit(1) == 2


def two_changes() -> Lab:
    """Ongaro's bug of 2015: two leaders change the members, neither has opened its term."""
    lab = Lab((1, 2, 3, 4), (5,))
    lab.elect(1)
    lab.flow()
    lab.beat(1, 2, 3, 4, 5)
    lab.step(1, ProposeChange(Configuration((1, 2, 3, 4, 5))))
    lab.flow(1, 5)  # the change is on 1 and 5, three of five would commit it
    lab.drop()
    lab.elect(2, 2, 3, 4)
    lab.drop()  # its first op reaches nobody
    lab.beat(2, 3)
    lab.step(2, ProposeChange(Configuration((2, 3, 4), (5,))))
    lab.wait(400)
    for _ in range(4):  # all that is sent from now on reaches 3 alone
        lab.step(2, Tick())
        lab.flow(2, 3)
        lab.wait(400)
    lab.drop()
    return lab


def test_a_leader_opens_its_term_before_it_changes_members() -> None:
    lab = two_changes()
    assert lab.refusals(2) == [membership.NOT_READY]
    assert lab.commit(2) < 3


def test_two_changes_without_that_lose_what_is_committed() -> None:
    with BUGS.applied("changes_before_the_term_is_open"):
        lab = two_changes()
        committed = lab.groups[2].log.digest_at(lab.commit(2))
        assert lab.commit(2) == 3  # of three members, two have it
        lab.crash(2)
        lab.groups[1].become_follower(lab.groups[1].term, 0)
        lab.elect(1, 1, 4, 5)  # 1 counts five members: these are a majority
        assert lab.groups[1].log.digest_at(3) != committed


def led_by_1(**kwargs: Settings) -> Lab:
    lab = Lab((1, 2, 3), **kwargs)
    lab.elect(1)
    lab.flow()
    lab.beat(1, 2, 3)
    return lab


def hand_over() -> Lab:
    lab = led_by_1()
    lab.transfer(1, 2)
    lab.flow()
    return lab


def test_a_transfer_succeeds_although_everybody_hears_the_leader() -> None:
    lab = hand_over()
    assert (lab.groups[2].role, lab.groups[1].role) == (LEADER, FOLLOWER)


def test_a_transfer_through_pre_votes_would_not() -> None:
    with BUGS.applied("transfer_asks_for_pre_votes"):
        assert hand_over().groups[2].role != LEADER


def test_a_leader_that_hears_nobody_steps_down() -> None:
    """It can send, not receive: the others hear it, so nobody else would."""
    lab = led_by_1()
    for _ in range(20):
        lab.wait(150)
        lab.beat(1, 2, 3, replies=False)
        lab.step(1, Tick())
    assert lab.groups[1].role != LEADER


def test_without_check_quorum_it_would_lead_for_ever() -> None:
    with BUGS.applied("no_check_quorum"):
        lab = led_by_1()
        lab.wait(20_000)
        lab.step(1, Tick())
        assert lab.groups[1].role == LEADER


def test_a_late_timeout_now_is_not_obeyed() -> None:
    """After an abort the leader serves by lease again, once a new op has committed."""
    lab = led_by_1()
    lab.transfer(1, 2)
    sent = [m for m in lab.messages if isinstance(m[2], TimeoutNow)]
    assert len(sent) == 1
    lab.drop()
    lab.wait(1000)
    lab.beat(1, 2, 3)
    lab.step(1, Tick())  # aborted
    assert lab.groups[1].transfer is None
    assert not lab.groups[1].holds_lease()
    lab.flow(1, 2, 3)
    assert lab.groups[1].holds_lease()
    lab.messages += sent
    lab.deliver(1, 2)
    assert lab.groups[2].role == FOLLOWER


def test_the_lease_ends_600_ms_after_the_beat_was_sent() -> None:
    lab = led_by_1()
    lab.wait(599)
    assert lab.groups[1].holds_lease()
    lab.wait(1)
    assert not lab.groups[1].holds_lease()
    assert [a for a in lab.step(1, Read("late")) if isinstance(a, ReadReady)] == []
    lab.beat(1, 2)
    served = [a for a in lab.actions[1] if isinstance(a, ReadReady)]
    assert [(a.cause, a.by_lease) for a in served] == [("late", False)]


def test_who_answered_a_beat_votes_for_nobody_else_for_a_while() -> None:
    lab = led_by_1()
    lab.wait(740)
    lab.groups[3].heard_at = -10_000  # 3 has heard nothing: it campaigns
    lab.groups[3].election_at = lab.groups[3].deadline = 0
    lab.step(3, Tick())
    lab.flow(2, 3)
    assert lab.groups[3].role != LEADER
    assert lab.groups[2].term == 1


def test_a_started_node_votes_for_nobody_for_a_while() -> None:
    lab = led_by_1()
    lab.crash(2)
    lab.restart(2, started_at=lab.now)
    lab.groups[3].heard_at = -10_000
    lab.groups[3].election_at = lab.groups[3].deadline = 0
    lab.wait(700)
    lab.step(3, Tick())
    lab.flow(2, 3)
    assert lab.groups[3].role != LEADER
    lab.wait(200)
    lab.step(3, Tick())
    lab.flow(2, 3)
    assert lab.groups[3].role == LEADER


def test_damage_below_what_is_acked_is_repaired_by_a_peer() -> None:
    lab = led_by_1()
    lab.propose(1, 3)
    lab.flow()
    lab.beat(1, 2, 3)
    assert lab.commit(2) == 4
    lab.step(2, Damaged(3))
    assert lab.groups[2].match == 2
    lab.propose(1)
    lab.flow()
    assert lab.groups[1].progress[2].match == 4  # what was acked stays acked, 5 is not
    assert lab.commit(1) == 5  # with 3
    for _ in range(20):
        lab.wait(300)
        lab.step(2, Tick())
        lab.flow(1, 2, 3)
        lab.beat(1, 2, 3)
    assert lab.groups[2].log.holes == []
    assert lab.groups[2].match == 5 == lab.applied(2)


def test_who_is_about_to_be_removed_leads_while_nobody_else_can() -> None:
    """It alone has the change, so its log is the longest and it votes for nobody else."""
    lab = Lab((1, 2, 3, 4))
    lab.elect(1)
    lab.flow()
    lab.beat(1, 2, 3, 4)
    lab.step(1, ProposeChange(Configuration((1, 2, 4))))
    lab.flow(1, 3)
    lab.drop()
    lab.crash(1)
    lab.elect(3, 2, 3, 4)
    for _ in range(2):  # the second beat is answered in a newer term
        lab.flow()
        lab.beat(3, 2, 4)
        lab.wait(150)
        lab.step(3, Tick())
    assert lab.groups[3].role == FOLLOWER  # the change is committed: it has handed over
    assert LEADER in (lab.groups[2].role, lab.groups[4].role)
    assert lab.groups[2].log.configuration == Configuration((1, 2, 4))


def test_a_follower_that_has_lost_what_it_acked_gets_it_again() -> None:
    lab = led_by_1()
    lab.propose(1, 5)
    lab.flow()
    group = lab.groups[2]
    assert lab.groups[1].progress[2].match == 6
    lost = Recovered(1, 0, Log(group.log.base, group.log.ops[:3]), uncertain=True)
    lab._open(2, lost, lab.now)
    lab.beat(1, 2)
    for _ in range(3):
        lab.wait(400)
        lab.beat(1, 2, 3)
        lab.flow()
    lab.beat(1, 2)
    assert lab.groups[2].log.last == 6 == lab.commit(2)
    assert not lab.groups[2].uncertain


def test_who_lacks_ops_that_are_gone_is_asked_again_where_its_log_ends() -> None:
    lab = led_by_1()
    lab.propose(1, 5)
    lab.flow()
    progress = lab.groups[1].progress[2]
    progress.probe_from(2)  # what its leader knew before it took a copy of another's log
    lab.step(1, OpsGone(2, lab.groups[1].term, 2))
    assert progress.next == lab.groups[1].log.last + 1
    for _ in range(3):
        lab.wait(400)
        lab.beat(1, 2)
        lab.flow()
    assert progress.match == lab.groups[1].log.last
    lab.step(1, OpsGone(2, lab.groups[1].term, 2))  # late: it changes nothing
    assert progress.match == lab.groups[1].log.last == progress.next - 1
