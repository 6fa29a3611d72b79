"""Consensus under faults: seeds that must hold, and bugs that must not."""

from __future__ import annotations

import pytest

from tests.sim.mutants import BUGS
from tests.sim.plan import draw, with_lost_votes
from tests.sim.runner import run_plan, run_seed, shrink

SEEDS, SEEDS_PER_TEST = 120, 20
# Seeds in which a rule was broken once, with faults at the pace of the product's timers.
REGRESSIONS = [132, 318, 47, 165, 194, 368, 749, 930, 2327]
# Likewise, of those that run today.
HURRIED_REGRESSIONS = [19031]


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, SEEDS, SEEDS_PER_TEST))
def test_no_rule_is_broken(start: int) -> None:
    for seed in range(start, start + SEEDS_PER_TEST):
        result = run_seed(seed)
        assert not result.failure, f"python -m tests.sim --seed {seed}: {result.failure}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_was_once_broken_is_not(seed: int) -> None:
    result = run_plan(draw(seed))
    assert not result.failure, f"seed {seed}: {result.failure}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", HURRIED_REGRESSIONS)
def test_what_was_broken_lately_is_not(seed: int) -> None:
    result = run_seed(seed)
    assert not result.failure, f"seed {seed}: {result.failure}"


# Bugs that few seeds show; tests.sim.mutants tries all of them, the schedules the rare ones.
NOTICED = {
    "term_and_vote_are_not_written": "I8",
    "vote_leaves_before_it_is_durable": "I8",
    "acks_before_it_is_durable": "I8",
    "leader_counts_itself_before_its_disk": "I3",
    "learners_are_counted": "I3",
    "new_leader_reads_at_once": "I14",
    "follower_commits_up_to_its_own_last": "I5",
    "old_durability_counts_for_new_ops": "I7",
    "damaged_ops_are_acked": "I8",
    "snapshot_is_acked_before_the_switch": "I8",
}
SEEDS_TO_NOTICE = 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTICED)
def test_a_bug_is_noticed(name: str) -> None:
    needed, result = BUGS.seeds_needed(name, SEEDS_TO_NOTICE)
    assert needed, "not noticed"
    assert NOTICED[name] in result.failure


@pytest.mark.slow
def test_lost_votes_break_no_rule() -> None:
    lost = 0
    for seed in range(1, 41):
        result = run_plan(with_lost_votes(seed))
        assert not result.failure, (seed, result.failure)
        lost += result.counts["promises lost"]
    assert lost > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lost_tail_is_counted", "lost_tail_is_vouched_for_by_an_old_op"])
def test_a_lost_vote_that_is_forgotten_is_noticed(name: str) -> None:
    with BUGS.applied(name):
        assert any(run_plan(with_lost_votes(seed)).failure for seed in range(1, 41))


def test_shrinking_keeps_the_failure() -> None:
    with BUGS.applied("acks_before_it_is_durable"):
        whole, small = run_seed(1), shrink(1)
    assert small.failure and small.trace
    assert len(small.acts) <= len(whole.acts)


def test_a_seed_runs_the_same_way_twice() -> None:
    trace = run_seed(7, trace=True).trace
    assert trace and trace == run_seed(7, trace=True).trace
