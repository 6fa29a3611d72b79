"""How many gatherings are under way, and when those that nobody decides count no more."""

from __future__ import annotations

from meterd.actors.under_way import GATHERINGS_MAX, SECONDS_MAX, UnderWay


def filled(now: float) -> UnderWay:
    under_way = UnderWay()
    for _ in range(GATHERINGS_MAX):
        assert not under_way.full(now)
        under_way.add(now)
    return under_way


def test_it_is_full_until_one_is_decided() -> None:
    under_way = filled(10.0)
    assert under_way.full(10.0)
    under_way.decided(1)
    assert not under_way.full(10.0)


def test_what_nobody_decides_counts_no_more_after_a_while() -> None:
    under_way = filled(10.0)
    assert under_way.full(10.0 + SECONDS_MAX / 2)
    assert not under_way.full(under_way.until)


def test_more_may_be_decided_than_count_still() -> None:
    under_way = filled(10.0)
    assert not under_way.full(10.0 + SECONDS_MAX)
    under_way.decided(GATHERINGS_MAX)
    under_way.add(11.0)
    assert not under_way.full(11.0)
