"""`meterctl compact --all`: every node is asked, whatever becomes of the others."""

import json

import pytest

from meterd.commands import compact
from meterd.commands.session import AdminError
from meterd.exits import AdminExit
from meterd.protocol.errors import Unreachable
from tests.support.meterctl import call

NODES = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")


def _job(session, state):
    job = {"id": NODES.index(session.nodes[0]) + 1, "kind": "compact", "state": state}
    return job | {"progress": 1.0, "started": None, "eta_seconds": None, "error": None}


@pytest.fixture
def nodes(monkeypatch):
    """Nodes whose jobs are done at once, but for those that a test names."""
    silent, slow, begun = set(), set(), []

    def start(session, _aggressive):
        if session.nodes[0] in silent:
            raise Unreachable("no answer")
        begun.append(session.nodes[0])
        return _job(session, "running")

    def wait(session, job, _patience):
        if session.nodes[0] in slow:
            raise AdminError(AdminExit.RUNNING, "running", f"job {job['id']} has not ended")
        return _job(session, "done")

    monkeypatch.setattr(compact, "_start", start)
    monkeypatch.setattr(compact, "await_job", wait)
    return silent, slow, begun


def _compact():
    ended = call("-n", ",".join(NODES), "-o", "json", "compact", "--all")
    rows = json.loads(ended.out)["jobs"]
    return ended.code, [(row["id"], row["state"]) for row in rows], ended.errors


def test_a_node_that_is_silent_keeps_no_other_from_it(nodes):
    silent, _, begun = nodes
    silent.add(NODES[1])
    code, rows, errors = _compact()
    assert begun == [NODES[0], NODES[2]]
    assert (code, rows) == (AdminExit.PARTLY, [(1, "done"), (3, "done")])
    assert f"{NODES[1]}: unreachable" in errors


def test_a_job_that_goes_on_is_named_and_the_others_are_awaited(nodes):
    _, slow, _ = nodes
    slow.add(NODES[0])
    code, rows, errors = _compact()
    assert (code, rows[1:]) == (AdminExit.RUNNING, [(2, "done"), (3, "done")])
    assert "job 1 has not ended" in errors


def test_nobody_answers(nodes):
    silent, _, _ = nodes
    silent.update(NODES)
    assert _compact()[:2] == (AdminExit.UNREACHABLE, [])
