"""What an answer by lease must hold: all that other nodes may have shown before."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meterd.actors.frames import lease_words
from meterd.actors.questions.reads import Reads, Waiting
from meterd.actors.replicating.read_rounds import ReadRounds
from meterd.actors.replication import Replication
from meterd.protocol.log_format import GROUP_COUNT

GROUP = 3


class Node:
    """The read side of a node that leads everything, and its replication's lease words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        words = np.zeros((GROUP_COUNT, 2), np.int64)
        monkeypatch.setattr(lease_words, "_shared", words)
        self.sent: list[Any] = []
        self.answered: list[str] = []
        self.groups = SimpleNamespace(index=np.full(GROUP_COUNT, 99, np.uint64))
        nodes = np.ones(GROUP_COUNT, np.uint8)
        self.leader_map = SimpleNamespace(alone=False, own=1, nodes=nodes)
        self.rounds = ReadRounds(SimpleNamespace())  # type: ignore[arg-type]
        self.reads = Reads(self)  # type: ignore[arg-type]
        words[:, lease_words.UNTIL] = lease_words.FOREVER

    def send(self, actor: str, frames: Any) -> None:
        self.sent.append((actor, frames))

    def ask(self) -> None:
        waiting = Waiting(lambda: self.answered.append("ready"), lambda e: self.answered.append(""))
        self.reads.when_fresh([GROUP], math.inf, waiting)


def test_what_is_committed_and_not_applied_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node may have applied it, and shown it."""
    node = Node(monkeypatch)
    node.ask()
    assert node.answered == ["ready"] and node.reads.holds(GROUP)
    node.rounds.committed(np.array([GROUP]), np.array([100]))
    assert not node.reads.holds(GROUP)
    node.ask()
    assert node.answered == ["ready"] and not node.sent  # nobody has to be asked
    node.groups.index[GROUP] = 100
    node.reads.applied()
    assert node.answered == ["ready"] * 2 and node.reads.holds(GROUP)


def test_what_must_be_seen_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    for index in (100, 7):  # the first op of a term, when leases are written anew
        node.rounds.committed(np.array([GROUP]), np.array([index]))
    assert lease_words.must_see(lease_words.shared(), np.array([GROUP])).tolist() == [100]


def test_it_is_written_before_another_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replication = object.__new__(Replication)
    replication._peers = object()  # type: ignore[assignment]
    replication._blocks, replication._records, replication._commits = [], [], True
    replication._committed = np.zeros(GROUP_COUNT, np.int64)
    replication._reads = SimpleNamespace(  # type: ignore[assignment]
        committed=lambda groups, index: order.append("word"),
        refused=lambda refused: None,
        leaving=lambda envelope: None,
    )
    monkeypatch.setattr(replication, "_send_envelope", lambda *_: order.append("envelope"))
    monkeypatch.setattr(
        Replication, "replicas", SimpleNamespace(leads_any=lambda groups: False), raising=True
    )
    committed = np.array([GROUP]), np.array([100])
    step = SimpleNamespace(
        appends=[], envelopes=[(2, object())], committed=committed, refused=[], actions=[]
    )
    replication._carry_out(step)  # type: ignore[arg-type]
    assert order == ["word", "envelope"]


def test_an_answer_that_comes_before_the_log_is_open_has_no_digest_to_compare() -> None:
    """It was asked for by an earlier process, and must not end this one."""
    assert object.__new__(Replication)._digest_at(GROUP, 1) is None
