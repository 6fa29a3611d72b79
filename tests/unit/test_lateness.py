"""Who has not applied yet what it missed is given nothing to lead."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest

from meterd.actors.replicating.cluster_requests import ClusterRequests
from meterd.actors.replicating.handing_over import LEAVING, REPEAT_SECONDS, HandingOver
from meterd.actors.replicating.lateness import LATE_SECONDS, Lateness, Stranded
from meterd.actors.requests.split_answers import GONE_SECONDS, SplitAnswers
from meterd.core.cluster.members import first
from meterd.core.raft.events import TransferLeadership
from meterd.protocol.log_format import GROUP_COUNT

MEMBERS = first([(number, f"{number}:1", "") for number in (1, 2, 3)])
GROUPS = np.arange(GROUP_COUNT)


def index(value: int) -> Any:
    return np.full(GROUP_COUNT, value, np.int64)


def test_a_node_is_late_until_it_has_applied_what_was_committed_a_while_ago() -> None:
    late = Lateness(100.0)
    assert late.look(index(0), 100.0)
    late.commit(GROUPS, index(9).astype(np.uint64))
    assert late.look(index(9), 101.9)  # nothing is known yet
    assert late.look(index(8), 102.0)
    assert late.look(index(8), 104.0)
    late.commit(np.array([7]), np.array([50], np.uint64))
    assert not late.look(index(9), 106.0)  # what is new may be under way
    assert late.look(index(9), 108.0)
    assert not late.look(index(50), 110.0)


def test_what_is_applied_ahead_of_what_was_told_is_not_late() -> None:
    late = Lateness(0.0)
    late.look(index(5), LATE_SECONDS)
    assert not late.look(index(5), 2 * LATE_SECONDS)


def test_a_late_node_tells_the_others_again_and_again() -> None:
    sent: list[tuple[int, list[bytes]]] = []
    own = MEMBERS.nodes[1].member
    handing = HandingOver(own, lambda node, frames: not sent.append((node, frames)), print)
    for now in (10.0, 10.1, 10.0 + REPEAT_SECONDS):
        handing.decline(MEMBERS, now)
    assert sent == 2 * [(2, [LEAVING]), (3, [LEAVING])]
    assert not handing.leaving(10.0)  # it does not give up what it leads


def test_nobody_hands_over_to_a_node_that_declines() -> None:
    requests = object.__new__(ClusterRequests)
    requests.members = MEMBERS
    own, other = MEMBERS.nodes[1].member, MEMBERS.nodes[2].member
    node: Any = SimpleNamespace(member=own, view=lambda _: None)
    asked: list[Any] = []
    fields = {"node": 2, "groups": [5]}
    refused = requests._transfer(node, fields, asked.append, {other})  # type: ignore[arg-type]
    assert refused == {"begun": [], "refused": {"5": "unfit"}} and not asked
    begun = requests._transfer(node, fields, asked.append, ())  # type: ignore[arg-type]
    assert begun == {"begun": [5], "refused": {}}
    assert [one.event for one in asked] == [TransferLeadership(other)]


def meta(leader: int, leader_commit: int) -> Any:
    return SimpleNamespace(leader=leader, leader_commit=leader_commit, last=7)


@pytest.mark.parametrize("view", [meta(0, 7), meta(2, 8)])
def test_a_node_is_stranded_when_it_is_late_and_nothing_comes_of_the_meta_group(view: Any) -> None:
    """It knows of no leader, or lacks for a while what that has committed."""
    stranded = Stranded()
    assert not stranded.look(True, view, 10.0)
    assert not stranded.look(True, view, 9.9 + LATE_SECONDS)
    assert stranded.look(True, view, 10.0 + LATE_SECONDS)
    assert not stranded.look(False, view, 12.5)
    assert not stranded.look(True, view, 13.0)


def test_a_node_that_is_late_only_is_not_stranded() -> None:
    stranded = Stranded()
    for now in (10.0, 20.0, 30.0):
        assert not stranded.look(True, meta(2, 7), now)


def test_who_is_relieved_gives_nothing_to_those_that_are_late_and_says_nothing() -> None:
    """The supervisor waits for `handed_over` only when the node is to stop."""
    own, two, three = (MEMBERS.nodes[number].member for number in (1, 2, 3))
    said: list[str] = []
    handing = HandingOver(own, lambda *_: True, said.append)
    handing.take(two, 10.0)
    there: list[Any] = []

    class Relief:
        def due(self, _node: Any, leaving: Any, _now: int) -> list[Any]:
            there.extend({own, two, three} - set(leaving))
            return [TransferLeadership(three)]

    handing._relief = Relief()  # type: ignore[assignment]
    asked: list[Any] = []
    handing.relieve(SimpleNamespace(), 10.1, asked.append)  # type: ignore[arg-type]
    assert there == [three] and asked == [TransferLeadership(three)] and not said


@pytest.mark.parametrize(("leader", "ended"), [(1, True), (3, False)])
def test_a_part_for_who_leads_no_more_is_not_waited_for(leader: int, ended: bool) -> None:
    """Usage has heard of the new leader, ingest has not."""
    answered: list[Any] = []
    usage: Any = SimpleNamespace(
        leader_map=SimpleNamespace(own=1), answer_requests=lambda *given: answered.append(given)
    )
    splits = SplitAnswers(usage)
    leaders = [1] * GROUP_COUNT
    leaders[5] = leader
    splits.led(leaders)
    now = time.monotonic()
    table = msgpack.packb([now + 10, [[bytes(16), 3, [5], 1, 0]]])
    origin = msgpack.packb([now, [], bytes(2), bytes(2), None])
    splits.on_split([b"split", table, b"events", origin])
    splits.turn(now + GONE_SECONDS + 1)
    assert bool(answered) == ended
