"""When the actors of the way share a processor: tried while requests come singly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meterd.core.nearness import (
    KEEP_SECONDS,
    REQUESTS_MIN,
    REST_SECONDS_MAX,
    WINDOW_SECONDS,
    Nearness,
)


class Load:
    """Requests one by one, which take `apart` or `near` seconds; looks at each window's end."""

    def __init__(self, apart: float, near: float) -> None:
        self.nearness, self.now = Nearness(), 100.0
        self.apart, self.near = apart, near
        self.changes: list[tuple[float, bool]] = []

    def run(self, seconds: float, under_way: int = 1) -> None:
        """Keep so many requests under way."""
        end = self.now + seconds
        while self.now < end:
            self.nearness.begun(self.now)
            for _ in range(under_way - 1):
                self.nearness.crowded()
            self.now += self.near if self.nearness.near else self.apart
            for _ in range(under_way):
                self.nearness.ended(self.now)
            before = self.nearness.near
            self.nearness.turn(self.now)
            if self.nearness.near != before:
                self.changes.append((self.now, self.nearness.near))

    def share(self, since: float) -> float:
        """Return the part of the time since a moment in which they were near."""
        near, at, total = self.changes[0][1] is False, since, 0.0
        for moment, after in [c for c in self.changes if c[0] >= since]:
            total += (moment - at) * near
            near, at = after, moment
        return (total + (self.now - at) * near) / (self.now - since)


def test_it_is_kept_where_it_is_faster_and_compared_again_and_again():
    load = Load(apart=0.0015, near=0.001)
    load.run(20.0)
    assert load.share(102.0) > 0.85
    assert sum(1 for _, near in load.changes if not near) >= 5
    load.near = 0.002  # somebody else uses that processor now
    changed = load.now
    load.run(120.0)
    assert load.share(changed + 10.0) < 0.1


def test_where_it_is_not_faster_it_is_tried_ever_more_seldom():
    load = Load(apart=0.001, near=0.00099)
    load.run(600.0)
    trials = [moment for moment, near in load.changes if near]
    assert 5 < len(trials) < 16
    assert REST_SECONDS_MAX <= trials[-1] - trials[-2] < REST_SECONDS_MAX + 1.0


def test_more_than_one_request_under_way_ends_it_at_once():
    load = Load(apart=0.0015, near=0.001)
    load.run(1.0)
    assert load.nearness.near
    load.nearness.begun(load.now)
    load.nearness.crowded()
    assert not load.nearness.near
    before = len(load.changes)
    load.run(5.0, under_way=2)
    assert len(load.changes) == before
    load.run(KEEP_SECONDS + 1.0)
    assert load.nearness.near


def test_a_few_requests_are_not_worth_a_move():
    load = Load(apart=2 * WINDOW_SECONDS / REQUESTS_MIN, near=0.001)
    load.run(5.0)
    assert load.changes == []


@given(st.lists(st.tuples(st.sampled_from("bet"), st.floats(0, 0.2)), max_size=200))
def test_it_is_near_only_while_one_request_is_under_way(steps):
    nearness, now, under_way = Nearness(), 0.0, 0
    for step, seconds in steps:
        now += seconds
        if step == "b":
            under_way += 1
            if under_way == 1:
                nearness.begun(now)
            else:
                nearness.crowded()
                assert not (nearness.near or nearness.singly)
        elif step == "e" and under_way:
            under_way -= 1
            nearness.ended(now)
        else:
            nearness.turn(now)
