"""Plans are even, move as few replicas as that needs, and are the same for the same cluster."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.cluster.members import DRAINED, GROUP_COUNT, Members, Seat, first
from meterd.core.cluster.rebalancing import balanced_plan, stopped_at
from meterd.core.cluster.spreading import Mask, spread
from meterd.protocol.limits import PARTITION_COUNT


def cluster(count: int) -> Members:
    return first([(n, f"n{n}:8001", f"n{n}:7001") for n in range(1, count + 1)])


def join(members: Members, node: int) -> None:
    members.apply(
        {
            "op": "node_add",
            "node": node,
            "peer_address": f"n{node}:8001",
            "client_address": f"n{node}:7001",
            "directory": f"d{node}",
        }
    )
    members.apply({"op": "node_state", "node": node, "state": "voter"})


def drain(members: Members, node: int) -> None:
    members.apply({"op": "node_state", "node": node, "state": DRAINED})


def rebalance(members: Members) -> tuple[Counter[int], Counter[int], int]:
    """Carry a plan out; return how many replicas each node gets and gives, and new leaders."""
    before = list(members.plan)
    moves = balanced_plan(members)
    if moves:
        members.apply({"op": "plan_move", "moves": moves})
    gets: Counter[int] = Counter()
    gives: Counter[int] = Counter()
    for old, new in zip(before[:PARTITION_COUNT], members.plan[:PARTITION_COUNT], strict=True):
        gets.update(set(new.voters) - set(old.voters))
        gives.update(set(old.voters) - set(new.voters))
    pairs = zip(before[:PARTITION_COUNT], members.plan[:PARTITION_COUNT], strict=True)
    check_even(members)
    assert balanced_plan(members) == []
    return gets, gives, sum(old.leader != new.leader for old, new in pairs)


def check_even(members: Members) -> None:
    able = [one.node for one in members.present if one.state == "voter"]
    held = Counter(node for seat in members.plan[:PARTITION_COUNT] for node in seat.voters)
    led = Counter(seat.leader for seat in members.plan[:PARTITION_COUNT])
    assert set(held) | set(led) <= set(able)
    for counts in (held, led):
        each = [counts[node] for node in able]
        assert max(each) - min(each) <= 1
    assert all(len(seat.voters) == min(3, len(able)) for seat in members.plan[:PARTITION_COUNT])
    meta = members.plan[-1]
    assert len(meta.voters) == min(5 if len(able) > 4 else 3, len(able)) and meta.leader in able
    assert set(meta.voters) <= set(able)


def test_a_fourth_node_gets_192_replicas_and_nothing_else_moves() -> None:
    members = cluster(3)
    join(members, 4)
    gets, gives, leaders = rebalance(members)
    assert gets == {4: 192}
    assert gives == {1: 64, 2: 64, 3: 64}
    assert leaders == 64


def test_a_node_that_goes_leaves_its_own_replicas_and_nothing_else_moves() -> None:
    for count in (5, 6, 7):
        members = cluster(count)
        rebalance(members)
        held, led = len(members.held(2)), sum(seat.leader == 2 for seat in members.plan[:-1])
        drain(members, 2)
        gets, gives, leaders = rebalance(members)
        assert gives == {2: held} and gets.total() == held
        assert led <= leaders < 2 * led


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_new_cluster_is_even(count: int) -> None:
    assert balanced_plan(cluster(count)) == []


def test_one_after_the_other_comes_and_goes() -> None:
    members = cluster(1)
    for node in range(2, 8):
        join(members, node)
        gets, gives, _ = rebalance(members)
        assert set(gets) == {node}
        assert gives.total() == (0 if node <= 3 else gets.total())
        assert gets[node] in (256, 768 // node, 768 // node + 1)
    for node in range(7, 1, -1):
        drain(members, node)
        gets, gives, _ = rebalance(members)
        assert set(gives) == {node}


seats = st.sets(st.integers(1, 7), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.lists(seats, min_size=1, max_size=9), st.sets(st.integers(1, 7)))
def test_any_plan_becomes_even_with_as_few_moves_as_can_be(
    count: int, pattern: list[set[int]], away: set[int]
) -> None:
    members = cluster(7)
    for group in range(GROUP_COUNT):
        voters = sorted(pattern[group % len(pattern)])
        members.plan[group] = Seat(tuple(voters), voters[group % len(voters)])
    for node in sorted(away)[: 7 - count]:
        drain(members, node)
    again = Members.from_bytes(members.to_bytes())
    assert balanced_plan(again) == balanced_plan(members)
    gets, _, _ = rebalance(members)
    able = [one.node for one in members.present if one.state == "voter"]
    wanted = min(3, len(able))
    before = [again.held(node) for node in able]
    # What every row lacks has to come, and what is too much in a column has to go elsewhere.
    kept = [len(set(seat.voters) & set(able)) for seat in again.plan[:PARTITION_COUNT]]
    low, more = divmod(PARTITION_COUNT * wanted, len(able))
    rooms = [low + (place < more) for place in range(len(able))]
    loads = sorted((len(held) for held in before), reverse=True)
    least = PARTITION_COUNT * wanted - sum(map(min, loads, rooms))
    least = max(least, sum(max(wanted - number, 0) for number in kept))
    assert gets.total() >= least


def cost(now: Mask, held: Mask) -> int:
    return int((held & ~now).sum())


masks = st.integers(1, 4).flatmap(
    lambda columns: st.lists(
        st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=1, max_size=4
    )
)


@settings(max_examples=300, deadline=None)
@given(masks, st.integers(1, 3), st.randoms(use_true_random=False))
def test_no_way_is_cheaper(rows: list[list[bool]], wanted: int, random) -> None:  # type: ignore[no-untyped-def]
    """All ways are tried."""
    now = np.array(rows)
    count, columns = now.shape
    wanted = min(wanted, columns)
    keep = now & np.array([[random.random() < 0.5 for _ in row] for row in rows])
    held = spread(now, np.ones_like(now), wanted, keep)
    assert (held.sum(axis=1) == wanted).all()
    loads = held.sum(axis=0)
    assert loads.max() - loads.min() <= 1
    choices = list(combinations(range(columns), wanted))
    best = None
    for ways in product(choices, repeat=count):
        other = np.zeros_like(now)
        for row, chosen in enumerate(ways):
            other[row, list(chosen)] = True
        each = other.sum(axis=0)
        if each.max() - each.min() <= 1:
            value = (cost(now, other), -int((other & now & keep).sum()))
            best = value if best is None else min(best, value)
    assert best == (cost(now, held), -int((held & now & keep).sum()))


@pytest.mark.parametrize(
    ("voters", "planned", "stay"),
    [
        ([1, 2, 3], [2, 3, 4], [1, 2, 3]),  # nothing has begun
        ([1, 2, 3, 4], [2, 3, 4], [2, 3, 4]),  # who comes is there
        ([1, 2, 3, 4], [4, 5, 6], [1, 2, 4]),  # the first of three
        ([2, 3], [2, 3, 4], [2, 3, 4]),  # who goes was lost, and has gone first
        ([2, 3, 4], [2, 3, 4], [2, 3, 4]),
        ([1], [1, 2, 3], [1]),
        ([1, 2], [1, 2, 3], [1, 2, 3]),
        ([1, 2], [1, 2], [1, 2]),
        ([1, 2, 3], [1, 2], [1, 2]),
    ],
)
def test_a_move_that_is_stopped_leaves_no_voter_too_many(
    voters: list[int], planned: list[int], stay: list[int]
) -> None:
    assert stopped_at(voters, planned) == stay
