"""Answers joined from several nodes are those that one node with everything would give."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.actors.questions import joined_feed
from meterd.actors.questions.other_nodes import OtherNodes, Part
from meterd.actors.questions.sharing import share
from meterd.client import partitions as client_partitions
from meterd.core.cluster.members import Seat, first
from meterd.core.questions import partition_sets
from meterd.core.questions.answers import Ranking, _Text
from meterd.core.questions.feed_cursor import FeedCursor, is_stable, parse
from meterd.core.questions.joined_ranking import Columns, join
from meterd.core.questions.question import Question
from meterd.protocol.errors import NotLeader
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.raft_messages import Configuration, member_id
from tests.support.log_directory import finish

EVERY = range(PARTITION_COUNT)
accounts = st.text("abc/é", min_size=1, max_size=6).filter(lambda name: not name.startswith("/"))
sets = st.sets(st.integers(0, PARTITION_COUNT - 1))


@given(sets)
def test_a_set_of_partitions_survives_its_bytes(chosen):
    assert set(partition_sets.unpack(partition_sets.pack(chosen))) == chosen


@given(st.lists(accounts), sets)
def test_accounts_are_found_by_the_partition_that_clients_compute(names, chosen):
    expected = [client_partitions.partition_of(name) in chosen for name in names]
    assert partition_sets.lie_in(names, chosen).tolist() == expected


rows = st.dictionaries(
    accounts,
    st.tuples(st.integers(-(2**70), 2**70) | st.integers(-3, 3), st.integers(1, 2**40)),
)


@given(rows, st.sampled_from(["sum", "avg", "count"]), st.sampled_from(["account", "usage"]),
       st.integers(1, 4))  # fmt: skip
def test_joined_rows_are_in_the_order_of_all(found, aggregation, sort, nodes):
    """By usage: the greatest first, equal ones by account; averages are compared exactly."""
    text = _Text(aggregation, 2, 2)
    parts: list[list[str]] = [[] for _ in range(nodes)]
    for name in sorted(found):
        parts[client_partitions.partition_of(name) % nodes].append(name)

    def ranking(names: list[str]) -> Ranking:
        question = Question("accounts", metric="m", sort=sort, partitions=(1,))
        counts = np.array([found[name][1] for name in names], np.int64)
        return Ranking(question, names, [found[name][0] for name in names], counts, text)

    columns = []
    for names in parts[1:]:
        columns.append(Columns())
        columns[-1].add(ranking(names).rows(0, len(names)))
    whole = finish(join(ranking(parts[0]), columns))

    def usage(name: str) -> Fraction:
        amount, count = found[name]
        return Fraction(amount, count if aggregation == "avg" else 1)

    expected = sorted(found)
    if sort == "usage":
        expected.sort(key=usage, reverse=True)
    assert whole.accounts == expected
    assert [(one["account"], one["count"]) for one in whole.rows(0, len(found))] == [
        (name, found[name][1]) for name in expected
    ]
    assert all("amount" not in row for row in whole.rows(0, len(found)))


class Log:
    """The feed of one node, which has one partition: numbers as events."""

    def __init__(self, node: int, size: int) -> None:
        self.node = node
        self.events = [{"id": f"{node}-{n}"} for n in range(size)]

    def page(self, after: str | None, limit: int, chosen: tuple[int, ...]) -> dict[str, Any]:
        assert chosen == (self.node,)
        cursor = FeedCursor() if after in (None, "end") else parse(after)
        place = len(self.events) if after == "end" else int(cursor.positions[self.node])
        end = min(place + limit, len(self.events))
        cursor.positions[self.node] = end
        return {"events": self.events[place:end], "next": str(cursor)}


class Others(OtherNodes):
    """Other nodes whose logs are here."""

    def __init__(self, logs: dict[int, Log]) -> None:
        self.logs = logs

    def feed_page(self, part: Part, fields: Any, until: float) -> Any:
        yield True
        chosen = partition_sets.unpack(fields["partitions"])
        return self.logs[part.node].page(fields["after"], fields["limit"], chosen)


def next_page(logs: dict[int, Log], cursor: str | None, limit: int, own: int = 1) -> dict[str, Any]:
    """Have a node asked; who comes first is by the cursor."""

    def read(question: Question) -> Any:
        yield
        return logs[own].page(question.after, question.limit, question.partitions)

    turn = parse(cursor).turn if is_stable(cursor) else 0
    parts = [
        Part(node, "" if node == own else "there", partition_sets.pack([node]))
        for node in sorted(logs, key=lambda node: (node <= turn, node))
    ]
    context = {"until": 0.0, "added": {}}
    question = Question("feed", limit=limit, after=cursor)
    return finish(joined_feed.read_feed(Others(logs), read, question, parts, context))


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4), st.lists(st.integers(1, 9), min_size=1)
)
def test_a_feed_of_several_nodes_gives_each_event_once(sizes, limits):
    logs = {node: Log(node, size) for node, size in enumerate(sizes, 1)}
    seen: list[str] = []
    cursor, place = None, 0
    while True:
        own = place % len(logs) + 1  # whoever is asked next
        page = next_page(logs, cursor, limits[place % len(limits)], own)
        assert len(page["events"]) <= limits[place % len(limits)]
        seen += [event["id"] for event in page["events"]]
        place += 1
        if page["next"] == cursor:
            break  # the end, for now
        cursor = page["next"]
    expected = {node: [event["id"] for event in log.events] for node, log in logs.items()}
    assert sorted(seen) == sorted(one for ids in expected.values() for one in ids)
    for node, ids in expected.items():  # what one node gives comes in its order
        assert [one for one in seen if one.startswith(f"{node}-")] == ids
    logs[len(logs)].events.append({"id": "new"})
    assert [event["id"] for event in next_page(logs, cursor, 3)["events"]] == ["new"]


def test_no_node_waits_for_ever_while_another_one_has_more():
    logs = {1: Log(1, 100), 2: Log(2, 1), 3: Log(3, 1)}
    cursor, seen = None, []
    for _ in range(4):
        page = next_page(logs, cursor, 2)
        cursor = page["next"]
        seen += [event["id"] for event in page["events"]]
    assert {"2-0", "3-0"} < set(seen)


def test_from_now_on_means_so_for_every_node():
    logs = {1: Log(1, 3), 2: Log(2, 4)}
    cursor = next_page(logs, "end", 10)["next"]
    for node, log in logs.items():
        log.events.append({"id": f"new-{node}"})
    found = next_page(logs, cursor, 10)["events"]
    assert sorted(event["id"] for event in found) == ["new-1", "new-2"]


# Who takes part


def usage_of(own: int, nodes: int, leaders: dict[int, int] | None = None) -> Any:
    members = first((n, f"h{n}:8001", f"h{n}:7001") for n in range(1, nodes + 1))
    led = [seat.leader for seat in members.plan]
    for group, leader in (leaders or {}).items():
        led[group] = leader
    now = {group: members.configuration(group) for group in EVERY}
    return SimpleNamespace(
        who=SimpleNamespace(member=member_id(own, 0)),
        state=SimpleNamespace(members=members),
        applier=SimpleNamespace(facts=SimpleNamespace(configurations=now)),
        leader_map=SimpleNamespace(own=own, nodes=np.array(led, np.uint8)),
    )


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from(["accounts", "feed"]))
def test_each_partition_is_asked_of_one_node_that_has_it(own, nodes, kind):
    own = min(own, nodes)
    usage = usage_of(own, nodes)
    fields = {"partitions": None, "after": None}
    mine, parts = share(usage, kind, fields)
    members = usage.state.members
    asked = [*mine] if kind == "accounts" or not parts else []
    for node, address, packed in parts:
        chosen = partition_sets.unpack(packed)
        assert set(chosen) <= set(members.held(node))
        assert address == ("" if node == own else f"h{node}:7001")
        asked += chosen
    assert sorted(asked) == list(EVERY)
    assert bool(parts) == (nodes > 3)
    assert fields["partitions"] == (tuple(mine) if parts else None)


def test_who_asks_for_partitions_gets_them_from_their_replicas_or_an_error():
    usage = usage_of(1, 5)
    held, lacking = usage.state.members.held(1), set(EVERY) - set(usage.state.members.held(1))
    some = tuple(held[:3])
    assert share(usage, "accounts", {"partitions": some, "after": None}) == (some, [])
    with pytest.raises(NotLeader):
        share(usage, "accounts", {"partitions": (min(lacking),), "after": None})


@pytest.mark.parametrize("kind", ["accounts", "feed"])
def test_a_replica_on_its_way_answers_nothing(kind):
    usage = usage_of(1, 5)
    group = next(g for g in usage.state.members.held(1) if usage.leader_map.nodes[g] != 1)
    now = usage.applier.facts.configurations
    now[group] = Configuration(now[group].voters[1:], (member_id(1, 0),))  # it learns
    mine, parts = share(usage, kind, {"partitions": None, "after": None})
    assert group not in mine
    (asked,) = [node for node, _, packed in parts if group in partition_sets.unpack(packed)]
    assert asked == usage.leader_map.nodes[group]
    with pytest.raises(NotLeader):
        share(usage, kind, {"partitions": (group,), "after": None})


def test_who_leads_what_is_about_to_move_answers_for_it():
    usage = usage_of(1, 5)
    group = next(g for g in EVERY if usage.leader_map.nodes[g] == 1)
    usage.state.members.plan[group] = Seat((2, 3, 4), 2)
    assert share(usage, "feed", {"partitions": (group,), "after": None}) == ((group,), [])


def test_without_a_leader_nothing_is_guessed():
    lacking = min(set(EVERY) - set(usage_of(1, 5).state.members.held(1)))
    usage = usage_of(1, 5, {lacking: 0})
    with pytest.raises(NotLeader):
        share(usage, "accounts", {"partitions": None, "after": None})


def test_a_cursor_of_a_feed_holds_whoever_has_what_it_names():
    usage = usage_of(1, 5)
    _, parts = share(usage, "feed", {"partitions": None, "after": None})
    cursor = str(FeedCursor(turn=parts[1][0]))
    _, again = share(usage, "feed", {"partitions": None, "after": cursor})
    assert sorted(again) == sorted(parts)
    assert again[0][0] > parts[1][0] or again[0] == parts[0]
    for group in range(PARTITION_COUNT):  # everything has moved
        usage.state.members.plan[group] = Seat((2, 4, 5), 4)
        usage.leader_map.nodes[group] = 4
    mine, moved = share(usage, "feed", {"partitions": None, "after": cursor})
    assert mine == [] and sum(len(partition_sets.unpack(part[2])) for part in moved) == 256
