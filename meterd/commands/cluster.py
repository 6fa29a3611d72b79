"""What commands about a cluster share: all its nodes are asked, whichever were named with -n."""

from dataclasses import replace
from typing import Any

from meterd.commands.console import Row
from meterd.commands.jobs import ask
from meterd.commands.nodes import ask_nodes, reached
from meterd.commands.session import AdminError, Session, exit_with
from meterd.exits import AdminExit

META_GROUP = 256
# What a node that did not answer may be called by in tables.
UNREACHABLE = "unreachable"


def ask_cluster(session: Session) -> dict[str, Any]:
    """Ask every node of the cluster how it is.

    Returns `{"members_version", "nodes": [...], "plan": [...], "groups": [...]}`.  A node that does
    not answer has `reachable` false and a reason.  A group is as its leader says, or whoever knows
    most of it.  Raises AdminError when no node that was named answers.
    """
    newest, found = ask_members(session)
    members = {one["node"]: one for one in newest["members"]}
    nodes = [_node(members.get(node, {"node": node}), found.get(node)) for node in sorted(members)]
    statuses = [one["answer"] for one in found.values() if "answer" in one]
    return {
        "members_version": newest["members_version"],
        "cluster_version": newest["cluster_version"],
        "reachable": sum(node["reachable"] for node in nodes),
        "configured": len(nodes),
        "nodes": nodes,
        "plan": newest["plan"],
        "groups": _merged(statuses),
    }


def ask_members(session: Session) -> tuple[Row, dict[int, dict[str, Any]]]:
    """Ask every node of the cluster for its `cluster_status`.

    Returns the answer of whoever knows the newest members, and by node what `ask_nodes` gives.
    Who was named may not know yet of a change that has just been committed: who leads does.
    """
    answers = ask_nodes(session, lambda client: ask(client, "cluster_status"))
    reached(answers)
    found = {one["answer"]["node"]: one for one in answers if "answer" in one}
    asked: set[str] = set()
    while True:
        told = (one["answer"] for one in found.values() if "answer" in one)
        newest = max(told, key=lambda one: one["members_version"])
        others = {
            one["client_address"]: one["node"]
            for one in newest["members"]
            if one["node"] not in found and one["client_address"] not in {"", *asked}
        }
        if not others:
            return newest, found
        asked |= others.keys()
        more = replace(session, nodes=tuple(others))
        for one in ask_nodes(more, lambda client: ask(client, "cluster_status")):
            found[others[one["address"]]] = one


def _node(member: Row, found: Row | None) -> Row:
    """One row of a node: what the cluster says of it, and what it says itself."""
    row = {**member, "reachable": found is not None and "answer" in found}
    if found is None:
        return {**row, "error": UNREACHABLE, "message": "no address of it is known"}
    row["address"] = found["address"]
    if "answer" not in found:
        return {**row, "error": found["error"], "message": found["message"]}
    answer = found["answer"]
    groups = answer["groups"]
    roles = [group["role"] for group in groups if group["group"] != META_GROUP]
    held = [group for group in groups if group["role"] != "none"]
    return {
        **row,
        "members_version": answer["members_version"],
        "standing_aside": answer["standing_aside"],
        "leads": roles.count("leader"),
        "follows": roles.count("follower"),
        "learns": roles.count("learner"),
        "campaigns": sum(role.endswith("candidate") for role in roles),
        "holds": len(roles) - roles.count("none"),
        "leaderless": sum(group["leader"] is None for group in held),
        "term": max((group["term"] for group in held), default=0),
        "unapplied": sum(max(0, group["commit"] - group["applied"]) for group in held),
        "holes": sum(group["holes"] for group in held),
        "view_changes": sum(group["view_changes"] for group in groups),
        "peers": answer["peers"],
        "groups": groups,
    }


def _merged(statuses: list[Row]) -> list[Row]:
    """Each group as who leads it says, else as whoever knows most."""
    best: dict[int, Row] = {}
    for status in statuses:
        for group in status["groups"]:
            known = best.get(group["group"])
            if known is None or _weight(group) > _weight(known):
                best[group["group"]] = group
    return [best[number] for number in sorted(best)]


def _weight(group: Row) -> tuple[Any, ...]:
    return group["role"] == "leader", group["term"], group["role"] != "none", group["commit"]


def partition_rows(document: Row) -> list[Row]:
    """One row for each group; `missing` are nodes of the plan that have no working replica:
    none that is reached and knows who leads."""
    there = {node["node"] for node in document["nodes"] if node["reachable"]}
    working = {
        (node["node"], group["group"])
        for node in document["nodes"]
        if node["reachable"]
        for group in node["groups"]
        if group["role"] not in ("learner", "none") and group["leader"] is not None
    }
    rows: list[Row] = []
    for group in document["groups"]:
        voters, leader = document["plan"][group["group"]]
        rows.append(
            {
                "group": group["group"],
                "leader": group["leader"] if group["leader"] in there else None,
                "term": group["term"],
                "replicas": group["voters"],
                "learners": group["learners"],
                "planned": voters,
                "planned_leader": leader,
                "missing": [n for n in voters if (n, group["group"]) not in working],
            }
        )
    return rows


def group_of(text: str) -> int:
    """Return the group that a word of the command line means.  Raises AdminError."""
    if text == "meta":
        return META_GROUP
    if text.isascii() and text.isdecimal() and int(text[:6]) < META_GROUP:
        return int(text)
    raise AdminError(
        AdminExit.USAGE, "bad_request", f"{text!r} is no partition", "0 to 255, or meta"
    )


def group_name(number: int) -> str:
    """Return how people call a group."""
    return "meta" if number == META_GROUP else str(number)


def end(document: Row, bad: bool) -> None:
    """Leave with the exit code of a look at the whole cluster."""
    partly = document["reachable"] < document["configured"]
    exit_with([AdminExit.NO] * bad + [AdminExit.PARTLY] * partly)
