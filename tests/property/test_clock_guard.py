"""The clock guard: whatever a wall clock shows, nothing expires before its time; and it goes on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meterd.core.state.clock_guard import ClockGuard, Moment

HOUR = 3_600_000_000_000
DAY = 24 * HOUR
LIMIT = 2 * DAY
BEGIN = 20_000 * DAY

jumps = st.integers(-400 * 24, 400 * 24).map(lambda hours: hours * HOUR)
passings = st.integers(0, LIMIT // 2)


class Guarded(RuleBasedStateMachine):
    """A node whose clock jumps and runs; `logged` is the newest time that expiry went by.

    `bound`: what may at the most be expired by, if it only runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.true = BEGIN  # also what the running clock shows, but for a constant
        self.ahead = 0  # of the wall clock
        self.even = 0  # for how long it has run so
        self.logged = BEGIN
        self.bound = BEGIN
        self.started_at = 0
        self.start()

    def start(self) -> None:
        self.guard = ClockGuard(LIMIT)
        self.started_at = self.true
        self.even = 0
        self.bound = max(self.logged, min(self.wall, self.logged + LIMIT))
        self.look()

    @property
    def wall(self) -> int:
        return self.true + self.ahead

    def look(self) -> int:
        now = Moment(self.wall, self.true - self.started_at)
        self.believed = self.guard.look(now, self.logged)
        self.logged = max(self.logged, self.believed)
        return self.believed

    @rule(hours=st.integers(0, 30))
    def time_passes(self, hours: int) -> None:
        for _ in range(hours):
            self.true += HOUR
            self.even += HOUR
            self.bound += HOUR
            if self.even >= LIMIT:
                self.bound = max(self.bound, self.wall)
            self.look()

    @rule(jump=jumps)
    def jumps(self, jump: int) -> None:
        self.ahead += jump
        self.even = 0 if jump else self.even
        self.look()

    @rule()
    def is_set_right(self) -> None:
        self.ahead, self.even = 0, 0 if self.ahead else self.even
        self.look()

    @rule(off=passings)
    def restarts(self, off: int) -> None:
        self.true += off
        self.start()

    @rule()
    def is_accepted(self) -> None:
        self.guard.accept(Moment(self.wall, self.true - self.started_at))
        self.bound = max(self.bound, self.wall)
        assert self.look() == self.wall
        assert self.guard.ahead == 0

    @precondition(lambda self: self.even >= LIMIT)
    @rule()
    def has_run_evenly(self) -> None:
        assert self.look() == self.wall and self.guard.ahead == 0

    @invariant()
    def nothing_is_early(self) -> None:
        assert self.believed <= self.wall
        assert self.logged <= self.bound

    @invariant()
    def it_says_when_it_does_not_believe(self) -> None:
        assert (self.guard.ahead > 0) == (self.wall - self.believed > LIMIT)


TestGuarded = Guarded.TestCase
TestGuarded.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# A jump of nothing is none: the clock would run evenly for longer than is said here.
@given(st.lists(st.tuples(jumps.filter(bool), st.integers(1, LIMIT // HOUR - 1)), max_size=20))
def test_a_running_node_never_expires_early(steps: list[tuple[int, int]]) -> None:
    guard, true, ahead = ClockGuard(LIMIT), BEGIN, 0
    guard.look(Moment(true, 0), 0)
    for jump, hours in steps:
        ahead = max(ahead + jump, -BEGIN // 2)
        for _ in range(hours):
            true += HOUR
            assert guard.look(Moment(true + ahead, true - BEGIN), 0) <= true
    assert guard.look(Moment(true, true - BEGIN), 0) == true, "it is right again"


@pytest.mark.parametrize("rate", [1.01, 2, 24, 1000])
def test_a_clock_that_runs_too_fast_is_not_followed(rate: float) -> None:
    guard = ClockGuard(LIMIT)
    for hour in range(400):
        wall = BEGIN + int(hour * HOUR * rate)
        assert guard.look(Moment(wall, hour * HOUR), 0) <= BEGIN + hour * HOUR


def test_a_node_that_was_off_goes_on_when_the_log_or_an_operator_or_time_says_so() -> None:
    late = BEGIN + 100 * DAY

    def started() -> ClockGuard:
        guard = ClockGuard(LIMIT)
        assert guard.look(Moment(late, 0), BEGIN) == BEGIN
        assert guard.ahead == 100 * DAY
        assert guard.look(Moment(late + HOUR, HOUR), BEGIN) == BEGIN + HOUR
        return guard

    guard = started()
    assert guard.look(Moment(late + 2 * HOUR, 2 * HOUR), late + HOUR) == late + 2 * HOUR
    assert guard.ahead == 0
    guard = started()
    guard.accept(Moment(late + 2 * HOUR, 2 * HOUR))
    assert guard.look(Moment(late + 3 * HOUR, 3 * HOUR), BEGIN) == late + 3 * HOUR
    guard = started()
    assert guard.look(Moment(late + LIMIT - 1, LIMIT - 1), BEGIN) == BEGIN + LIMIT - 1
    assert guard.look(Moment(late + LIMIT, LIMIT), BEGIN) == late + LIMIT
    assert guard.ahead == 0


def test_a_node_whose_clock_begins_in_1970_believes_it_once_it_is_set() -> None:
    guard = ClockGuard(LIMIT)
    assert guard.look(Moment(0, 0), BEGIN) == 0
    assert guard.look(Moment(BEGIN + DAY, HOUR), BEGIN) <= BEGIN + DAY
    assert guard.ahead == 0


def test_what_is_not_known_is_believed_and_a_little_is_nothing_to_speak_of() -> None:
    guard = ClockGuard(LIMIT)
    assert guard.look(Moment(BEGIN, 5), 0) == BEGIN
    assert guard.look(Moment(BEGIN + DAY, 6), BEGIN) == BEGIN + 1
    assert guard.ahead == 0
    guard = ClockGuard(LIMIT)
    assert guard.look(Moment(BEGIN + DAY, 5), BEGIN) == BEGIN + DAY
