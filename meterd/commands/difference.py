"""`meterctl diff`: where nodes say different things of the same cluster.

Every node keeps members and plan by itself and knows leaders from what it hears; when all is well
they agree.  Compared is only what is to be equal: positions and terms move all the time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from meterd.commands.cluster import ask_members, end, group_name
from meterd.commands.console import Row
from meterd.commands.session import Session, command
from meterd.commands.tables import Column, render


@command("diff", short_help="Show where nodes disagree about the cluster.")
def diff(session: Session) -> None:
    """Show what the nodes of the cluster say differently of members, plan and leaders.

    The nodes are asked themselves, also those not named with -n. Exit code 0: they agree; 1: they
    do not; 7: a node does not answer.
    """
    newest, found = ask_members(session)
    said = {node: one["answer"] for node, one in sorted(found.items()) if "answer" in one}
    rows = differences(said)
    document = {
        "reachable": len(said),
        "configured": len(newest["members"]),
        "differences": rows,
    }
    session.console.show(document, lambda: _lines(document, list(said)), "differences")
    end(document, bool(rows))


def differences(said: Mapping[int, Row]) -> list[Row]:
    """Return the fields of which not all nodes say the same: `{"field", "values": {node: …}}`.

    said: `cluster_status` by node.  A node that says nothing of a field is not asked about it.
    """
    facts = {node: dict(_facts(status)) for node, status in said.items()}
    rows: list[Row] = []
    for field in dict.fromkeys(field for one in facts.values() for field in one):
        values = {str(node): one[field] for node, one in facts.items() if field in one}
        if len(set(values.values())) > 1:
            rows.append({"field": field, "values": values})
    return rows


def _facts(status: Row) -> Iterator[tuple[str, Any]]:
    """Yield (field, value) of what all nodes are to say alike."""
    yield "members_version", status["members_version"]
    yield "cluster_version", status["cluster_version"]
    yield "members", ",".join(str(one["node"]) for one in status["members"])
    for one in status["members"]:
        place = f"{one['peer_address']} {one['client_address']}"
        yield f"node {one['node']}", f"{one['state']} {one['incarnation']} {place}"
    for number, (voters, leader) in enumerate(status["plan"]):
        replicas = ",".join(map(str, voters))
        yield f"plan {group_name(number)}", f"{replicas} led by {leader}"
    for group in status["groups"]:
        if group["leader"] is not None:
            yield f"leader {group_name(group['group'])}", group["leader"]


def _lines(document: Row, nodes: list[int]) -> Iterator[str]:
    columns = [Column("FIELD"), *(Column(f"NODE {node}", elastic=True) for node in nodes)]
    cells = (
        [row["field"], *(str(row["values"].get(str(node), "-")) for node in nodes)]
        for row in document["differences"]
    )
    if document["differences"]:
        yield from render(columns, cells, None, False)
    agree = "agree" if not document["differences"] else f"{len(document['differences'])} differ"
    yield f"{document['reachable']}/{document['configured']} reachable; {agree}"
