"""The cluster section of `meterctl status`: nodes, leaders, lag, terms and health at a glance."""

from collections.abc import Iterator

from meterd.commands.cluster import META_GROUP, ask_cluster, partition_rows
from meterd.commands.console import Row
from meterd.commands.session import AdminError, Session
from meterd.commands.tables import Column, number_or_dash, render

# How many partitions can be written to: all, some, none.
WHOLE, DEGRADED, LOST = "ok", "degraded", "lost"
_SHOWN = ("node", "address", "state", "reachable", "incarnation", "leads", "holds", "planned",
          "term", "lag_ops", "unapplied", "holes", "members_version")  # fmt: skip


def cluster_section(session: Session) -> Row | None:
    """Ask the whole cluster; None for a node alone, and for one that cannot say yet."""
    try:
        document = ask_cluster(session)
    except AdminError:
        return None  # its row says why
    return section_of(document) if document["configured"] > 1 else None


def section_of(document: Row) -> Row:
    """The section, of what `ask_cluster` returns."""
    rows = partition_rows(document)
    lost = [row["group"] for row in rows if row["leader"] is None]
    partitions = len(rows) - (META_GROUP in {row["group"] for row in rows})
    without = sum(group != META_GROUP for group in lost)
    return {
        "quorum": WHOLE if not lost else LOST if without >= partitions else DEGRADED,
        "reachable": document["reachable"],
        "configured": document["configured"],
        "partitions": partitions,
        "without_leader": without,
        "meta_leader": next((r["leader"] for r in rows if r["group"] == META_GROUP), None),
        "under_replicated": sum(bool(row["missing"]) for row in rows),
        "term": max((row["term"] for row in rows), default=0),
        "members_version": document["members_version"],
        "cluster_version": document["cluster_version"],
        "nodes": [_node(node, document["nodes"]) for node in document["nodes"]],
    }


def _node(node: Row, nodes: list[Row]) -> Row:
    """One node; `lag_ops`: what it lacks of what others lead, as those say; None: nobody does."""
    lags = [
        peer["lag_ops"]
        for other in nodes
        if other["reachable"] and other["node"] != node["node"]
        for peer in other["peers"]
        if peer["node"] == node["node"]
    ]
    row = {**node, "lag_ops": sum(lags) if lags else None}
    row.setdefault("address", row.get("client_address"))
    shown = {key: row.get(key) for key in _SHOWN}
    if not node["reachable"]:
        shown |= {"error": node["error"], "message": node["message"]}
    return shown


def is_degraded(section: Row | None) -> bool:
    """Is something missing that a cluster should have?"""
    return section is not None and (section["quorum"] != WHOLE or section["under_replicated"] > 0)


def cluster_lines(section: Row) -> Iterator[str]:
    """The section for people."""
    columns = [Column("NODE", right=True), Column("ADDRESS"), Column("STATE")]
    titles = ("LEADS", "HOLDS", "PLANNED", "TERM", "LAG OPS", "UNAPPLIED", "HOLES")
    columns += [Column(title, right=True) for title in titles]
    yield from render(columns, map(_cells, section["nodes"]), None, False)
    meta = section["meta_leader"]
    yield (
        f"cluster {section['quorum']}: {section['reachable']}/{section['configured']} reachable;"
        f" {section['without_leader']} of {section['partitions']} partitions without leader,"
        f" {section['under_replicated']} under-replicated;"
        f" meta led by {'nobody' if meta is None else meta}; term {section['term']}"
    )


def _cells(node: Row) -> list[str]:
    state = node["state"] if node["reachable"] else f"{node['state']}: {node['error']}"
    keys = ("leads", "holds", "planned", "term", "lag_ops", "unapplied", "holes")
    numbers = [number_or_dash(node[key]) for key in keys]
    return [str(node["node"]), node["address"] or "-", state or "-", *numbers]
