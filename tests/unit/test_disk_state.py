"""When a node stops taking events because space is short, and when it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.housekeeping.disk_state import (
    INODES_HARD,
    RATE_ASSUMED,
    STATES,
    DiskStanding,
    Limits,
    Space,
    next_check,
    next_standing,
)

HOLD = 10.0
LIMITS = Limits(
    warn_free=2_000,
    warn_free_ratio=0.0,
    stop_free=500,
    stop_free_ratio=0.0,
    hard_free=100,
    resume_margin=300,
    resume_hold=HOLD,
    inode_warn=10_000,
    inode_warn_ratio=0.0,
    inode_stop=1_000,
    inode_resume=2_000,
)


def space(free: int, inodes_free: int = 10**6, inodes: int = 10**6) -> Space:
    return Space(free, 10**6, inodes_free, inodes)


def after(before: DiskStanding, free: int, at: float, **more: object) -> DiskStanding:
    return next_standing(before, space(free), LIMITS, bool(more.get("no_room")), at)


@pytest.mark.parametrize(
    ("before", "free", "then"),
    [
        ("ok", 2_000, "ok"),
        ("ok", 1_999, "warn"),
        ("ok", 499, "stop"),
        ("ok", 99, "hard"),
        ("warn", 2_199, "warn"),
        ("warn", 2_200, "ok"),
        ("warn", 0, "hard"),
        ("stop", 99, "hard"),
        ("stop", 100, "stop"),
        ("hard", 199, "hard"),
        ("hard", 200, "stop"),
        ("hard", 10_000, "stop"),  # for the time being
        ("stop", 10_000, "stop"),
    ],
)
def test_a_state_is_left_only_above_where_it_was_entered(before, free, then):
    assert after(DiskStanding(before), free, 0.0).state == then


def test_events_are_taken_again_when_there_was_room_for_a_while():
    standing = after(DiskStanding(), 499, 0.0)
    assert (standing.state, standing.cause) == ("stop", "space")
    standing = after(standing, 799, 1.0)
    assert standing.good_since is None
    standing = after(standing, 800, 2.0)
    assert (standing.state, standing.good_since) == ("stop", 2.0)
    standing = after(standing, 799, 5.0)  # too little again: the time begins anew
    standing = after(standing, 800, 6.0)
    assert after(standing, 800, 6.0 + HOLD - 0.1).state == "stop"
    assert after(standing, 800, 6.0 + HOLD).state == "warn"
    assert after(standing, 2_200, 6.0 + HOLD).state == "ok"


def test_a_writer_without_room_stops_events_although_there_seems_to_be_some():
    standing = after(DiskStanding(), 10**5, 0.0, no_room=True)
    assert (standing.state, standing.cause) == ("stop", "no_room")
    standing = after(standing, 10**5, 100.0, no_room=True)
    standing = after(standing, 10**5, 101.0)
    assert standing.state == "stop"
    assert after(standing, 10**5, 101.0 + HOLD).state == "ok"


def test_inodes_count_like_space():
    def state(before: str, inodes_free: int, at: float = 0.0) -> DiskStanding:
        return next_standing(DiskStanding(before), space(10**6, inodes_free), LIMITS, False, at)

    assert state("ok", 9_999).state == "warn"
    assert (state("ok", 999).state, state("ok", 999).cause) == ("stop", "inodes")
    assert state("ok", INODES_HARD - 1).state == "hard"
    assert state("hard", INODES_HARD).state == "hard"
    assert state("stop", 1_999).good_since is None
    assert state("stop", 2_000, 3.0).good_since == 3.0


def test_a_file_system_without_inodes_has_no_limit_of_them():
    assert next_standing(DiskStanding(), space(10**6, 0, 0), LIMITS, False, 0.0).state == "ok"


def test_parts_of_the_file_system_count_where_they_are_more():
    limits = Limits(2_000, 0.15, 500, 0.02, 100, 300, HOLD, 0, 0.1, 0, 0)
    large = 10**6
    assert (limits.warn_at(large), limits.stop_at(large)) == (150_000, 20_000)
    assert (limits.warn_at(1_000), limits.stop_at(1_000)) == (2_000, 500)
    few = Space(large, large, 99_999, 10**6)
    assert next_standing(DiskStanding(), few, limits, False, 0.0).state == "warn"


def test_limits_that_do_not_fit_a_small_file_system_are_lowered():
    assert LIMITS.resume_at(10**6) == 800
    assert LIMITS.resume_at(700) == 600  # 800 could never be free
    assert LIMITS.hard_at(10**6) == 100
    tiny = Limits(50, 0.0, 50, 0.0, 100, 300, HOLD, 0, 0.0, 0, 0)
    assert tiny.hard_at(10**6) == 25
    # Giving the ballast back must not let events in again.
    for ballast in (0, 100, 10**9):
        kept = LIMITS.reserve(ballast, 10**6)
        assert kept <= ballast
        assert LIMITS.hard_at(10**6) + kept < LIMITS.resume_at(10**6)


FREE = st.one_of(st.integers(0, 3_000), st.sampled_from([99, 100, 200, 499, 500, 799, 800, 2_200]))
STEPS = st.lists(
    st.tuples(FREE, st.integers(0, 12_000), st.booleans(), st.floats(0.0, 20.0)), max_size=40
)


def walk(steps: Iterable[tuple[int, int, bool, float]]) -> list[tuple[float, DiskStanding]]:
    """The life of a disk: (time, standing) after each look."""
    now, standing, found = 0.0, DiskStanding(), []
    for free, inodes_free, no_room, seconds in steps:
        now += seconds
        standing = next_standing(standing, space(free, inodes_free), LIMITS, no_room, now)
        found.append((now, standing))
    return found


def rank(standing: DiskStanding) -> int:
    return STATES.index(standing.state)


@given(STEPS)
def test_looking_again_at_once_changes_nothing(steps):
    for (now, standing), (free, inodes_free, no_room, _) in zip(walk(steps), steps, strict=True):
        again = next_standing(standing, space(free, inodes_free), LIMITS, no_room, now)
        assert again == standing


@given(STEPS, st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 5_000)), max_size=40))
def test_more_space_never_makes_it_worse(steps, more):
    """Of two disks with the same life but that one always has more, that one is never worse."""
    richer = [
        (free + extra[0], inodes_free + extra[1], no_room, seconds)
        for (free, inodes_free, no_room, seconds), extra in zip(steps, more, strict=False)
    ]
    steps = steps[: len(richer)]
    for (_, poor), (_, rich) in zip(walk(steps), walk(richer), strict=True):
        assert rank(rich) <= rank(poor)


@given(STEPS)
def test_there_is_no_flapping(steps):
    """Events are refused for at least the hold, and refused again only when it is short again."""
    stopped_at = None
    for (now, standing), step in zip(walk(steps), steps, strict=True):
        refusing = standing.state in ("stop", "hard")
        short = step[0] < LIMITS.stop_free or step[1] < LIMITS.inode_stop or step[2]
        if refusing and stopped_at is None:
            assert short
            stopped_at = now
        elif not refusing and stopped_at is not None:
            assert now - stopped_at >= HOLD
            assert step[0] >= LIMITS.resume_at(10**6)
            assert step[1] >= LIMITS.inode_resume
            stopped_at = None
        assert refusing or not short


@given(st.lists(st.integers(500, 799), min_size=1), st.floats(0.0, 5.0))
def test_a_disk_at_the_limit_changes_its_state_once_at_most(frees: Sequence[int], step: float):
    """Free space that goes up and down between the limit and its margin."""
    for first in ("ok", "warn", "stop", "hard"):
        standing, changes, now = DiskStanding(first), 0, 0.0
        for free in frees:
            now += step
            after_it = after(standing, free, now)
            changes += after_it.state != standing.state
            standing = after_it
        assert changes <= 1


@given(st.integers(0, 10**12), st.floats(0, 1e12), st.floats(0.1, 600), st.floats(0.01, 1))
def test_nobody_can_fill_the_disk_between_two_looks(free, rate, longest, shortest):
    """At the rate measured, or at any that is to be expected, a part of the way is left."""
    found = Space(free, 10**13, 0, 0)
    interval = (shortest, longest)
    seconds = next_check(DiskStanding(), found, LIMITS, rate, interval)
    assert min(interval) <= seconds <= max(interval)
    if seconds > min(interval):
        assert free - seconds * max(rate, RATE_ASSUMED) > LIMITS.stop_free
    if free < LIMITS.stop_free:
        assert seconds == min(interval)
    refusing = next_check(DiskStanding("stop"), found, LIMITS, rate, interval)
    assert refusing <= min(seconds, 1.0)
