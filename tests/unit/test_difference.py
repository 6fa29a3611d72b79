"""What `meterctl diff` takes for a difference."""

import copy

from meterd.commands.difference import differences

MEMBER = {"state": "voter", "incarnation": 1, "peer_address": "a:8001", "client_address": "a:7001"}
STATUS = {
    "members_version": 3,
    "cluster_version": 1,
    "members": [{"node": number, **MEMBER} for number in (1, 2)],
    "plan": [[[1, 2], 1], [[1, 2], 2]],
    "groups": [{"group": 0, "leader": 1, "term": 5}, {"group": 256, "leader": 2, "term": 7}],
}


def said(**changed):
    return copy.deepcopy(STATUS) | changed


def fields(rows):
    return [row["field"] for row in rows]


def test_nodes_that_say_the_same_agree_whatever_their_terms():
    moved = [{"group": 0, "leader": 1, "term": 9}, {"group": 256, "leader": None, "term": 9}]
    assert differences({1: said(), 2: said(groups=moved)}) == []


def test_each_field_that_differs_is_named_with_what_each_node_says():
    other = said(members_version=4, plan=[[[1, 2], 1], [[1, 2], 1]])
    other["members"][1]["state"] = "drained"
    other["groups"][1]["leader"] = 1
    rows = differences({1: said(), 2: other, 3: said()})
    assert fields(rows) == ["members_version", "node 2", "plan 1", "leader meta"]
    assert rows[0]["values"] == {"1": 3, "2": 4, "3": 3}
    assert rows[3]["values"] == {"1": 2, "2": 1, "3": 2}


def test_a_member_that_only_one_node_knows_is_a_difference():
    newer = said()
    newer["members"].append({"node": 3, **MEMBER})
    assert fields(differences({1: said(), 2: newer})) == ["members"]
