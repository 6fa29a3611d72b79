"""Schedules that look into a replica; all others are scenarios (`tests/sim/scenarios`)."""

from __future__ import annotations

import pytest

from meterd.core.raft.events import Damaged, Forgotten, OpsGone, Tick
from meterd.core.raft.log import Log
from meterd.core.raft.progress import PROBE, REPLICATE
from meterd.core.raft.settings import Settings
from meterd.core.raft.state import LEADER, Recovered
from meterd.protocol.raft_messages import UNKNOWN, Append, AppendReply
from tests.support.raft_lab import Lab


def led_by_1(**kwargs: Settings) -> Lab:
    lab = Lab((1, 2, 3), **kwargs)
    lab.elect(1)
    lab.flow()
    lab.beat(1, 2, 3)
    return lab


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
    assert lab.groups[2].log.last == 7 == lab.commit(2)  # the last is a no-op, for 2
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


@pytest.mark.parametrize("same", [True, False])
def test_ops_whose_leader_does_not_know_what_came_before(same: bool) -> None:
    """The receiver has said whether they follow its own (`wire_check`); the engine heeds that."""
    lab = led_by_1()
    lab.propose(1, 5)
    lab.flow()
    lab.crash(2)
    lab.propose(1, 3)
    lab.flow()
    ops = tuple(lab.groups[1].log.ops[6:])
    lab.restart(2)
    follower = lab.groups[2]
    lab.drop()
    before = follower.log.digest_at(6) if same else 0
    message = Append(0, lab.groups[1].term, 6, UNKNOWN, before, ops, 6)
    lab._done(2, follower.receive(1, message))
    replies = [m for _, to, m in lab.messages if to == 1 and isinstance(m, AppendReply)]
    assert follower.log.last == (9 if same else 6)
    assert [m.conflict for m in replies] == [0 if same else 7]
    lab.drop()
    lab._done(2, follower.receive(1, message._replace(prev_index=12, ops=())))
    (reply,) = [m for _, _, m in lab.messages]
    assert (reply.conflict, reply.conflict_term) == (follower.log.last + 1, follower.log.last_term)


def test_an_answer_to_something_older_does_not_say_where_to_go_on() -> None:
    """What follows from there may be in no file any more; the probe's own answer is to come."""
    lab = led_by_1()
    lab.propose(1, 20)
    lab.flow()
    group = lab.groups[1]
    progress, last = group.progress[2], group.log.last
    progress.start_anew(last + 1)
    group.receive(2, AppendReply(0, group.term, 4, 5, 5, 0, 0, 0, 0, True))
    assert (progress.state, progress.next) == (PROBE, last + 1)
    group.receive(2, AppendReply(0, group.term, last, last, last, 0, 0, 0, 0, True))
    assert (progress.state, progress.next) == (REPLICATE, last + 1)


def test_who_has_little_that_its_leader_has_not_is_asked_a_little_further_back() -> None:
    """Files may reach back no further, and terms of what has left memory are not known."""
    lab = led_by_1()
    lab.propose(1, 40)
    lab.flow()
    group = lab.groups[1]
    lab.step(1, Forgotten(group.commit))
    progress = group.progress[2]
    assert group.log.base.index > 30
    progress.probe_from(31)
    asked = []
    for _ in range(4):
        at = progress.next - 1
        refused = AppendReply(group.group, group.term, at, 0, 0, at + 1, 1, 0, 0, True)
        group.receive(2, refused)
        asked.append(progress.next - 1)
    assert asked == [29, 27, 23, 15]
    lab.step(1, OpsGone(2, group.term, progress.next))
    assert progress.next == 23  # the best there is, and from there one by one
