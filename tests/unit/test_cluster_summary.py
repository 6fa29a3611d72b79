"""What `meterctl status` says of a cluster, from what its nodes say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from meterd import admin
from meterd.commands import changes
from meterd.commands.cluster import META_GROUP, partition_rows
from meterd.commands.cluster_summary import cluster_lines, is_degraded, section_of
from meterd.commands.session import AdminError, Session
from meterd.exits import AdminExit

GROUPS = range(META_GROUP + 1)
NODES = (1, 2, 3)


def group(number: int, role: str, leader: int | None) -> dict[str, Any]:
    return {
        "group": number,
        "role": role,
        "leader": leader,
        "term": 4,
        "voters": list(NODES),
        "learners": [],
    }


def node(number: int, knows: bool = True, reachable: bool = True) -> dict[str, Any]:
    """A node that leads a third; `knows`: who leads the rest."""
    row: dict[str, Any] = {
        "node": number,
        "state": "voter",
        "incarnation": 1,
        "client_address": f"h{number}:7001",
        "planned": 256,
        "reachable": reachable,
    }
    if not reachable:
        return row | {"error": "unreachable", "message": "no answer"}
    groups = []
    for one in GROUPS:
        leader = one % 3 + 1
        role = "leader" if leader == number and knows else "follower"
        groups.append(group(one, role, leader if knows else None))
    peers = [{"node": peer, "lag_ops": 10 * peer} for peer in NODES if peer != number]
    leads = sum(one["role"] == "leader" for one in groups[:META_GROUP])
    return row | {
        "address": f"h{number}:7001",
        "leads": leads,
        "holds": 256,
        "term": 4,
        "unapplied": 0,
        "holes": 0,
        "members_version": 2,
        "peers": peers if leads else [],
        "groups": groups,
    }


def document(*nodes: dict[str, Any]) -> dict[str, Any]:
    """As `ask_cluster` merges what they say: a leader's word counts most."""
    groups = []
    for one in GROUPS:
        said = [row["groups"][one] for row in nodes if row["reachable"]]
        groups.append(next((row for row in said if row["role"] == "leader"), said[0]))
    return {
        "members_version": 2,
        "cluster_version": 1,
        "reachable": sum(row["reachable"] for row in nodes),
        "configured": len(nodes),
        "nodes": list(nodes),
        "plan": [[list(NODES), one % 3 + 1] for one in GROUPS],
        "groups": groups,
    }


def test_a_whole_cluster_is_ok() -> None:
    section = section_of(document(*map(node, NODES)))
    assert (section["quorum"], section["without_leader"], section["partitions"]) == ("ok", 0, 256)
    assert (section["meta_leader"], section["under_replicated"]) == (2, 0)
    assert [row["leads"] for row in section["nodes"]] == [86, 85, 85]
    assert [row["lag_ops"] for row in section["nodes"]] == [20, 40, 60]  # as both others say
    assert not is_degraded(section)


def test_with_a_node_away_the_others_lead_on_and_replicas_lack() -> None:
    away = node(3, reachable=False)
    section = section_of(document(node(1), node(2), away))
    assert section["quorum"] == "degraded" and section["without_leader"] == 85
    assert section["under_replicated"] == 257 and is_degraded(section)
    assert section["nodes"][2]["error"] == "unreachable"
    assert section["nodes"][2]["lag_ops"] == 60
    text = "\n".join(cluster_lines(section))
    assert "voter: unreachable" in text and "2/3 reachable" in text


def test_a_minority_has_lost_everything() -> None:
    section = section_of(
        document(node(1, knows=False), node(2, False, False), node(3, False, False))
    )
    assert (section["quorum"], section["without_leader"]) == ("lost", 256)
    assert section["meta_leader"] is None and is_degraded(section)
    assert "meta led by nobody" in "\n".join(cluster_lines(section))


@pytest.mark.parametrize("cut_off", NODES)
def test_a_replica_that_knows_no_leader_is_missing(cut_off: int) -> None:
    """It answers, but what is sent to it cannot be committed."""
    rows = partition_rows(document(*(node(number, knows=number != cut_off) for number in NODES)))
    assert all(row["missing"] == [cut_off] for row in rows)


LED = {
    "members_version": 1,
    "reachable": 1,
    "configured": 1,
    "nodes": [{"node": 1, "reachable": True}],
    "groups": [{"group": 0, "leader": 1, "commit": 5}],
}


def answering(monkeypatch: pytest.MonkeyPatch, failures: int, code: AdminExit) -> list[None]:
    """Have so many questions to the cluster fail; returns a list that grows by each question."""
    asked: list[None] = []

    def ask(_session: Session) -> dict[str, Any]:
        asked.append(None)
        if len(asked) <= failures:
            raise AdminError(code, "unreachable", "no answer")
        return LED

    monkeypatch.setattr(changes, "ask_cluster", ask)
    monkeypatch.setattr(changes, "POLL_SECONDS", 0.0)
    return asked


def test_who_waits_for_a_cluster_asks_again_when_no_node_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = answering(monkeypatch, 3, AdminExit.UNREACHABLE)
    assert changes.await_condition(Session(), "leader", 60.0)["reachable"] == 1
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("patience", "code"), [(0.0, AdminExit.UNREACHABLE), (60.0, AdminExit.NOT_ALLOWED)]
)
def test_it_gives_up_when_its_time_is_over_or_asking_again_is_no_use(
    monkeypatch: pytest.MonkeyPatch, patience: float, code: AdminExit
) -> None:
    asked = answering(monkeypatch, 3, code)
    with pytest.raises(AdminError) as caught:
        changes.await_condition(Session(), "leader", patience)
    assert caught.value.exit_code == code and len(asked) == 1


def test_who_waits_in_vain_is_told_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, 0, AdminExit.GOOD)
    monkeypatch.setattr(changes, "_has_caught_up", lambda *_: False)
    with pytest.raises(AdminError, match=r"after 0\.25 s"):
        changes.await_condition(Session(), "caught-up", 0.25)


def test_caught_up_is_who_has_what_was_committed_when_it_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each answer tells of more."""
    commits = iter(range(7, 100))
    monkeypatch.setattr(changes, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(
        changes, "ask_cluster", lambda _: LED | {"groups": [{"group": 0, "commit": next(commits)}]}
    )
    seen = []

    def caught_up(commits: dict[int, int], _document: Any) -> bool:
        seen.append(dict(commits))
        return len(seen) == 3

    monkeypatch.setattr(changes, "_has_caught_up", caught_up)
    changes.await_condition(Session(), "caught-up", 60.0)
    assert seen == [{0: 7}] * 3


@pytest.mark.parametrize("replicas", [0, 2])
def test_a_node_is_removed_when_it_votes_nowhere_any_more(
    monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    """The plan, which is all that the cluster's own rule looks at, may be far ahead of what is."""
    groups = [{"voters": [1, 2, 3]}] * replicas + [{"voters": [2, 3, 4]}] * 3
    asked: list[dict[str, Any]] = []

    def change(_session: Session, kind: str, **fields: Any) -> dict[str, Any]:
        asked.append({"kind": kind, **fields})
        return {"node": 1, "state": "removed", "incarnation": 1}

    monkeypatch.setattr(changes, "ask_cluster", lambda _: LED | {"groups": groups})
    monkeypatch.setattr(changes, "change", change)
    code = admin.run(args=["--yes", "node", "remove", "1"])
    assert code == (AdminExit.REFUSED if replicas else AdminExit.GOOD)
    assert asked == [{"kind": "node_state", "node": 1, "state": "removed"}] * (not replicas)
