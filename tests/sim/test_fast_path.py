"""The fast path does what the scalar engine does: the same seed, the same steps, with and without.

A step is compared whole: records, messages and actions, written out for one group each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meterd.core.raft.fast_node import FastNode
from meterd.core.raft.node import Node
from meterd.core.raft.slices import WriteSlices
from tests.sim.plan import Plan, draw, with_lost_votes
from tests.sim.runner import run_plan


class Share:
    """How many of the ops proposed for many groups at once went the fast way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fast = self.all = 0
        original = FastNode._propose

        def propose(node: FastNode, event: Any) -> None:
            before = written_fast(node)
            original(node, event)
            self.fast += written_fast(node) - before
            self.all += len(event.causes)

        monkeypatch.setattr(FastNode, "_propose", propose)


class Beats:
    """How many beats about a group, and answers to them, and how many of them brought it back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all = self.slow = 0
        for name, rows in (("_answer_beats", "beats"), ("_take_beat_replies", "replies")):
            monkeypatch.setattr(FastNode, name, self._counting(getattr(FastNode, name), rows))
        for name in ("_on_beat", "_on_beat_reply"):
            monkeypatch.setattr(Node, name, self._slow(getattr(Node, name)))

    def _counting(self, original: Any, rows: str) -> Any:
        def counted(node: FastNode, source: int, message: Any) -> Any:
            self.all += len(getattr(message, rows))
            return original(node, source, message)

        return counted

    def _slow(self, original: Any) -> Any:
        def counted(node: Node, *arguments: Any) -> Any:
            self.slow += isinstance(node, FastNode)
            return original(node, *arguments)

        return counted


def written_fast(node: FastNode) -> int:
    return sum(len(one.ops.groups) for one in node._records if isinstance(one, WriteSlices))


def assert_same(plan: Plan) -> None:
    scalar, fast = run_plan(replace(plan)), run_plan(replace(plan, fast=True))
    assert not scalar.failure and not fast.failure, (plan.seed, scalar.failure, fast.failure)
    for number, (one, other) in enumerate(zip(scalar.recorded, fast.recorded, strict=False)):
        assert one == other, (plan.seed, number)
    assert len(scalar.recorded) == len(fast.recorded)


@pytest.mark.slow
@pytest.mark.parametrize("start", [1, 7, 13])
def test_the_same_steps_under_faults(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    share = Share(monkeypatch)
    for seed in range(start, start + 6):
        assert_same(replace(draw(seed), groups=6, spread=True, records_steps=True))
    assert share.fast > 0.2 * share.all


@pytest.mark.slow
def test_the_same_steps_when_votes_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    share = Share(monkeypatch)
    for seed in range(1, 7):
        assert_same(with_lost_votes(seed, groups=6, spread=True, records_steps=True))
    assert share.fast > 0.2 * share.all


@pytest.mark.slow
def test_nearly_all_is_fast_when_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    share, beats = Share(monkeypatch), Beats(monkeypatch)
    quiet: dict[str, Any] = {"faults": [], "operations": [], "loss": 0, "spike": 0}
    quiet |= {"duplication": 0, "delay_us": 200, "fsync_us": 300, "clients": 1, "fault_ms": 6000}
    assert_same(replace(draw(1), groups=8, spread=True, records_steps=True, **quiet))
    assert share.fast > 0.6 * share.all  # some it does not lead
    assert 0 < beats.slow < 0.2 * beats.all
