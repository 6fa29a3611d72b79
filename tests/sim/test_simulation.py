"""Consensus under faults: seeds that must hold, and bugs that must not."""

from __future__ import annotations

import pytest

from tests.sim.runner import run_seed

SEEDS_PER_TEST = 25
# Seeds in which a rule was broken once.
REGRESSIONS = [47, 165, 194, 368, 930]


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, 201, SEEDS_PER_TEST))
def test_no_rule_is_broken(start: int) -> None:
    for seed in range(start, start + SEEDS_PER_TEST):
        result = run_seed(seed)
        assert not result.failure, f"python -m tests.sim --seed {seed}: {result.failure}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_was_once_broken_is_not(seed: int) -> None:
    result = run_seed(seed)
    assert not result.failure, f"python -m tests.sim --seed {seed}: {result.failure}"


def test_a_seed_runs_the_same_way_twice() -> None:
    assert run_seed(7, trace=True).trace == run_seed(7, trace=True).trace
