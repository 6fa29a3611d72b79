"""Members and plan: commands keep the rules, and leaders bring groups to what the plan says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.cluster import members as rules
from meterd.core.cluster import plan_changes
from meterd.core.cluster.members import DRAINED, REMOVED, VOTER, Members, Seat, first
from meterd.core.cluster.plan_changes import Change, HandOver, Led
from meterd.core.raft.membership import is_single_change
from meterd.protocol.errors import ChangeRefused
from meterd.protocol.log_format import SLICE
from meterd.protocol.messages import NODE_STATES
from meterd.protocol.raft_messages import CONFIG, Configuration, member_id, node_of
from meterd.protocol.raft_records import engine_body, engine_record

numbers = st.integers(1, 7)
directories = st.sampled_from(["", "a", "b", "c"])
commands = st.one_of(
    st.fixed_dictionaries(
        {
            "op": st.just("node_add"),
            "node": numbers,
            "peer_address": st.sampled_from([f"n{n}:8001" for n in range(1, 8)]),
            "client_address": st.just("x:7001"),
            "directory": directories,
        }
    ),
    st.fixed_dictionaries({"op": st.just("node_recover"), "node": numbers}),
    st.fixed_dictionaries(
        {"op": st.just("node_state"), "node": numbers, "state": st.sampled_from(NODE_STATES)}
    ),
    st.fixed_dictionaries(
        {
            "op": st.just("plan_move"),
            "moves": st.lists(
                st.tuples(st.integers(0, 260), st.lists(numbers, min_size=0, max_size=4), numbers),
                max_size=3,
            ),
        }
    ),
    st.fixed_dictionaries({"op": st.just("cluster_version"), "version": st.integers(1, 3)}),
)


def beginning(count: int) -> Members:
    return first([(n, f"n{n}:8001", f"n{n}:7001") for n in range(1, count + 1)])


def check(members: Members) -> None:
    assert len(members.plan) == rules.GROUP_COUNT
    for seat in members.plan:
        assert 1 <= len(seat.voters) <= rules.VOTERS_MAX
        assert list(seat.voters) == sorted(set(seat.voters))
        assert seat.leader in seat.voters
        for node in seat.voters:
            assert members.nodes[node].state in (VOTER, DRAINED)


@given(st.integers(1, 7), st.lists(commands, max_size=30))
def test_commands_keep_the_rules_or_change_nothing(count: int, said: list[dict[str, Any]]) -> None:
    members = beginning(count)
    given_out: dict[tuple[int, int], str] = {}
    for command in said:
        before = members.to_bytes()
        old = dict(members.nodes)
        try:
            answer = members.apply(command)
        except ChangeRefused:
            assert members.to_bytes() == before
            continue
        check(members)
        grew = answer["members_version"] - Members.from_bytes(before).version
        assert grew == (members.to_bytes() != before)
        for one in members.nodes.values():
            if one.node in old:
                assert one.incarnation >= old[one.node].incarnation
            if one.directory:  # an incarnation is one directory's, for ever
                place = (one.node, one.incarnation)
                assert given_out.setdefault(place, one.directory) == one.directory
        again = Members.from_bytes(members.to_bytes())
        assert again.to_bytes() == members.to_bytes()
        # The same command once more changes nothing: whoever had no answer may repeat it.
        if command["op"] in ("node_add", "node_state", "plan_move", "node_recover"):
            assert members.apply(command)["members_version"] == answer["members_version"]


@pytest.mark.parametrize("count", range(1, 12))
def test_the_first_plan_is_balanced_and_follows_from_the_list_alone(count: int) -> None:
    members = beginning(count)
    check(members)
    partitions = members.plan[: rules.PARTITION_COUNT]
    led = Counter(seat.leader for seat in partitions)
    assert max(led.values()) - min(led.values()) <= 1 and len(led) == count
    held = [len(members.held(node)) for node in members.nodes]
    assert max(held) - min(held) <= 3
    assert all(len(seat.voters) == min(3, count) for seat in partitions)
    assert len({seat.voters for seat in partitions}) == (count if count > 3 else 1)
    again = first(reversed([(n, f"n{n}:8001", f"n{n}:7001") for n in range(1, count + 1)]))
    assert again.to_bytes() == members.to_bytes()


def test_three_nodes_lead_85_or_86_each() -> None:
    led = Counter(seat.leader for seat in beginning(3).plan[: rules.PARTITION_COUNT])
    assert sorted(led.values()) == [85, 85, 86]


def test_a_lost_directory_is_not_let_in_again_before_somebody_says_so() -> None:
    members = beginning(3)
    add = {"op": "node_add", "node": 2, "peer_address": "n2:8001", "client_address": "n2:7001"}
    with pytest.raises(ChangeRefused, match="node recover 2"):
        members.apply({**add, "directory": "new"})
    assert members.apply({"op": "node_recover", "node": 2})["incarnation"] == 2
    assert members.apply({**add, "directory": "new"})["incarnation"] == 2
    with pytest.raises(ChangeRefused):
        members.apply({**add, "directory": "another"})
    assert members.nodes[2].state == VOTER
    assert member_id(2, 1) in members.configuration(7).voters


def test_nobody_joins_a_node_that_stands_alone() -> None:
    members = first([(0, "n0:8001", "n0:7001")])
    add = {"op": "node_add", "node": 2, "peer_address": "n2:8001", "client_address": "n2:7001"}
    with pytest.raises(ChangeRefused, match="stands alone"):
        members.apply({**add, "directory": ""})
    assert list(members.nodes) == [0]


def test_a_removed_node_comes_back_as_another_incarnation() -> None:
    members = beginning(3)
    add = {"op": "node_add", "node": 4, "peer_address": "n4:1", "client_address": "n4:2"}
    assert members.apply({**add, "directory": "d"})["incarnation"] == 1
    assert members.apply({"op": "node_state", "node": 4, "state": REMOVED})["state"] == REMOVED
    assert members.apply({**add, "directory": "d"})["incarnation"] == 2


def test_a_node_of_the_plan_is_not_removed() -> None:
    members = beginning(3)
    with pytest.raises(ChangeRefused, match="257 groups"):
        members.apply({"op": "node_state", "node": 3, "state": REMOVED})
    moves = [[group, [1, 2], 1] for group in range(rules.GROUP_COUNT)]
    members.apply({"op": "plan_move", "moves": moves})
    assert members.apply({"op": "node_state", "node": 3, "state": REMOVED})["state"] == REMOVED
    assert member_id(3, 0) not in members.configuration(rules.META_GROUP).learners


seats = st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True)


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from([0, 1, 2, 3, 4, 255, 256]), seats), st.randoms())
def test_leaders_bring_every_group_to_its_plan(wanted: dict[int, list[int]], random: Any) -> None:
    members = beginning(6)
    for group, voters in wanted.items():
        move = [group, voters, random.choice(voters)]
        members.apply({"op": "plan_move", "moves": [move]})
    if random.random() < 0.5:
        members.apply({"op": "node_recover", "node": 3})
        add = {"op": "node_add", "node": 3, "peer_address": "n3:8001", "client_address": "y:1"}
        members.apply({**add, "directory": "again"})
    if random.random() < 0.3:
        members.apply({"op": "node_state", "node": 5, "state": DRAINED})
    configurations = {g: beginning(6).configuration(g) for g in range(rules.GROUP_COUNT)}
    leaders = {g: random.choice(c.voters) for g, c in configurations.items()}
    dead = {m for c in configurations.values() for m in c.members} - {
        one.member for one in members.present
    }
    for group, leader in leaders.items():
        if leader in dead:
            leaders[group] = next(m for m in configurations[group].voters if m not in dead)
    for _ in range(40 * rules.GROUP_COUNT):
        steps: list[Change | HandOver] = []
        for own in {one.member for one in members.present}:
            led = {
                g: Led(configurations[g], True, set(configurations[g].members) - dead)
                for g in configurations
                if leaders[g] == own
            }
            now = plan_changes.next_steps(members, own, led)
            changes = [step for step in now if isinstance(step, Change) and step.group != 256]
            assert len(changes) <= plan_changes.CHANGES_AT_ONCE
            steps += now
        if not steps:
            break
        for step in steps:
            old = configurations[step.group]
            if isinstance(step, HandOver):
                target = step.member or random.choice(
                    [m for m in old.voters if m != leaders[step.group] and m not in dead]
                )
                assert target in old.voters
                leaders[step.group] = target
                continue
            assert is_single_change(old, step.configuration)
            assert leaders[step.group] in step.configuration.voters
            # Never fewer living voters than were there, unless the plan has fewer.
            plan = members.configuration(step.group)
            living = [m for m in step.configuration.voters if m not in dead]
            assert len(living) >= min(
                len(plan.voters), len([m for m in old.voters if m not in dead])
            )
            configurations[step.group] = step.configuration
    for group, configuration in configurations.items():
        assert configuration == members.configuration(group)
        seat = members.plan[group]
        if members.nodes[seat.leader].state != DRAINED:
            assert node_of(leaders[group]) == seat.leader
        elif len(seat.voters) > 1:
            assert members.nodes[node_of(leaders[group])].state != DRAINED


def test_what_waits_for_its_directory_holds_nobody_up() -> None:
    members = beginning(3)
    members.apply({"op": "node_recover", "node": 3})
    own = member_id(1, 0)
    led = {g: Led(beginning(3).configuration(g), True, {own, member_id(2, 0)}) for g in range(257)}
    led[9] = Led(Configuration((own,)), True, {own})
    members.plan[9] = Seat((1, 2), 1)
    steps = plan_changes.next_steps(members, own, led)
    assert Change(9, Configuration((own,), (member_id(2, 0),))) in steps
    assert not any(isinstance(step, Change) and step.group != 9 for step in steps)


def test_a_cluster_has_no_more_nodes_than_its_members_can_be_written_down() -> None:
    members = beginning(3)
    for number in range(4, rules.NODES_MAX + 2):
        add = {"op": "node_add", "node": number, "directory": f"d{number}"}
        add |= {"peer_address": f"n{number}:1", "client_address": f"n{number}:2"}
        if number <= rules.NODES_MAX:
            members.apply(add)
        else:
            with pytest.raises(ChangeRefused):
                members.apply(add)
    some = members.configuration(rules.META_GROUP)
    assert engine_body(engine_record(CONFIG, some, np.zeros(1, SLICE))) == some
