"""The query actor: what it does with questions, beside reading the log."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from meterd.actors import query as module
from meterd.actors.query import Query
from meterd.core.questions.question import Question
from meterd.core.questions.zones import UTC
from meterd.core.state.erasures import Erasures
from meterd.core.state.registry import Registry
from meterd.protocol.limits import I64_MIN
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.metric import MetricDefinition
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory
from tests.support.recording import answers, recorded, request

RANGE = {"start": 0, "end": 1_000}


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


class Node:
    """A query actor, its log, and a usage actor's part of the conversation."""

    def __init__(self, path) -> None:
        self.log = LogDirectory(path)
        self.registry = Registry()
        definition = {"code": "m", "aggregation": "sum", "decimals": 0, "dimensions": ["k"]}
        self.registry.put(MetricDefinition.from_map(definition), UTC, False, 1)
        self.query = recorded(Query, path)
        self.knows_registry = False
        self.parts: list[Any] = []  # that other nodes answer
        self.count = 0

    def write(self, account: str, value: int, at: int = 5, refused: bool = False) -> None:
        self.count += 1
        event = LoggedEvent(account, f"id-{self.count}", 1, value, at)
        self.log.write([event], {0} if refused else set())

    def standing(self, question: Question) -> dict[str, Any]:
        """Of a node in a cluster: what is applied of each group."""
        if question.partitions is None and not (self.parts and question.kind == "feed"):
            return {}
        applied = np.zeros(GROUP_COUNT, np.uint64)
        for group, index in self.log.builder.indexes.items():
            applied[group] = index
        waits = [self.log.builder.file_number, self.log.builder.row]
        return {"applied": applied.tobytes(), "waits": waits, "repaired": []}

    def ask(self, question: Question, rid: bytes = b"r", **header) -> None:
        context = {
            "question": question.to_map(),
            "registry_version": self.registry.version,
            "erasures": len(self.log.erasures),
            "end": [self.log.builder.file_number, len(self.log.builder.data)],
            "position": "17",
            "horizon": I64_MIN,
            "added": {},
            "parts": self.parts,
            "cursor": "1@" if self.parts and question.kind != "feed" else "",
            **self.standing(question),
            "refused": {number: list(raw) for number, raw in self.log.refused_of_waiting().items()},
        }
        if not self.knows_registry:
            context["registry"] = self.registry.to_bytes()
            context["erased"] = self.log.erasures.to_lists()
            self.knows_registry = True
        frames = request(question.kind, {}, **header)
        self.query.handle([b"ask", rid, *frames, msgpack.packb(context)])

    def answers(self) -> list[tuple[str, dict]]:
        self.query.flush()
        while not self.query.drained():
            self.query.tick(0.0)
        return answers(self.query)

    def answer(self, question: Question) -> dict:
        self.ask(question)
        ((status, body),) = self.answers()
        assert status == "ok", body
        return body


def usage(account: str, **more) -> Question:
    return Question("usage", account, metric="m", **RANGE | more)


def accounts(**more) -> Question:
    return Question("accounts", metric="m", **RANGE | more)


def test_it_says_hello_so_that_the_registry_is_sent_again(node):
    assert ("usage", [b"hello", b"query"]) in node.query.take(b"hello")


def test_a_total_holds_what_was_stored_and_says_at_which_position(node):
    node.write("a", 3)
    node.write("a", 4, refused=True)
    node.write("b", 5)
    result = node.answer(usage("a"))
    assert (result["value"], result["count"], result["position"]) == ("3", 1, "17")
    assert (result["newest_event"], result["expired"]) == (5, False)


def test_an_answer_is_as_of_its_question_whatever_is_written_meanwhile(node):
    """Two questions in one turn: the second one has read further into the same file."""
    node.write("a", 1)
    node.ask(usage("a"), b"first")
    node.write("a", 10)
    node.write("a", 100, refused=True)
    node.ask(usage("a"), b"second")
    node.write("a", 1_000)
    node.ask(usage("a"), b"third")
    assert sorted(int(body["value"]) for _, body in node.answers()) == [1, 11, 1_011]


def test_a_file_may_become_full_and_segmented_between_questions(node):
    node.write("a", 1)
    assert node.answer(usage("a"))["value"] == "1"
    number = node.log.seal(segmented=False)
    node.write("a", 2)
    assert node.answer(usage("a"))["value"] == "3"
    node.log.make_segment(number)
    node.query.handle([b"segmented", str(number).encode()])
    assert node.answer(usage("a"))["value"] == "3"


def test_a_full_file_that_lost_its_segment_is_no_silent_gap(node):
    node.write("a", 1)
    number = node.log.seal(segmented=False)
    del node.log.waiting[number]  # the usage actor has forgotten the bitmap
    node.ask(usage("a"))
    ((status, body),) = node.answers()
    assert (status, body["code"]) == ("error", "internal")


def test_a_full_file_without_events_needs_no_segment(node):
    node.log.seal(segmented=False)
    del node.log.waiting[1]
    node.write("a", 1)
    assert node.answer(usage("a"))["value"] == "1"


