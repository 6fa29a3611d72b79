"""`meterctl backup create`: one node makes one backup, and that node is asked about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meterd.commands.jobs import first_answering
from meterd.commands.session import Session
from meterd.exits import AdminExit
from meterd.protocol.body import pack
from meterd.protocol.envelope import RequestHeader
from tests.support.fake_node import FakeNode, ModelNode
from tests.support.meterctl import Ended, call
from tests.support.ports import free_ports

JOB = {"id": 1, "kind": "backup", "state": "running", "progress": 0.5, "error": None}
MADE = {"name": "a", "to": "/b", "events": 1, "size": 1, "files": 1, "written": 1, "seconds": 1}


class Maker(ModelNode):
    """A node whose backup is made as soon as somebody asks for it."""

    def _ask(self, header: RequestHeader, body: bytes) -> bytes:
        if header.kind == "job_list":
            return pack({"jobs": []})
        if header.kind == "backup_create":
            return pack({"job": JOB})
        if header.kind == "job_show":
            return pack({"job": JOB | {"state": "done", "result": MADE}})
        return super()._ask(header, body)


@contextmanager
def maker(*script: str) -> Iterator[FakeNode]:
    with FakeNode(script, Maker()) as node:
        yield node


def create(*nodes: str, timeout: float = 5.0) -> Ended:
    named = ("-n", ",".join(nodes), "--timeout", timeout)
    return call(*named, "-o", "json", "backup", "create", "--to", "/b")


def test_of_several_nodes_the_first_that_answers_makes_it_and_says_how_far_it_is() -> None:
    [nobody] = free_ports(1)
    with maker() as second, maker() as third:
        ended = create(f"127.0.0.1:{nobody}", second.address, third.address, timeout=2.0)
    assert ended.code == AdminExit.GOOD, ended.errors
    asked = [kind for kind in second.kinds if kind != "map"]
    assert asked == ["job_list", "backup_create", "job_show"]
    assert third.kinds == []


def test_a_node_that_is_silent_is_asked_once_and_no_other_instead() -> None:
    with maker("answer", "ignore") as first, maker() as second:
        ended = create(first.address, second.address, timeout=1.6)
    assert ended.code == AdminExit.UNREACHABLE
    assert "meterctl jobs list" in ended.errors
    assert first.kinds.count("backup_create") == 1
    assert second.kinds == []


def test_where_nobody_answers_at_a_look_it_is_one_node_all_the_same() -> None:
    """Whoever is asked of several how far a job is may be another one than has begun it."""
    first, second = (f"127.0.0.1:{port}" for port in free_ports(2))
    assert first_answering(Session((first, second), timeout=0.05)).nodes == (first,)


def test_a_drill_of_a_named_backup_needs_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERD__NODE__NONSENSE", "1")
    ended = call("drill", "--from", tmp_path, "--backup", "x")
    assert ended.code == AdminExit.NOT_FOUND, ended.errors
    assert call("drill", "--from", tmp_path).code == AdminExit.CONFIGURATION


@pytest.mark.parametrize("words", [("compact", "--no-wait"), ("wal", "archive", "--no-wait")])
def test_other_jobs_are_begun_once_as_well(words: tuple[str, ...]) -> None:
    with maker("answer", "ignore") as first, maker() as second:
        nodes = f"{first.address},{second.address}"
        ended = call("-n", nodes, "--timeout", 1.6, *words)
    assert ended.code == AdminExit.UNREACHABLE
    assert len([kind for kind in first.kinds if kind not in ("map", "job_list")]) == 1
    assert second.kinds == []
