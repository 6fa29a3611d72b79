"""A query actor asks another one over a real socket, and joins what both have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from meterd.actors.frames import sockets
from meterd.core.questions import partition_sets
from meterd.core.questions.partition_sets import partition
from meterd.core.questions.question import Question
from meterd.protocol.body import pack, unpack_answer
from meterd.protocol.envelope import AnswerHeader as Header
from meterd.protocol.envelope import decode_request, encode_answer
from meterd.protocol.errors import NotLeader, error_body
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.messages import check_request
from tests.support.recording import answers
from tests.unit.test_query import Node, accounts

ACCOUNTS = [f"account-{n:02}" for n in range(30)]
EVEN = tuple(range(0, PARTITION_COUNT, 2))
ODD = tuple(range(1, PARTITION_COUNT, 2))


class Pair:
    """Node 1 has the even partitions and is asked; node 2 has everything, behind a socket."""

    def __init__(self, path: Any) -> None:
        for name in ("one", "two"):
            (path / name).mkdir()
        self.one, self.two = Node(path / "one"), Node(path / "two")
        self.socket = sockets.context().socket(zmq.ROUTER)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"127.0.0.1:{port}"
        self.broken: Exception | None = None
        self.asked: list[dict[str, Any]] = []
        for value, name in enumerate(ACCOUNTS):
            for node in (self.one, self.two):
                if node is self.two or partition(name) % 2 == 0:
                    node.write(name, value % 7 + 1)

    def close(self) -> None:
        self.one.query.close()
        self.two.query.close()
        self.socket.close(linger=0)

    def ask(self, question: Question, parts: list[Any], **header: Any) -> None:
        """As usage asks: this node has the partitions of the question."""
        self.one.parts = parts
        self.one.ask(question, **header)

    def answer(self) -> tuple[str, Any]:
        """Turn both nodes until the first has answered."""
        give_up = time.monotonic() + 20.0
        while time.monotonic() < give_up:
            self.one.query.turn(10)
            self.one.query.flush()
            self.one.query.tick(time.monotonic())
            self._serve()
            found = answers(self.one.query)
            if found:
                return found[0]
        raise AssertionError("there is no answer")

    def _serve(self) -> None:
        """Answer what node 2 is asked, as its router, usage and query actors do."""
        while self.socket.poll(0):
            rid, *frames = self.socket.recv_multipart()
            header, body = decode_request(frames)
            fields = check_request(header.kind, body)
            assert header.hops == 1 and fields["partitions"] == ODD
            self.asked.append(fields)
            if self.broken is not None:
                status, result = "error", error_body(self.broken)
            else:
                result = self.two.answer(question_of(header.kind, fields))
                status = "ok"
                if result["next"] is not None and header.kind != "feed":
                    result["next"] = f"2@{result['next']}"
            said = Header(header.id, header.kind, status, 1)
            self.socket.send_multipart([rid, *encode_answer(said, pack(result))])


def question_of(kind: str, fields: dict[str, Any]) -> Question:
    after = fields["after"]
    if after not in (None, "end"):
        after = after.removeprefix("2@")
    of_usage = kind == "accounts"
    range_ = {"metric": "m", "start": fields["start"], "end": fields["end"]} if of_usage else {}
    return Question(
        kind,
        limit=min(fields["limit"], 7),  # small pages: there are several
        after=after,
        partitions=fields["partitions"],
        **range_,
    )


@pytest.fixture
def pair(tmp_path: Any) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def other(pair: Pair) -> list[Any]:
    return [2, pair.address, partition_sets.pack(ODD)]


def test_rows_of_both_nodes_come_in_one_order(pair: Pair) -> None:
    pair.ask(accounts(sort="usage", partitions=EVEN, limit=100), [other(pair)])
    status, result = pair.answer()
    assert status == "ok"
    expected = sorted(enumerate(ACCOUNTS), key=lambda one: (-(one[0] % 7), one[1]))
    assert [row["account"] for row in result["rows"]] == [name for _, name in expected]
    assert [row["value"] for row in result["rows"]] == [str(n % 7 + 1) for n, _ in expected]
    assert result["position"] == "1@17 2@17" and result["next"] is None
    assert len(pair.asked) > 1 and all("amount" not in row for row in result["rows"])


def test_later_pages_are_cut_from_what_was_joined(pair: Pair) -> None:
    pair.ask(accounts(partitions=EVEN, limit=20), [other(pair)])
    _, first = pair.answer()
    asked = len(pair.asked)
    cursor = first["next"].removeprefix("1@")
    pair.ask(accounts(after=cursor, limit=20), [])
    _, second = pair.answer()
    rows = first["rows"] + second["rows"]
    assert [row["account"] for row in rows] == ACCOUNTS
    assert (len(pair.asked), second["next"]) == (asked, None)


def test_a_feed_is_read_from_both(pair: Pair) -> None:
    own = [1, "", partition_sets.pack(EVEN)]
    found, cursor = [], None
    while True:
        pair.ask(Question("feed", limit=8, after=cursor), [own, other(pair)])
        status, page = pair.answer()
        assert status == "ok", page
        found += [event["account"] for event in page["events"]]
        if page["next"] == cursor:
            break
        cursor = page["next"]
    assert sorted(found) == ACCOUNTS


def test_what_the_other_says_is_what_the_client_hears(pair: Pair) -> None:
    pair.broken = NotLeader("this node has no replica of partition 7")
    pair.ask(accounts(partitions=EVEN), [other(pair)])
    status, body = pair.answer()
    assert (status, body["code"]) == ("error", "not_leader")
    assert "partition 7" in body["message"]


def test_who_leads_nothing_any_more_is_not_waited_for(pair: Pair) -> None:
    pair.ask(accounts(partitions=EVEN), [other(pair)])
    pair.one.query.flush()
    pair.one.query.handle([b"leaders", bytes([1, 3] * 128 + [1])])
    pair.one.query.flush()
    ((status, body),) = answers(pair.one.query)
    assert (status, body["code"]) == ("error", "not_leader")


def test_a_silent_node_costs_the_deadline(pair: Pair) -> None:
    pair.ask(accounts(partitions=EVEN), [other(pair)], deadline_ms=50)
    pair._serve = lambda: None  # type: ignore[method-assign]
    status, body = pair.answer()
    assert (status, body["code"]) == ("error", "deadline_exceeded")
    assert not len(pair.one.query._others) and pair.one.query.drained()


def test_an_answer_that_lacks_something_is_an_error(pair: Pair) -> None:
    pair.two.answer = lambda question: {"rows": [], "next": None}  # type: ignore[method-assign]
    pair.ask(accounts(partitions=EVEN), [other(pair)])
    status, body = pair.answer()
    assert (status, body["code"]) == ("error", "malformed")
    assert unpack_answer(pack(body)) == body