def test_a_file_that_has_gone_without_totals_is_no_silent_gap(node):
    node.write("a", 1)
    node.log.seal(segmented=True)
    node.query.handle([b"segmented", b"1"])
    node.ask(usage("a"))
    for path in [*node.log.path.glob("wal-*1.*"), *node.log.path.glob("seg-*")]:
        path.unlink()
    ((status, body),) = node.answers()
    assert (status, body["code"]) == ("error", "internal")


def test_a_file_that_is_folded_and_goes_meanwhile_is_read_from_its_totals(node):
    node.write("a", 1)
    node.log.seal(segmented=True)
    node.query.handle([b"segmented", b"1"])
    node.write("a", 2)
    node.ask(usage("a"))
    node.log.delete([1], node.registry)
    ((status, body),) = node.answers()
    assert (status, body["value"]) == ("ok", "3")


def test_pages_of_an_invoice_run_belong_to_one_position(node):
    for place, account in enumerate(["c", "a", "b", "e", "d"]):
        node.write(account, place)
    page = node.answer(accounts(limit=2))
    rows = page["rows"]
    node.write("aa", 9)
    while page["next"] is not None:
        page = node.answer(accounts(limit=2, after=page["next"]))
        assert page["position"] == "17"
        rows += page["rows"]
    assert [row["account"] for row in rows] == ["a", "b", "c", "d", "e"]
    assert [row["value"] for row in rows] == ["1", "2", "0", "4", "3"]


def test_sorted_by_usage_the_greatest_come_first_and_ties_by_account(node):
    for account, value in [("b", 5), ("a", 5), ("c", 7), ("d", -1)]:
        node.write(account, value)
    rows = node.answer(accounts(sort="usage"))["rows"]
    assert [row["account"] for row in rows] == ["c", "a", "b", "d"]


@pytest.mark.parametrize("cursor", ["", "a", "a.x", "a.0-1.-1", "e.1.2", "a.gone-1.2"])
def test_a_cursor_of_no_open_run_is_refused(node, cursor):
    node.ask(accounts(after=cursor))
    ((status, body),) = node.answers()
    assert (status, body["code"]) == ("error", "bad_request")


def test_a_run_ends_when_others_are_erased_than_before_though_as_many(node):
    """The usage actor started anew, and has heard of another partition's erasure first."""
    for account in ("a", "b", "c"):
        node.write(account, 1)
    for account in ("b", "c"):
        node.log.erase(account)
    first, second = node.log.erasures
    node.log.erasures = Erasures([first], node.log.erasures.key)
    page = node.answer(accounts(limit=1))
    node.log.erasures = Erasures([second], node.log.erasures.key)
    node.knows_registry = False
    node.ask(accounts(limit=1, after=page["next"]))
    ((status, body),) = node.answers()
    assert (status, body["code"]) == ("error", "bad_request")


def test_open_runs_are_bounded_and_expire(node, monkeypatch):
    monkeypatch.setattr(module, "ACCOUNTS_KEPT_MAX", 4)
    for account in "abc":
        node.write(account, 1)
    first = node.answer(accounts(limit=1))["next"]
    second = node.answer(accounts(limit=1))["next"]
    node.ask(accounts(limit=1, after=first))
    assert node.answers()[0][1]["code"] == "bad_request"
    assert node.answer(accounts(limit=1, after=second))["rows"][0]["account"] == "b"
    monkeypatch.setattr(module, "RUN_SECONDS", -1e9)
    node.query.tick(0.0)
    node.ask(accounts(limit=1, after=second))
    assert node.answers()[0][1]["code"] == "bad_request"


def test_without_the_registry_the_client_is_told_to_ask_again(node):
    """The actor has died and come back; the usage actor believes that it knows the registry."""
    node.knows_registry = True
    node.ask(usage("a"))
    ((status, body),) = node.answers()
    assert (status, body["code"], body["retry"]) == ("error", "restarting", "now")


def test_a_question_whose_asker_has_gone_is_not_read(node):
    node.write("a", 1)
    node.ask(usage("a"), deadline_ms=0)
    ((status, body),) = node.answers()
    assert (status, body["code"]) == ("error", "deadline_exceeded")


def test_a_feed_from_the_end_gives_only_what_comes_later(node):
    node.write("a", 1)
    page = node.answer(Question("feed", after="end"))
    assert page["events"] == []
    node.write("a", 2)
    page = node.answer(Question("feed", after=page["next"]))
    assert [event["value"] for event in page["events"]] == ["2"]


def test_a_large_page_ends_early_and_goes_on(node, monkeypatch):
    monkeypatch.setattr("meterd.actors.questions.reading.PAGE_BYTES_MAX", 300)
    for value in range(5):
        node.write("a", value)
    question = Question("events", "a", start=0, end=1_000, limit=5)
    seen = []
    while True:
        page = node.answer(question)
        assert len(page["events"]) < 5
        seen += [event["value"] for event in page["events"]]
        if page["next"] is None:
            break
        question = Question("events", "a", start=0, end=1_000, limit=5, after=page["next"])
    assert seen == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("kind", ["events", "feed"])
@pytest.mark.parametrize("cursor", ["x", "a.1.2", "e.1", "f.x.y", "f.-1.2", "e.1.2.3"])
def test_a_cursor_of_something_else_is_refused(node, kind, cursor):
    node.write("a", 1)
    node.ask(Question(kind, "a", after=cursor))
    ((status, body),) = node.answers()
    assert (status, body["code"]) == ("error", "bad_request")
