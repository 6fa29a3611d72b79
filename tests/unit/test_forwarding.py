"""Any node takes anything: three nodes, each leading a part of the partitions, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from meterd.actors.measuring.telemetry import Telemetry
from meterd.actors.requests.forwarding import QUEUE_SIZE_MAX, Forwarding
from meterd.client.partitions import partition_of
from meterd.core.questions.feed_cursor import is_stable
from meterd.protocol.log_format import GROUP_COUNT
from tests.support.one_process import Refusal, apart
from tests.support.wired_nodes import WiredNodes

NOW = 1_780_000_000_000_000_000
LEADERS = [partition % 3 + 1 for partition in range(GROUP_COUNT)]
METRIC = {"code": "calls", "aggregation": "sum", "decimals": 2}


def events(count: int, first: int = 0, **changed: Any) -> list[dict[str, Any]]:
    return [
        {"account": f"a{n}", "metric": "calls", "timestamp": NOW + n, "id": f"id-{n}", "value": n}
        | changed
        for n in range(first, first + count)
    ]


def wired(path: Path, work: Callable[[WiredNodes], None]) -> None:
    """Do something with three nodes that know a metric, in a process of their own."""

    def run() -> None:
        nodes = WiredNodes(path, Random(5))
        for member in nodes.members:
            member.ask("metric_put", **METRIC)
        nodes.tell(LEADERS)
        work(nodes)
        for member in nodes.members:
            member.stop()

    apart(run)


def stored(nodes: WiredNodes) -> list[int]:
    return [member.actors["usage"].state.stored for member in nodes.members]


def of_node(accounts: list[dict[str, Any]], number: int) -> list[int]:
    """Rows of the events that a node leads."""
    places = enumerate(event["account"] for event in accounts)
    return [row for row, account in places if LEADERS[partition_of(account)] == number]


def test_events_of_all_leaders_are_stored_where_they_belong(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        sent = events(300)
        for member in nodes.members:
            answer = member.ask("ingest", events=sent)
            key = "stored" if member is nodes[1] else "duplicate"
            assert answer[key] == 300 and answer["received"] == 300, answer
        assert stored(nodes) == [len(of_node(sent, number)) for number in (1, 2, 3)]
        for number in (1, 2, 3):
            row = of_node(sent, number)[5]
            usage = nodes[number].ask(
                "usage", account=f"a{row}", metric="calls", start=NOW - 10**9, end=NOW + 10**9
            )
            assert usage["value"] == str(row)

    wired(tmp_path, work)


def test_many_requests_of_one_gathering_get_each_their_own_answer(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        nodes[1].ask("ingest", events=events(50))
        random, asked = Random(3), []
        for number in range(40):
            node = nodes[random.randint(1, 3)]
            rows = events(random.randint(1, 20), random.randint(0, 150))
            bad = random.randrange(len(rows))
            if number % 3 == 0:
                rows[bad]["metric"] = "unknown"
            if number % 3 == 1:
                rows[bad]["value"] = "0.123"
            asked.append((node, rows, node.send("ingest", events=rows)))
        known: set[str] = {event["id"] for event in events(50)}
        for node, rows, rid in asked:
            answer = node.answer(rid)
            assert answer["received"] == len(rows)
            assert answer["unknown"] == 0
            kinds = {row: status for row, status, _ in answer["items"]}
            for row, event in enumerate(rows):
                refused = event["metric"] == "unknown" or event["value"] == "0.123"
                status = kinds.get(row, "stored")
                if event["id"] in known:
                    assert status in (("conflict", "duplicate") if refused else ("duplicate",))
                elif refused:
                    # another request of the gathering may have stored it meanwhile
                    assert status in ("rejected", "conflict", "duplicate")
        total = sum(stored(nodes))
        wanted = {
            event["id"]
            for _, rows, _ in asked
            for event in rows
            if event["metric"] != "unknown" and event["value"] != "0.123"
        }
        assert total == len(wanted | known)

    wired(tmp_path, work)


def test_refused_rows_are_judged_by_their_leader(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        sent = events(60)
        nodes[2].ask("ingest", events=sent[:30])
        answer = nodes[3].ask("ingest", events=[event | {"metric": "nothing"} for event in sent])
        assert answer["rejected"] == 30 and answer["stored"] == 0
        kinds = {row: status for row, status, _ in answer["items"]}
        assert {kinds[row] for row in range(30)} <= {"conflict", "duplicate"}
        assert {kinds[row] for row in range(30, 60)} == {"rejected"}

    wired(tmp_path, work)


@pytest.mark.parametrize("kind", [b"forward", b"outcome"])
def test_a_lost_part_is_unknown_at_the_deadline_and_sent_again(tmp_path: Path, kind: bytes) -> None:
    def work(nodes: WiredNodes) -> None:
        sent = events(90)
        lost = [0 if target == 2 else 1 for target in (1, 2, 3)]
        assert lost
        between = (1, 2) if kind == b"forward" else (2, 1)
        nodes.lost = lambda source, target, what: (source, target) == between and what == kind
        rid = nodes[1].send("ingest", events=sent)
        nodes[1].settle()
        assert not nodes[1].answered(rid)
        nodes[3].later(31.0)
        answer = nodes[1].answer(rid)
        mine = of_node(sent, 2)
        assert answer["unknown"] == len(mine) and answer["stored"] == 90 - len(mine)
        assert [row for row, status, _ in answer["items"] if status == "unknown"] == mine
        nodes.lost = lambda source, target, what: False
        answer = nodes[1].ask("ingest", events=[sent[row] for row in mine])
        key = "stored" if kind == b"forward" else "duplicate"
        assert answer[key] == len(mine)
        assert sum(stored(nodes)) == 90

    wired(tmp_path, work)


class Room:
    """Stands for the actor and for the way to a peer, which has room when told so."""

    def __init__(self) -> None:
        self.telemetry = Telemetry("replication")
        self.told: list[tuple[str, Any]] = []  # actors of this node
        self.sent: list[bytes] = []  # tokens that went to the peer
        self.is_free = False

    def send(self, actor: str, frames: Any) -> None:
        self.told.append((actor, frames))

    def take(self, _: int, frames: Any) -> bool:
        if self.is_free:
            self.sent.append(frames[1])
        return self.is_free


def test_a_part_larger_than_the_queue_waits_for_room_when_nothing_else_does() -> None:
    room = Room()
    forwarding = Forwarding(room, room.take, room.take, lambda frames: None)

    def forward(token: bytes, size: int) -> None:
        forwarding.on_forward([b"forward", b"\x02", token, b"meta", bytes(size), b""])

    forward(b"large", QUEUE_SIZE_MAX + 1)
    assert room.told == []
    forward(b"second", QUEUE_SIZE_MAX + 1)
    forward(b"small", 1)
    assert [frames for _, frames in room.told] == [[b"outcome", b"second"], [b"outcome", b"small"]]
    room.is_free = True
    forwarding.pump()
    forward(b"next", 1)
    assert room.sent == [b"large", b"next"] and len(room.told) == 2


def test_a_leader_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        nodes.lost = lambda source, target, what: target == 2
        sent = events(60)
        rid = nodes[1].send("ingest", events=sent)
        nodes[1].settle()
        nodes.tell([0 if node == 2 else node for node in LEADERS])
        assert not nodes[1].answered(rid)
        nodes[3].later(0.3)
        assert nodes[1].answer(rid)["unknown"] == len(of_node(sent, 2))
        # Nobody leads them now: they are not known at once.
        answer = nodes[3].ask("ingest", events=events(60, 100))
        assert answer["unknown"] == len(of_node(events(60, 100), 2))

    wired(tmp_path, work)


def test_async_requests_are_accepted_when_no_change_of_leaders_can_undo_it(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        answer = nodes[2].ask("ingest", events=events(60), durability="async")
        assert answer["accepted"] == 60
        nodes[2].settle()
        assert sum(stored(nodes)) == 60
        nodes.tell([0 if node == 3 else node for node in LEADERS])
        sent = events(60, 100)
        answer = nodes[2].ask("ingest", events=sent, durability="async")
        assert answer["unknown"] == len(of_node(sent, 3))
        assert answer["accepted"] == 60 - len(of_node(sent, 3))
        assert {status for _, status, _ in answer["items"]} == {"unknown"}
        # What never reaches its leader is not accepted: nobody would send it again.
        nodes.tell(LEADERS)
        nodes.lost = lambda source, target, what: what == b"forward"
        sent = events(60, 200)
        rid = nodes[1].send("ingest", events=sent, durability="async")
        nodes[1].settle()
        assert not nodes[1].answered(rid)
        nodes[1].later(60.0)
        answer = nodes[1].answer(rid)
        assert answer["accepted"] == len(of_node(sent, 1))
        assert answer["unknown"] == 60 - answer["accepted"]

    wired(tmp_path, work)


def test_commands_go_to_the_leader_of_their_group(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        meta = LEADERS[256]
        other = meta % 3 + 1
        sent = events(30)
        nodes[1].ask("ingest", events=sent)
        row = of_node(sent, 3)[0]
        answer = nodes[1].ask("account_erase", account=sent[row]["account"], id="once")
        assert answer["erased"]
        assert [len(member.actors["usage"].state.erasures) for member in nodes.members] == [0, 0, 1]
        balances = [
            {"account": event["account"], "metric": "calls", "at": NOW, "count": 1, "sum": "5"}
            for event in sent
        ]
        answer = nodes[2].ask("balance_import", id="moved", balances=balances)
        assert answer == {"id": "moved", "balances": 30, "outcome": "imported"}
        answer = nodes[3].ask("balance_import", id="moved", balances=balances)
        assert answer["outcome"] == "unchanged"
        with pytest.raises(Refusal, match="import_conflict"):
            nodes[1].ask("balance_import", id="moved", balances=balances[:20])
        with pytest.raises(Refusal, match="metric_conflict"):
            nodes[other].ask("metric_put", **METRIC | {"aggregation": "max"})
        # The answer waits until this node's registry has what it promises.
        rid = nodes[other].send("metric_put", **METRIC | {"code": "more"})
        nodes[other].settle()
        assert not nodes[other].answered(rid)
        assert nodes[meta].ask("metric_show", code="more")["metric"]["code"] == "more"
        nodes.tell([other] * GROUP_COUNT, [nodes[other]])  # as if it were replicated
        nodes[other].ask("metric_put", **METRIC | {"code": "more"})
        assert nodes[other].answer(rid)["outcome"] == "created"

    wired(tmp_path, work)


def question(node: Any, kind: str, **fields: Any) -> Any:
    """Ask; return the answer, or the node that the router is to ask."""
    passed = node.passed_on
    passed.clear()
    rid = node.send(kind, **fields)
    node.until(lambda: node.answered(rid) or passed, "there is an answer")
    return passed.pop() if passed else node.answer(rid)


def test_questions_are_answered_by_who_can(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        sent = events(60)
        nodes[1].ask("ingest", events=sent)
        row = of_node(sent, 2)[0]
        of_one = {"account": f"a{row}", "metric": "calls"}
        wide = {"start": NOW - 10**9, "end": NOW + 10**9}
        assert question(nodes[1], "usage", **of_one, **wide) == 2
        assert question(nodes[2], "usage", **of_one, **wide)["value"] == str(row)
        local = question(nodes[1], "usage", **of_one, **wide, consistency="local")
        assert local["count"] == 0 and "as_of" in local
        assert question(nodes[3], "events", account=f"a{row}") == 2
        # A cursor of a feed holds on every node.
        nodes.tell([2] * GROUP_COUNT, [nodes[2]])  # what others have never comes to it
        page = question(nodes[2], "feed", limit=5)
        assert is_stable(page["next"])
        more = question(nodes[2], "feed", after=page["next"])
        assert len(page["events"]) + len(more["events"]) == len(of_node(sent, 2))
        with pytest.raises(Refusal, match="cursor"):
            question(nodes[1], "feed", after="x@1")

    wired(tmp_path, work)


def test_an_answer_about_all_waits_for_what_other_leaders_have(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        nodes[1].ask("metric_list")
        nodes[1].ask("ingest", events=events(60))
        # Nothing is replicated here, so what the others have never comes.
        rid = nodes[1].send("accounts", metric="calls", start=NOW - 10**9, end=NOW + 10**9)
        nodes[1].settle()
        asked = {target for _, target, kind in nodes.sent if kind == b"ask_index"}
        assert asked == {2, 3} and not nodes[1].answered(rid)
        groups = nodes[1].actors["usage"].groups
        groups.index[:] = 1 << 40  # as if it had
        nodes[1].actors["usage"].reads.applied()
        answer = nodes[1].answer(rid)
        assert len(answer["rows"]) == len(of_node(events(60), 1))
        # A leader that does not answer: the question is over at its deadline.
        nodes.lost = lambda source, target, kind: kind == b"index"
        rid = nodes[1].send("accounts", metric="calls")
        nodes[1].settle()
        nodes[3].later(61.0)
        with pytest.raises(Refusal, match="deadline_exceeded"):
            nodes[1].answer(rid)
        # One that is no longer the leader says so.
        nodes.lost = lambda source, target, kind: False
        nodes.tell([1] * GROUP_COUNT, [nodes[2], nodes[3]])
        rid = nodes[1].send("accounts", metric="calls")
        with pytest.raises(Refusal, match="not_leader"):
            nodes[1].answer(rid)

    wired(tmp_path, work)


def test_no_node_that_is_behind_says_that_a_metric_is_unknown(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        meta = LEADERS[256]
        behind = nodes[meta % 3 + 1]
        nodes[meta].ask("metric_put", **METRIC | {"code": "new"})
        sent = events(30, metric="new")
        rid = behind.send("ingest", events=sent)
        balances = [{"account": "b", "metric": "new", "at": NOW, "count": 1, "sum": "5"}]
        other = behind.send("balance_import", id="x", balances=balances)
        local = behind.send("usage", account="b", metric="new", consistency="local")
        behind.settle()
        assert not any(behind.answered(one) for one in (rid, other, local))
        for member in nodes.members:
            if member is not nodes[meta]:
                member.tell_registry(nodes[meta])
        assert behind.answer(rid)["stored"] == 30
        assert behind.answer(other)["outcome"] == "imported"
        assert behind.answer(local)["metric"] == "new"
        assert behind.ask("ingest", events=events(5, 500, metric="nothing"))["rejected"] == 5

    wired(tmp_path, work)


def test_without_a_leader_of_the_meta_group_a_command_is_sent_elsewhere(tmp_path: Path) -> None:
    def work(nodes: WiredNodes) -> None:
        nodes.tell([*LEADERS[:256], 0])
        with pytest.raises(Refusal, match="not_leader"):
            nodes[1].ask("metric_put", **METRIC)

    wired(tmp_path, work)
