"""Ranges in which an earlier version of a metric has counted what is the next one's by its time."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.support.one_process import OneProcessNode, Refusal, apart

AHEAD = 60 * 10**9
PUT: dict[str, Any] = {"code": "calls", "period": "day", "replace": True}


def started(path: Path, first: str) -> OneProcessNode:
    node = OneProcessNode(path, Random(1)).start()
    node.ask("metric_put", **PUT, aggregation=first)
    return node


def replace(node: OneProcessNode, then: str) -> int:
    """Put the next version; return since when it is in force."""
    node.ask("metric_put", **PUT, aggregation=then)
    effective = node.ask("metric_show", code="calls")["metric"]["effective_from"]
    assert isinstance(effective, int)
    return effective


def ingest(node: OneProcessNode, name: str, value: int, ahead: int) -> int:
    """Store an event; return its timestamp."""
    moment = time.time_ns() + ahead
    event = {"account": "acme", "metric": "calls", "id": name, "value": value, "timestamp": moment}
    assert node.ask("ingest", events=[event])["stored"] == 1
    return moment


def answers(node: OneProcessNode, start: int, end: int) -> list[Any]:
    """What a range answers: for the account, and for all accounts."""
    found: list[Any] = []
    asked: dict[str, Any] = {"metric": "calls", "start": start, "end": end}
    for kind, more in (("usage", {"account": "acme"}), ("accounts", {})):
        try:
            answer = node.ask(kind, **asked, **more)
            found.append(answer["value"] if kind == "usage" else answer["rows"][0]["value"])
        except Refusal as refusal:
            assert refusal.args[0] == "metric_versions_differ"
            found.append(refusal.args[1])
    return found


def test_what_its_clock_put_ahead_counts_with_the_next_version(tmp_path: Path) -> None:
    def asked() -> Any:
        node = started(tmp_path, "count")
        before = ingest(node, "before", 1, -AHEAD)
        ahead = ingest(node, "ahead", 5, AHEAD)
        effective = replace(node, "sum")
        ingest(node, "after", 7, 2 * AHEAD)
        whole = answers(node, before, ahead + 2 * AHEAD)
        earlier = answers(node, before, effective)
        return effective, whole, earlier, answers(node, effective, ahead + 2 * AHEAD)

    effective, whole, earlier, later = apart(asked)
    text = f"calls was counted as count and as sum; split the range at {effective}"
    assert whole == [text, text]
    assert earlier == ["1", "1"]
    assert later == ["12", "12"]


@pytest.mark.parametrize(("first", "then"), [("count", "unique"), ("unique", "sum")])
def test_members_are_not_added_up_and_no_split_is_named(
    tmp_path: Path, first: str, then: str
) -> None:
    def asked() -> Any:
        node = started(tmp_path, first)
        before = ingest(node, "before", 1, -AHEAD)
        ahead = ingest(node, "ahead", 5, AHEAD)
        effective = replace(node, then)
        end = ahead + 2 * AHEAD
        split = answers(node, before, effective + AHEAD // 2)
        return effective, split, answers(node, before, end), answers(node, effective, end)

    effective, split, whole, later = apart(asked)
    name = f"calls was counted as {first} and as {then}"
    assert split == [f"{name}; split the range at {effective}"] * 2
    assert whole == later == [f"{name}; no split of the range helps"] * 2


def test_balances_are_not_added_up_as_another_version_asks(tmp_path: Path) -> None:
    """They hold a count and nothing else."""

    def asked() -> Any:
        node = started(tmp_path, "count")
        at = time.time_ns() + AHEAD
        balance = {"account": "acme", "metric": "calls", "at": at, "count": 3}
        node.ask("balance_import", id="import", balances=[balance])
        effective = replace(node, "sum")
        return answers(node, effective, at + 1)

    text = "calls was counted as count and as sum; no split of the range helps: there are balances"
    assert apart(asked) == [text, text]
