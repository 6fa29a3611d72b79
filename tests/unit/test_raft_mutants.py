"""Bugs that random schedules seldom meet, each with a schedule that shows it.

A schedule returns whether the damage is done: without the bug it is not, with it it is.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meterd.core.raft.events import Proposal, ProposeChange, Read, ReadReady, SnapshotStored, Tick
from meterd.core.raft.log import Log
from meterd.core.raft.settings import Settings
from meterd.core.raft.state import LEADER, Recovered
from meterd.protocol.raft_messages import (
    CONFIG,
    AppendReply,
    Configuration,
    Mark,
    Op,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.sim.disk import DiskGroup
from tests.sim.mutants import BUGS, DIRECTED
from tests.support.raft_lab import EVENTS, Lab, ops_of

Schedule = Callable[[], bool]
SCHEDULES: dict[str, Schedule] = {}


def shows(mutant: str) -> Callable[[Schedule], Schedule]:
    def register(schedule: Schedule) -> Schedule:
        SCHEDULES[mutant] = schedule
        return schedule

    return register


def led_by_1(voters: tuple[int, ...] = (1, 2, 3)) -> Lab:
    lab = Lab(voters)
    lab.elect(1)
    lab.flow()
    lab.beat(1, *voters[1:])
    return lab


@shows("votes_are_counted_by_message")
def one_voter_says_yes_twice() -> bool:
    lab = Lab((1, 2, 3, 4, 5))
    group = lab.groups[1]
    group.term = group.vote = 1
    group.role = 2
    group.ballots = {1: True}
    for _ in range(2):
        lab._done(1, group.receive(2, VoteReply(0, 1, True, 1)))
    return group.role == LEADER


@shows("vote_replies_do_not_name_the_term")
def a_yes_for_an_earlier_term_comes_late() -> bool:
    lab = Lab((1, 2, 3))
    group = lab.groups[1]
    group.term, group.vote, group.role = 5, 1, 2
    group.ballots = {1: True}
    lab._done(1, group.receive(2, VoteReply(0, 4, True, 4)))
    return group.role == LEADER


@shows("votes_by_index_without_term")
def a_long_old_log_asks_for_votes() -> bool:
    logs = {1: [1, 1, 1, 1], 2: [1, 2], 3: [1, 2]}
    lab = Lab((1, 2, 3), logs=logs, terms={1: 2, 2: 2, 3: 2})
    lab.wait(5000)
    lab._done(2, lab.groups[2].receive(1, Vote(0, 3, 4, 1, False)))
    return lab.groups[2].vote == 1


@shows("no_sticky_refusal")
def somebody_campaigns_while_the_leader_serves() -> bool:
    lab = led_by_1()
    lab.wait(500)
    lab._done(2, lab.groups[2].receive(3, Vote(0, 2, 99, 1, False)))
    return lab.groups[2].vote == 3 and lab.groups[1].holds_lease()


@shows("started_node_votes_at_once")
def a_voter_starts_anew_and_has_forgotten_the_leader() -> bool:
    lab = led_by_1()
    lab.crash(2)
    lab.wait(100)
    lab.restart(2, started_at=lab.now)
    lab.wait(100)
    lab._done(2, lab.groups[2].receive(3, Vote(0, 2, 99, 1, False)))
    return lab.groups[2].vote == 3 and lab.groups[1].holds_lease()


@shows("stickiness_ends_with_the_term")
def a_voter_learns_of_a_newer_term_and_is_asked_in_it() -> bool:
    """An answer to its own question from before it heard the leader."""
    lab = led_by_1()
    lab.wait(100)
    lab._done(2, lab.groups[2].receive(3, PreVoteReply(0, 1, False, 5)))
    lab._done(2, lab.groups[2].receive(3, Vote(0, 6, 99, 1, False)))
    return lab.groups[2].vote == 3 and lab.groups[1].holds_lease()


@shows("verified_outlives_the_term")
def an_op_of_a_dead_branch_is_acked_to_the_next_leader() -> bool:
    lab = led_by_1((1, 2, 3, 4, 5))
    lab.propose(1)
    lab.flow(1, 2)
    lab.drop()
    lab.crash(1)
    lab.elect(5, 3, 4, 5)  # has another op 2
    lab.drop()
    lab.beat(5, 2)
    lab.beat(5, 2)
    return lab.groups[5].progress[2].match == 2


@shows("acks_its_own_last_index")
def a_longer_log_is_acked() -> bool:
    lab = Lab((1, 2, 3), logs={1: [1], 2: [1, 1, 1]}, terms={1: 1, 2: 1, 3: 1})
    lab.elect(1, 1, 3)
    lab.drop()
    lab.beat(1, 2)
    return lab.groups[1].progress[2].match == 3


@shows("replies_of_old_terms_count")
def an_ack_of_an_earlier_term_comes_late() -> bool:
    lab = led_by_1()
    lab.elect(2, 2, 3)
    lab.elect(1, 1, 3)
    lab.drop()
    late = AppendReply(0, 1, 1, 3, 3, 0, 0, 0, 0, True)
    lab._done(1, lab.groups[1].receive(2, late))
    return lab.groups[1].progress[2].match == 3


@shows("lease_from_arrival")
def an_answer_to_a_beat_comes_late() -> bool:
    lab = led_by_1()
    group = lab.groups[1]
    lab.wait(50)
    answers = []
    for follower in (2, 3):
        beat = lab.beat_of(1)
        answers.append((follower, lab.groups[follower].on_beat(1, beat)[0]))
    sent_at = lab.now
    lab.wait(900)
    for follower, answer in answers:
        group.on_beat_reply(follower, answer, 99, sent_at)
    return group.holds_lease()


@shows("read_round_is_not_echoed")
def an_answer_to_an_earlier_beat_confirms_a_later_read() -> bool:
    lab = led_by_1()
    group, moment = lab.groups[1], lab.moments[1]
    lab.wait(700)
    old_round = moment.round - 1
    reply = lab.groups[2].on_beat(1, lab.beat_of(1))[0]  # on its way when the read comes
    lab.step(1, Read("r"))
    moment.round += 1  # the read's own round is sent
    lab._done(1, group.on_beat_reply(2, reply, old_round, lab.now - 700))
    return any(isinstance(a, ReadReady) for a in lab.actions[1])


@shows("lease_goes_on_during_a_transfer")
def the_lease_after_timeout_now() -> bool:
    lab = led_by_1()
    lab.transfer(1, 2)
    return lab.groups[1].holds_lease()


@shows("lease_is_back_after_an_aborted_transfer")
def the_lease_after_an_abort() -> bool:
    lab = led_by_1()
    lab.transfer(1, 2)
    lab.drop()
    lab.wait(1000)
    lab.beat(1, 2, 3)
    lab.step(1, Tick())
    assert lab.groups[1].transfer is None
    return lab.groups[1].holds_lease()


@shows("new_leader_reads_at_once")
def a_new_leader_that_does_not_know_what_is_committed() -> bool:
    lab = led_by_1()
    lab.propose(1)
    lab.flow()
    lab.elect(2, 2, 3)
    lab.drop()
    lab.beat(2, 3)
    return lab.groups[2].holds_lease() and lab.commit(2) < lab.commit(1)


@shows("stale_timeout_now_is_obeyed")
def timeout_now_comes_late() -> bool:
    lab = led_by_1()
    lab.transfer(1, 2)
    sent = [m for m in lab.messages if isinstance(m[2], TimeoutNow)]
    lab.drop()
    lab.wait(1000)
    lab.beat(1, 2, 3)
    lab.step(1, Tick())
    lab.flow()
    lab.messages += sent
    lab.deliver(1, 2)
    return lab.groups[2].term > 1


@shows("lost_tail_is_trusted_at_once")
def a_replica_that_lost_its_tail_hears_an_old_commit() -> bool:
    """The leader has not committed in its own term yet: it may not know what was acked."""
    lab = Lab((1, 2, 3), logs={1: [1, 1], 2: [1], 3: [1]}, terms={1: 1, 2: 1, 3: 1})
    lab.groups[2].uncertain = True
    lab.groups[2].become_follower(2, 1)
    lab.groups[2].verified = 1
    beat = lab.beat_of(1)._replace(term=2, commit=1)
    lab._done(2, lab.groups[2].on_beat(1, beat)[1])
    return not lab.groups[2].uncertain


@shows("lost_tail_is_trusted_by_its_own_commit")
def a_replica_that_lost_its_tail_commits_what_is_left() -> bool:
    """It had acked three ops and knows of one; the leader has committed all three."""
    lab = led_by_1()
    lab.propose(1, 2)
    lab.flow()
    group = lab.groups[2]
    lost = Recovered(1, 0, Log(group.log.base, group.log.ops[:1]), uncertain=True)
    lab._open(2, lost, -10_000)
    group = lab.groups[2]
    group.leader = 1
    group.verified = 1
    lab._done(2, group.on_beat(1, lab.beat_of(1))[1])
    return not group.uncertain


@shows("snapshot_keeps_a_conflicting_log")
def a_snapshot_of_another_history_arrives() -> bool:
    lab = Lab((1, 2, 3), logs={2: [1, 1, 1, 1]}, terms={2: 1})
    other = ops_of([2, 2, 2])
    mark = Mark(3, 2, other[-1].digest, Configuration((1, 2, 3)))
    lab.step(2, SnapshotStored(mark))
    return lab.groups[2].log.last != 3


@shows("changes_two_voters_at_once")
def two_voters_are_swapped() -> bool:
    lab = Lab((1, 2, 3), (4, 5))
    lab.elect(1)
    lab.flow()
    lab.beat(1, 2, 3, 4, 5)
    lab.step(1, ProposeChange(Configuration((1, 2, 3, 4, 5))))
    return len(lab.groups[1].log.configuration.voters) == 5


@shows("configurations_outlive_truncation")
def a_change_is_truncated() -> bool:
    lab = led_by_1()
    group = lab.groups[2]
    first = group.log.configuration
    change = Op(2, 1, 7, CONFIG, 100, Configuration((1, 2)))
    group.write_ops([change])
    group.write_ops([ops_of([2], 2)[0]])
    return group.log.configuration != first


@shows("lost_tail_votes")
def a_replica_whose_tail_is_lost_is_asked() -> bool:
    image = DiskGroup(Mark(0, 0, 0, Configuration((1, 2, 3))))
    image.uncertain = True
    lab = Lab((1, 2, 3))
    lab._open(2, image.recovered(), -10_000)
    lab.wait(5000)
    lab._done(2, lab.groups[2].receive(1, Vote(0, 1, 0, 0, False)))
    return lab.groups[2].vote == 1


@shows("limits_are_not_kept")
def a_follower_that_does_not_answer_is_sent_everything() -> bool:
    lab = Lab((1, 2, 3), settings=Settings(flights_max=4))
    lab.elect(1)
    lab.flow()
    for number in range(50):
        lab.step(1, Proposal(((EVENTS, 100, number),)))
    return len([m for m in lab.messages if m[1] == 2]) > 4


def test_the_list_of_schedules_is_true() -> None:
    assert set(DIRECTED["test_raft_mutants"]) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rule_holds(name: str) -> None:
    assert not SCHEDULES[name]()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bug_is_seen(name: str) -> None:
    with BUGS.applied(name):
        assert SCHEDULES[name]()
