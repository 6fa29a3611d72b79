"""How many gatherings are under way, and when those that nobody decides count no more."""

from __future__ import annotations

from meterd.actors.requests.under_way import (
    GATHERINGS_MAX,
    SECONDS_MAX,
    SMALL_EVENTS,
    SMALL_SECONDS_MAX,
    UnderWay,
)


def filled(now: float) -> UnderWay:
    under_way = UnderWay()
    for _ in range(GATHERINGS_MAX):
        assert not under_way.full(now, SMALL_EVENTS)
        under_way.add(now)
    return under_way


def test_it_is_full_until_one_is_decided() -> None:
    under_way = filled(10.0)
    assert under_way.full(10.0, SMALL_EVENTS)
    under_way.decided(1)
    assert not under_way.full(10.0, SMALL_EVENTS)


def test_a_small_gathering_waits_for_all_that_are_under_way() -> None:
    under_way = UnderWay()
    assert not under_way.full(10.0, 1)
    under_way.add(10.0)
    under_way.add(10.0)
    assert under_way.full(10.0, SMALL_EVENTS - 1) and not under_way.full(10.0, SMALL_EVENTS)
    under_way.decided(1)
    assert under_way.full(10.0, 1)
    under_way.decided(1)
    assert not under_way.full(10.0, 1)


def test_what_nobody_decides_counts_no_more_after_a_while() -> None:
    under_way = filled(10.0)
    assert under_way.full(10.0 + SECONDS_MAX / 2, SMALL_EVENTS)
    assert not under_way.full(under_way.until(SMALL_EVENTS), SMALL_EVENTS)


def test_a_small_gathering_does_not_wait_long_for_what_nobody_decides() -> None:
    under_way = UnderWay()
    under_way.add(10.0)
    assert under_way.until(1) <= 10.0 + SMALL_SECONDS_MAX
    assert under_way.full(under_way.until(1) - 0.001, 1)
    assert not under_way.full(under_way.until(1), 1)


def test_more_may_be_decided_than_count_still() -> None:
    under_way = filled(10.0)
    assert not under_way.full(10.0 + SECONDS_MAX, SMALL_EVENTS)
    under_way.decided(GATHERINGS_MAX)
    under_way.add(11.0)
    assert not under_way.full(11.0, SMALL_EVENTS)
