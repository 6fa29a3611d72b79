"""When a node stops taking events because space is short, and when it goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.disk_state import (
    INODES_STOP,
    INODES_WARN,
    STATES,
    Limits,
    Space,
    next_check,
    next_state,
)

LIMITS = Limits(warn_free=2_000, stop_free=500, resume_margin=300)


def space(free: int, inodes_free: int = 10**6, inodes: int = 10**6) -> Space:
    return Space(free, 10**6, inodes_free, inodes)


@pytest.mark.parametrize(
    ("before", "free", "after"),
    [
        ("ok", 2_000, "ok"),
        ("ok", 1_999, "warn"),
        ("ok", 499, "stop"),
        ("warn", 2_199, "warn"),
        ("warn", 2_200, "ok"),
        ("stop", 799, "stop"),
        ("stop", 800, "warn"),
        ("stop", 2_199, "warn"),
        ("stop", 2_200, "ok"),
    ],
)
def test_a_state_is_left_only_above_where_it_was_entered(before, free, after):
    assert next_state(before, space(free), LIMITS) == after


def test_inodes_count_like_space():
    assert next_state("ok", space(10**6, INODES_WARN - 1), LIMITS) == "warn"
    assert next_state("ok", space(10**6, INODES_STOP - 1), LIMITS) == "stop"
    assert next_state("stop", space(10**6, INODES_STOP), LIMITS) == "stop"


def test_a_file_system_without_inodes_has_no_limit_of_them():
    assert next_state("ok", space(10**6, 0, 0), LIMITS) == "ok"


def test_short_space_is_looked_at_more_often():
    assert next_check("ok", 10.0) == 10.0
    assert next_check("stop", 10.0) < 1.0
    assert next_check("warn", 0.1) == 0.1


@given(st.sampled_from(STATES), st.integers(0, 5_000), st.integers(0, 20_000))
def test_the_state_settles(before, free, inodes_free):
    """Looking again at the same space changes nothing: no flapping without cause."""
    now = space(free, inodes_free)
    after = next_state(before, now, LIMITS)
    assert next_state(after, now, LIMITS) == after
    # More space never makes it worse.
    better = space(free + 1, inodes_free + 1)
    assert STATES.index(next_state(after, better, LIMITS)) <= STATES.index(after)
