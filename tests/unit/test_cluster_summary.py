"""What `meterctl status` says of a cluster, from what its nodes say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from meterd.commands.cluster import META_GROUP, partition_rows
from meterd.commands.cluster_summary import cluster_lines, is_degraded, section_of

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
