"""A node that is no member of a group knows its leader by that node's word."""

from __future__ import annotations

import numpy as np
import pytest

from meterd.actors.replicating import led_notes
from meterd.actors.replicating.led_notes import LED, LedNotes
from meterd.core.cluster.members import Members, first
from meterd.core.raft.events import MetLeader
from meterd.core.raft.node import Request
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.raft_messages import Configuration
from tests.unit.test_replicas import Node

ALL = Configuration((1, 2, 3))


def members(count: int) -> Members:
    return first([(number, f"{number}:1", "") for number in range(1, count + 1)])


def told(node: Node, source: int, groups: list[int], terms: list[int]) -> list[Request]:
    frames = [LED, np.array(groups, "<u2").tobytes(), np.array(terms, "<u4").tobytes()]
    return led_notes.take(node.replicas, source, frames)


def test_the_newest_word_counts_where_one_is_no_member() -> None:
    replicas = (node := Node(4, ALL)).replicas
    told(node, 2, [5, 6], [3, 3])
    assert replicas.leaders[[4, 5, 6]].tolist() == [0, 2, 2]
    assert replicas.map_version == 6
    told(node, 1, [5], [2])  # was late
    told(node, 3, [6], [4])
    assert replicas.leaders[[5, 6]].tolist() == [2, 3]
    assert replicas.map_version == 7


def test_a_member_knows_by_itself() -> None:
    node = Node(1, ALL)
    told(node, 2, [5], [3])
    assert not node.replicas.leaders.any()


def test_a_member_asks_a_leader_that_it_does_not_know_as_a_member() -> None:
    """All that it knows of may have changed while it was away."""
    node = Node(1, ALL)
    assert told(node, 2, [5], [3]) == []
    assert told(node, 4, [5], [3]) == [Request(5, MetLeader(4))]
    assert not node.replicas.leaders.any()


@pytest.mark.parametrize(
    "frames",
    [[LED], [LED, b"\x05", b""], [LED, b"\x05\x00", b"\x01\x00"], [LED, b"\xff\xff", b"\1\0\0\0"]],
)
def test_what_makes_no_sense_is_passed_over(frames: list[bytes]) -> None:
    node = Node(4, ALL)
    led_notes.take(node.replicas, 2, frames)
    assert not node.replicas.leaders.any()


def test_it_is_told_when_it_has_changed_and_once_a_second() -> None:
    node, notes = Node(1), LedNotes()
    assert notes.due(node.replicas, members(3), 9.0) is None  # everybody is a member of all
    assert notes.due(node.replicas, members(4), 10.0) == [LED, b"", b""]
    node.elect()
    assert notes.due(node.replicas, members(4), 10.01) is None
    said = notes.due(node.replicas, members(4), 10.1)
    assert said is not None
    other = Node(4, ALL)
    led_notes.take(other.replicas, 1, said)
    assert other.replicas.leaders.tolist() == [1] * GROUP_COUNT
    assert notes.due(node.replicas, members(4), 10.5) is None
    assert notes.due(node.replicas, members(4), 11.2) == said
