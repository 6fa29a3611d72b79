"""The node: what waits for the disk, which messages count, when it stands aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from meterd.core.raft.clock_check import ClockCheck
from meterd.core.raft.events import (
    Durable,
    Moment,
    Proposal,
    Read,
    ReadReady,
    Refused,
    Tick,
    WriteOps,
)
from meterd.core.raft.fast_node import FastNode
from meterd.core.raft.group import Group
from meterd.core.raft.log import Log
from meterd.core.raft.node import GoneBack, Node, Output, Received, Request, Room
from meterd.core.raft.settings import Settings
from meterd.core.raft.slices import WriteSlices
from meterd.core.raft.state import LEADER, Recovered
from meterd.protocol.raft_messages import (
    Append,
    AppendReply,
    Beat,
    BeatReplies,
    BeatReply,
    Beats,
    Configuration,
    Envelope,
    Hello,
    HelloReply,
    Mark,
    Message,
    Op,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
    incarnation_of,
    member_id,
    node_of,
)
from meterd.protocol.raft_slices import AppendSlices, SliceOps, words
from tests.support.raft_lab import chain, ops_of

SETTINGS = Settings()
ONE = np.array([1])


def make_node(
    member: int = 1,
    voters: tuple[int, ...] = (1, 2, 3),
    *,
    groups: int = 1,
    block: int = 0,
    boot: int = 1,
    now: int = 0,
    make: Callable[..., Node] = Node,
    seeds: Sequence[int] = (),
) -> Node:
    moment = Moment(now, block + 1)
    mark = Mark(0, 0, 0, Configuration(voters))
    made = [
        Group(
            number,
            member,
            Recovered(0, 0, Log(mark)),
            moment,
            settings=SETTINGS,
            random=Random(number),
            chain=chain,
        )
        for number in range(groups)
    ]
    return make(
        cluster=7,
        member=member,
        boot=boot,
        moment=moment,
        groups=made,
        seeds=seeds or voters,
        settings=SETTINGS,
    )


def tell(node: Node, now: int, source: int, *messages: Message, **head: Any) -> Output:
    fields = {"cluster": 7, "target": node.member, "boot": 1, "block": 0, **head}
    envelope = Envelope(source=source, messages=messages, **fields)
    return node.step(now, now, Received(envelope))


def sent(output: Output, kind: type[Any]) -> list[Any]:
    return [m for _, envelope in output.envelopes for m in envelope.messages if type(m) is kind]


def digests(ops: list[Op]) -> NDArray[np.uint64]:
    return np.array([words(op.digest) for op in ops], np.uint64)


def chain_many(*_: Any) -> NDArray[np.uint64]:
    raise AssertionError("a follower proposes nothing")


def writes_of(record: Any) -> list[Op]:
    return [record.ops.op(0)] if isinstance(record, WriteSlices) else list(record.ops)


def confirmed(node: Node, now: int = 0) -> Node:
    tell(node, now, 2, HelloReply(node.boot, 0))
    return node


def test_a_member_is_a_node_and_its_incarnation() -> None:
    member = member_id(3, 5)
    assert (node_of(member), incarnation_of(member)) == (3, 5)


def test_a_vote_leaves_when_its_block_is_durable() -> None:
    node = confirmed(make_node())
    output = tell(node, 1000, 2, Vote(0, 1, 0, 0, False))
    assert output.block == 1 and len(output.records) >= 1
    assert sent(output, VoteReply) == []
    output = node.step(1001, 1001, Durable(1))
    assert [reply.granted for reply in sent(output, VoteReply)] == [True]


def test_a_beat_is_answered_while_the_disk_is_slow() -> None:
    """Only the group whose term is not durable yet waits."""
    node = confirmed(make_node(groups=2))
    tell(node, 1000, 2, Beats(1, 5, 0, (Beat(0, 1, 0),)))
    node.step(1001, 1001, Durable(1))
    output = tell(node, 1100, 2, Beats(2, 6, 0, (Beat(0, 1, 0), Beat(1, 1, 0))))
    answered = [[r.group for r in replies.replies] for replies in sent(output, BeatReplies)]
    assert answered == [[0]]
    output = node.step(1200, 1200, Durable(2))
    assert [[r.group for r in b.replies] for b in sent(output, BeatReplies)] == [[1]]


def test_a_round_that_is_due_soon_goes_with_the_answer_to_a_beat() -> None:
    node = confirmed(make_node())
    assert len(sent(node.step(1000, 1000, Tick()), Beats)) == 2
    half = SETTINGS.beat_ms // 2
    early = tell(node, 1000 + half - 1, 2, Beats(1, 5, 0, ()))
    assert (len(sent(early, BeatReplies)), sent(early, Beats)) == (1, [])
    late = tell(node, 1000 + half + 1, 3, Beats(1, 5, 0, ()))
    assert [len(envelope.messages) for to, envelope in late.envelopes if to == 3] == [2]
    assert len(sent(late, Beats)) == 2
    assert node.beat_at == 1000 + half + 1 + SETTINGS.beat_ms
    assert sent(tell(node, 1000 + half + 2, 2, Beats(2, 6, 0, ())), Beats) == []


def test_a_beat_that_was_overtaken_is_not_answered() -> None:
    node = confirmed(make_node())
    tell(node, 1000, 2, Beats(2, 5, 0, ()))
    assert sent(tell(node, 1001, 2, Beats(1, 4, 0, ())), BeatReplies) == []
    assert sent(tell(node, 1002, 2, Beats(2, 5, 0, ())), BeatReplies) == []
    assert len(sent(tell(node, 1003, 2, Beats(1, 1, 0, ()), boot=2), BeatReplies)) == 1


@pytest.mark.parametrize(
    "head", [{"cluster": 8}, {"target": member_id(1, 1)}, {"source": member_id(2, 1)}, {"boot": 1}]
)
def test_what_is_not_meant_for_this_life_is_dropped(head: dict[str, int]) -> None:
    node = confirmed(make_node())
    tell(node, 1000, member_id(2, 2), boot=2)
    source = head.pop("source", member_id(2, 2))
    output = tell(node, 1000, source, Vote(0, 1, 0, 0, False), **head)
    assert (output.records, output.envelopes) == ([], [])


def test_a_started_node_stands_aside_until_a_majority_knows_nothing_later() -> None:
    node = make_node(block=10, boot=2)
    output = tell(node, 1000, 2, Vote(0, 1, 0, 0, False))
    assert output.records == []
    output = node.step(1000, 1000, Tick())
    assert sent(output, Hello) == [Hello(10), Hello(10)]
    confirmed(node, 1001)
    assert tell(node, 1002, 2, Vote(0, 1, 0, 0, False)).records


def test_a_node_that_has_gone_back_is_told_so() -> None:
    """Its peer remembers what it said in its life before."""
    peer = make_node(2)
    tell(peer, 0, 1, boot=1, block=12)
    answer = sent(tell(peer, 5, 1, Hello(10), boot=2, block=10), HelloReply)
    assert answer == [HelloReply(2, 12)]
    node = make_node(1, block=10, boot=2)
    output = tell(node, 10, 2, answer[0])
    assert output.actions == [GoneBack(2, 12, 10)]
    assert tell(node, 1000, 2, Vote(0, 1, 0, 0, False)).records == []


def test_an_answer_to_an_earlier_start_confirms_nothing() -> None:
    node = make_node(block=10, boot=3)
    tell(node, 10, 2, HelloReply(2, 0))
    assert tell(node, 1000, 2, Vote(0, 1, 0, 0, False)).records == []


def test_blocks_of_the_same_life_are_not_taken_for_a_step_back() -> None:
    peer = make_node(2)
    tell(peer, 0, 1, boot=1, block=9)
    tell(peer, 5, 1, Hello(10), boot=2, block=10)
    assert sent(tell(peer, 6, 1, Hello(10), boot=2, block=11), HelloReply) == [HelloReply(2, 9)]


def alone() -> Node:
    """A group of one elects itself."""
    node = make_node(1, (1,))
    output = node.step(1, 1, Tick())  # at once: there is nobody to hear
    while output.block:
        output = node.step(2, 2, Durable(output.block))
    assert node.groups[0].role == LEADER
    return node


def test_a_group_of_one_leads_and_serves() -> None:
    node = alone()
    output = node.step(4000, 0, Request(0, Proposal(((1, 10, "x"),), "mine")))
    assert output.records and node.groups[0].commit == 1
    node.step(4001, 0, Durable(output.block))
    assert node.groups[0].commit == 2
    output = node.step(4002, 0, Request(0, Read("r")))
    assert output.actions == [ReadReady(0, "r", 2, True)]


def test_a_full_disk_refuses_events_and_leads_on_when_nobody_else_can() -> None:
    node = alone()
    node.step(4000, 0, Room(False))
    output = node.step(4001, 0, Request(0, Proposal(((1, 10, "x"),), "mine")))
    assert output.actions == [Refused(0, "mine", "no_room", 1)]
    node.step(5000, 0, Tick())
    assert node.groups[0].role == LEADER


def test_what_is_not_committed_is_limited() -> None:
    node = alone()
    item = (1, SETTINGS.uncommitted_bytes_max, "x")
    node.step(4000, 0, Request(0, Proposal((item,), 1)))
    output = node.step(4000, 0, Request(0, Proposal((item,), 2)))
    assert output.actions == [Refused(0, 2, "overloaded", 1)]


def test_a_clock_that_a_majority_finds_wrong_is_wrong() -> None:
    check = ClockCheck(500)
    check.take(2, 0, 2, -1000)
    assert not check.is_off(0)  # one against one
    check.take(3, 0, 2, -1000)
    assert check.is_off(0)
    check.take(3, 0, 2, 100)
    assert not check.is_off(0)  # the other one is
    check.take(3, 0, 2, -1000)
    assert not check.is_off(20_000)  # too long ago


def test_a_node_whose_clock_is_off_hands_over_or_steps_down() -> None:
    node = alone()
    node.clocks.take(2, 4000, 2, -1000)
    node.clocks.take(3, 4000, 2, -1000)
    node.step(4200, 0, Tick())
    assert node.groups[0].role != LEADER


def test_what_a_step_writes_keeps_its_order() -> None:
    """An op that is taken alone lies behind the ops before it that were taken as slices."""
    node = confirmed(make_node(make=partial(FastNode, chain_many=chain_many)))
    ops = ops_of([1, 1, 1])
    first = tell(node, 10, 2, Append(0, 1, 0, 0, 0, (ops[0],), 0))
    node.step(11, 11, Durable(first.block))
    slices = SliceOps(*map(np.array, ([0], [2], [1])), digests([ops[1]]), ONE, ONE, [ops[1].body])
    steady = AppendSlices(ONE, ONE, digests([ops[0]]), ONE, slices)
    output = tell(node, 12, 2, steady, Append(0, 1, 2, 1, ops[1].digest, (ops[2],), 1))
    assert [type(record) for record in output.records] == [WriteSlices, WriteOps]
    written = [op for record in output.records for op in writes_of(record)]
    assert [op.index for op in written] == [2, 3]


def test_settings_that_break_leases_are_named() -> None:
    assert Settings().check() == []
    assert Settings(lease_ms=740).check()
    assert Settings(sticky_ms=950).check()
    assert Settings(beat_ms=400).check()
    assert Settings(check_quorum_ms=500).check()


@pytest.mark.parametrize(
    ("member", "founders", "others", "speak"),
    [
        (member_id(3, 1), (1, 2, 3), (1, 2), (1,)),
        (member_id(2, 1), (1, 2, 3), (1, member_id(3, 1)), (member_id(3, 1),)),
        (4, (1, 2, 3), (1, member_id(2, 1), member_id(3, 1)), (1, member_id(3, 1))),
        (member_id(1, 1), (1,), (2, 3), (3,)),
        (4, (1,), (2, 3), (2,)),
        (7, (1, 2, 3), (2, 3, 4, 5, 6), (3, 4, 5, 6)),
    ],
)
def test_a_new_member_needs_the_word_of_all_others_but_one(
    member: int, founders: tuple[int, ...], others: tuple[int, ...], speak: tuple[int, ...]
) -> None:
    """Its log begins with those that the cluster was made of, who may all be others by now."""
    node = make_node(member, founders, boot=1, seeds=others)
    assert {m.block for m in sent(node.step(0, 0, Tick()), Hello)} == {0}
    for peer in speak:
        assert node.is_aside
        tell(node, 1, peer, HelloReply(node.boot, 0))
    assert not node.is_aside


def led() -> tuple[Node, int]:
    """Return a node that leads its group with the vote of node 2, and its time."""
    node, now = confirmed(make_node(1, (1, 2))), 0
    while node.groups[0].role != LEADER:
        now += 1_000
        output = node.step(now, now, Tick())
        while output.block or sent(output, PreVote) or sent(output, Vote):
            for one in sent(output, PreVote):
                output = tell(node, now, 2, PreVoteReply(0, one.term, True, one.term - 1))
            for one in sent(output, Vote):
                output = tell(node, now, 2, VoteReply(0, one.term, True, one.term))
            if output.block:
                output = node.step(now, now, Durable(output.block))
    return node, now


def test_a_follower_that_claims_more_than_there_is_is_not_believed() -> None:
    """A wrong number of one peer ended the leader's process."""
    far = 10**6
    node, now = led()
    group = node.groups[0]
    claim = BeatReply(0, group.term, far, far, 0, 0, True)
    tell(node, now, 2, AppendReply(0, group.term, 0, far, far, 0, 0, 0, 0, True))
    tell(node, now, 2, BeatReplies(1, now, now, (claim,)))
    assert (group.progress[2].match, group.commit) == (0, 0)
    node.step(now + 100, now + 100, Tick())
    tell(node, now + 100, 2, AppendReply(0, group.term, 0, 1, 1, 0, 0, 0, 0, True))
    assert (group.progress[2].match, group.commit) == (1, 1)


def test_a_founder_needs_for_groups_of_others_no_more_than_their_majority() -> None:
    """Two of seven are away, or have gone for good."""
    node = make_node(1, (2, 3, 4), boot=1, seeds=(2, 3, 4, 5, 6, 7))
    for peer in (2, 3):
        assert node.is_aside
        tell(node, 1, peer, HelloReply(node.boot, 0))
    assert not node.is_aside


def test_who_has_left_need_not_speak() -> None:
    node = make_node(1, (5, 6, 7), boot=1, seeds=(2, 3, 4, 5, 6, 7))
    for peer in (2, 3, 4):
        tell(node, 1, peer, HelloReply(node.boot, 0))
    assert node.is_aside
    node.meet((1, 2, 3, 4, 5))
    assert not node.is_aside
