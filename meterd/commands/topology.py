"""`meterctl topology`, `consensus` and `replication`: how a cluster is."""

from collections.abc import Iterator
from typing import Any

import click

from meterd.commands.cluster import ask_cluster, end, group_name, group_of, partition_rows
from meterd.commands.console import Row
from meterd.commands.session import Session, command
from meterd.commands.tables import Column, format_bytes, number_or_dash, render

LAG_WARN, LAG_CRITICAL = 100, 1_000
OK, WARN, CRITICAL = "ok", "warn", "critical"


def _right(*titles: str) -> list[Column]:
    return [Column(title, right=True) for title in titles]


def _numbers(values: list[int]) -> str:
    return ",".join(map(str, values)) or "-"


def _summary(document: Row) -> str:
    return f"{document['reachable']}/{document['configured']} reachable"


@command("topology", short_help="Show the nodes, and what each leads and holds.")
@click.option("--partitions", is_flag=True, help="Show each partition instead.")
def topology(session: Session, partitions: bool) -> None:
    """Show every node of the cluster: address, state, partitions led, held and planned.

    The nodes are asked themselves, also those not named with -n. Exit code 1 when a partition has
    no leader, or fewer replicas at work than the plan says; 7 when a node does not answer.
    """
    document = ask_cluster(session)
    rows = partition_rows(document)
    lacking = [row for row in rows if row["leader"] is None or row["missing"]]
    shown = {
        "members_version": document["members_version"],
        "reachable": document["reachable"],
        "configured": document["configured"],
        "without_leader": sum(row["leader"] is None for row in rows),
        "under_replicated": sum(bool(row["missing"]) for row in rows),
        "nodes": [
            {key: value for key, value in node.items() if key not in ("peers", "groups")}
            for node in document["nodes"]
        ],
    }
    if partitions:
        shown["partitions"] = rows
    about = "partitions" if partitions else "nodes"
    session.console.show(shown, lambda: _topology_lines(shown, partitions), about)
    end(document, bool(lacking))


def _topology_lines(shown: Row, partitions: bool) -> Iterator[str]:
    if partitions:
        columns = _right("PART", "LEADER", "TERM")
        columns += [Column(t) for t in ("REPLICAS", "LEARNERS", "PLANNED", "MISSING")]
        yield from render(columns, map(_partition_cells, shown["partitions"]), None, False)
    else:
        columns = [*_right("NODE"), Column("ADDRESS"), Column("STATE")]
        columns += _right("INCARNATION", "LEADS", "HOLDS", "PLANNED", "VERSION")
        yield from render(columns, map(_node_cells, shown["nodes"]), None, False)
    yield (
        f"{_summary(shown)}; {shown['without_leader']} without leader,"
        f" {shown['under_replicated']} under-replicated"
    )


def _partition_cells(row: Row) -> list[str]:
    leader = "none" if row["leader"] is None else str(row["leader"])
    names = [_numbers(row[key]) for key in ("replicas", "learners", "planned", "missing")]
    return [group_name(row["group"]), leader, str(row["term"]), *names]


def _node_cells(node: Row) -> list[str]:
    state = node.get("state", "-") if node["reachable"] else f"{node['error']}"
    own = [node.get(key) if node["reachable"] else None for key in ("leads", "holds")]
    return [
        str(node["node"]),
        node.get("address", node.get("client_address", "-")),
        state,
        number_or_dash(node.get("incarnation")),
        *map(number_or_dash, own),
        number_or_dash(node.get("planned")),
        number_or_dash(node.get("members_version")),
    ]


@command("consensus", short_help="Show terms, roles and progress of the groups.")
@click.option("--groups", is_flag=True, help="Show each group on each node.")
@click.option("--group", "wanted", metavar="GROUP",
              help="Show one group on each node: 0 to 255, or meta.")
@click.option("--stuck", is_flag=True,
              help="Show only groups without leader, with holes, or not applied.")
def consensus(session: Session, groups: bool, wanted: str | None, stuck: bool) -> None:
    """Show for each node the roles of its groups, terms, what is not applied, holes and changes.

    Exit code 1 when a group has no leader anywhere; 7 when a node does not answer.
    """
    only = None if wanted is None else group_of(wanted)
    document = ask_cluster(session)
    rows = [
        {"node": node["node"], **group}
        for node in document["nodes"]
        if node["reachable"]
        for group in node["groups"]
        if only in (None, group["group"]) and group["role"] != "none"
        and (not stuck or _is_stuck(group))
    ]
    rows.sort(key=lambda row: (row["group"], row["node"]))
    lost = [group["group"] for group in document["groups"] if group["leader"] is None]
    shown: dict[str, Any] = {
        "reachable": document["reachable"],
        "configured": document["configured"],
        "without_leader": lost,
        "nodes": [_consensus_row(node) for node in document["nodes"]],
    }
    each = groups or stuck or only is not None
    if each:
        shown["groups"] = rows
    about = "groups" if each else "nodes"
    session.console.show(shown, lambda: _consensus_lines(shown, each), about)
    end(document, bool(lost))


