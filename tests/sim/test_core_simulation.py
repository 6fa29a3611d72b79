"""The node under faults: real log, recovery, wire and state; seeds that must hold, bugs seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.core import PAGE
from tests.sim.core_mutants import BUGS
from tests.sim.core_world import draw_core, run_core, run_core_plan
from tests.sim.runner import shrink
from tests.sim.tally import Tally

SEEDS, SEEDS_PER_TEST = 20, 5
# Shorter than a seed of `make sim-core`, which has 3 to 6 s of faults.
FAULT_MS = 1500
# Seeds in which a rule was broken once.
REGRESSIONS = [103, 306, 2074, 2764, 4000]


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, SEEDS, SEEDS_PER_TEST))
def test_no_rule_is_broken(start: int) -> None:
    tally = Tally(PAGE)
    for seed in range(start, start + SEEDS_PER_TEST):
        result = run_core_plan(replace(draw_core(seed), fault_ms=FAULT_MS))
        assert not result.failure, f"seed {seed}: {result.failure}"
        tally.take(result)
    assert tally.counts["crash"] and tally.counts["events"] and tally.counts["logs read again"]
    assert tally.medians()["events"] > 0
    assert all(name in tally.text() for name in PAGE.operations)


@pytest.mark.slow
@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_was_once_broken_is_not(seed: int) -> None:
    result = run_core_plan(draw_core(seed))
    assert not result.failure, f"seed {seed}: {result.failure}"


# Bugs that few seeds show; `tests.sim.core_mutants` tries all.
NOTICED = {
    "the_log_is_not_synced": "Corrupt",
    "what_is_durable_is_applied": "I5",
    "a_block_is_durable_with_its_first_record": "I8",
}
SEEDS_TO_NOTICE = 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTICED)
def test_a_bug_is_noticed(name: str) -> None:
    needed, result = BUGS.seeds_needed(name, SEEDS_TO_NOTICE)
    assert needed, "not noticed"
    assert NOTICED[name] in result.failure


def test_a_seed_runs_the_same_way_twice() -> None:
    trace = run_core(12, trace=True).trace
    assert trace and trace == run_core(12, trace=True).trace


@pytest.mark.slow
def test_shrinking_keeps_the_failure() -> None:
    with BUGS.applied("what_is_durable_is_applied"):
        whole, small = run_core(1), shrink(1, run=run_core)
    assert small.failure and small.trace
    assert len(small.acts) <= len(whole.acts)