def _is_stuck(group: Row) -> bool:
    return group["leader"] is None or group["holes"] > 0 or group["commit"] > group["applied"]


_CONSENSUS = ("leads", "follows", "learns", "campaigns", "leaderless", "term", "unapplied",
              "holes", "view_changes")


def _consensus_row(node: Row) -> Row:
    keys = ("node", "reachable", "error", "message", "standing_aside", *_CONSENSUS)
    return {key: node[key] for key in keys if key in node}


def _consensus_lines(shown: Row, each: bool) -> Iterator[str]:
    if each:
        columns = [*_right("GROUP", "NODE"), Column("ROLE")]
        columns += _right("LEADER", "TERM", "COMMIT", "APPLIED", "LAST", "LAG", "HOLES", "CHANGES")
        columns += [Column("VOTERS"), Column("LEARNERS")]
        yield from render(columns, map(_group_cells, shown["groups"]), None, False)
    else:
        columns = _right("NODE", *(key.upper().replace("_", " ") for key in _CONSENSUS))
        yield from render(columns, map(_consensus_cells, shown["nodes"]), None, False)
    lost = ", ".join(map(group_name, shown["without_leader"])) or "none"
    yield f"{_summary(shown)}; without leader: {lost}"


def _group_cells(row: Row) -> list[str]:
    numbers = [
        number_or_dash(row[key])
        for key in ("term", "commit", "applied", "last", "lag", "holes", "view_changes")
    ]
    leader = "none" if row["leader"] is None else str(row["leader"])
    members = [_numbers(row["voters"]), _numbers(row["learners"])]
    return [group_name(row["group"]), str(row["node"]), row["role"], leader, *numbers, *members]


def _consensus_cells(node: Row) -> list[str]:
    return [str(node["node"]), *(number_or_dash(node.get(key)) for key in _CONSENSUS)]


@command("replication", short_help="Show the links between nodes, and who lacks what.")
@click.option("--lag-warn", type=click.IntRange(0), default=LAG_WARN, show_default=True,
              help="Warn when a peer lacks more ops.")
@click.option("--lag-critical", type=click.IntRange(0), default=LAG_CRITICAL, show_default=True,
              help="More are critical.")
def replication(session: Session, lag_warn: int, lag_critical: int) -> None:
    """Show for each node and each of its peers: connection, last beat, clock, and what it lacks.

    Exit code 1 when a link is critical; 7 when a node does not answer.
    """
    if lag_critical < lag_warn:
        raise click.UsageError("--lag-critical must not be below --lag-warn")
    document = ask_cluster(session)
    rows = [
        {"from": node["node"], **peer, "status": _link_status(peer, lag_warn, lag_critical)}
        for node in document["nodes"]
        if node["reachable"]
        for peer in node["peers"]
    ]
    shown = {
        "reachable": document["reachable"],
        "configured": document["configured"],
        "links": rows,
    }
    session.console.show(shown, lambda: _replication_lines(shown), "links")
    end(document, any(row["status"] == CRITICAL for row in rows))


def _link_status(peer: Row, lag_warn: int, lag_critical: int) -> str:
    if not peer["connected"] or peer["lag_ops"] > lag_critical:
        return CRITICAL
    return WARN if peer["lag_ops"] > lag_warn else OK


def _replication_lines(shown: Row) -> Iterator[str]:
    columns = _right("NODE", "PEER", "HEARD MS", "ROUND TRIP MS", "CLOCK MS", "IN FLIGHT")
    columns += [*_right("LAG OPS", "LAG BYTES", "GROUPS BEHIND"), Column("STATUS")]
    yield from render(columns, map(_link_cells, shown["links"]), None, False)
    yield _summary(shown)


def _link_cells(row: Row) -> list[str]:
    status = row["status"] if row["connected"] else f"{row['status']}: not connected"
    return [
        str(row["from"]),
        str(row["node"]),
        *(number_or_dash(row[key]) for key in ("heard_ms", "round_trip_ms", "clock_offset_ms")),
        f"{row['in_flight']} ({format_bytes(row['in_flight_bytes'])})",
        number_or_dash(row["lag_ops"]),
        format_bytes(row["lag_bytes"]),
        number_or_dash(row["lagging_groups"]),
        status,
    ]
