"""`meterctl rebalance`: spreading replicas and leaders over the nodes.

The plan is worked out here, from what the nodes say of themselves (`core/cluster/rebalancing.py`),
and is carried out by them.
"""

from collections.abc import Iterator
from typing import Any

import click

from meterd.commands.changes import change, members_of
from meterd.commands.cluster import ask_cluster, end, group_name
from meterd.commands.console import Row
from meterd.commands.session import AdminGroup, Session
from meterd.commands.tables import Column, render
from meterd.core.cluster.rebalancing import balanced_plan, stopped_at


@click.group("rebalance", cls=AdminGroup, default="status", subcommand_metavar="[COMMAND]")
def rebalance() -> None:
    """Spread the replicas over the nodes, while the cluster serves."""


_each_group = click.option("--groups", is_flag=True, help="Show each group, too.")


@rebalance.command("plan", short_help="Show what would move.")
@_each_group
@click.pass_obj
def show_plan(session: Session, groups: bool) -> None:
    """Show what each node would get and give, and change nothing.

    No more moves than even numbers need: a new node gets its share of all others, a drained one
    leaves its own, and nothing else moves.
    """
    document = ask_cluster(session)
    moves = balanced_plan(members_of(document))
    _show_moves(session, document, moves, groups, "to move; meterctl rebalance run does it")


@rebalance.command("run", short_help="Spread the replicas.")
@_each_group
@click.pass_obj
def run_plan(session: Session, groups: bool) -> None:
    """Change the plan so that replicas and leaders are spread over all nodes that may have them.

    The nodes carry it out, sixteen partitions at a time on the word of each leader. Exit code 0
    when the plan is changed: `rebalance status` shows how far it is.
    """
    document = ask_cluster(session)
    moves = balanced_plan(members_of(document))
    if moves:
        counts = _counts_text(_move_rows(document, moves))
        session.confirm(f"Move {counts}?")
        change(session, "plan_move", moves=moves)
    _show_moves(session, document, moves, groups, "to move; meterctl rebalance shows how far it is")


@rebalance.command("cancel", short_help="Leave replicas where they are now.")
@_each_group
@click.pass_obj
def cancel(session: Session, groups: bool) -> None:
    """Let the plan say what is so now: nothing more moves, once what has begun is done."""
    document = ask_cluster(session)
    moves = []
    for group in document["groups"]:
        planned, leader = document["plan"][group["group"]]
        stay = stopped_at(group["voters"], planned)
        if stay != planned:
            moves.append([group["group"], stay, leader if leader in stay else stay[0]])
    if moves:
        change(session, "plan_move", moves=moves)
    _show_moves(session, document, moves, groups, "stay where they are")


@rebalance.command("status", short_help="Show what is still to be moved.")
@_each_group
@click.pass_obj
def show_status(session: Session, groups: bool) -> None:
    """Show what is not yet where the plan has it. Exit code 1 when there are such replicas."""
    document = ask_cluster(session)
    moves = [
        [group["group"], *document["plan"][group["group"]]]
        for group in document["groups"]
        if group["voters"] != document["plan"][group["group"]][0]
    ]
    _show_moves(session, document, moves, groups, "to move still")
    end(document, bool(moves))


def _show_moves(
    session: Session, document: Row, moves: list[list[Any]], each: bool, what: str
) -> None:
    rows = _move_rows(document, moves)
    nodes = _node_rows(document, rows)
    shown = {"moves": rows, "nodes": nodes}
    session.console.show(shown, lambda: _move_lines(rows, nodes, each, what), "moves")


def _move_rows(document: Row, moves: list[list[Any]]) -> list[Row]:
    now = {group["group"]: group for group in document["groups"]}
    return [
        {
            "group": group,
            "from": now[group]["voters"],
            "to": voters,
            "leader_from": now[group]["leader"],
            "leader_to": to,
        }
        for group, voters, to in moves
    ]


def _node_rows(document: Row, moves: list[Row]) -> list[Row]:
    """Return how many groups each node has and leads now, and when all is as planned."""
    now = {group["group"]: (group["voters"], group["leader"]) for group in document["groups"]}
    # Where nothing moves another one may lead for the moment.
    planned = {group: tuple(document["plan"][group]) for group in now}
    after = planned | {row["group"]: (row["to"], row["leader_to"]) for row in moves}
    return [
        {
            "node": one["node"],
            "state": one["state"],
            "replicas": sum(one["node"] in voters for voters, _ in now.values()),
            "replicas_after": sum(one["node"] in voters for voters, _ in after.values()),
            "leads": sum(one["node"] == leader for _, leader in now.values()),
            "leads_after": sum(one["node"] == leader for _, leader in after.values()),
        }
        for one in document["nodes"]
    ]


def _counts_text(rows: list[Row]) -> str:
    replicas = sum(len(set(row["to"]) - set(row["from"])) for row in rows)
    leaders = sum(row["leader_from"] != row["leader_to"] for row in rows)
    return f"{replicas} replicas and {leaders} leaders of {len(rows)} groups"


def _move_lines(rows: list[Row], nodes: list[Row], each: bool, what: str) -> Iterator[str]:
    if not rows:
        yield "nothing to move"
        return
    if each:
        yield from _group_lines(rows)
        yield ""
    columns = [Column("NODE", right=True), Column("STATE")]
    columns += [Column(t, right=True) for t in ("REPLICAS", "AFTER", "LEADS", "AFTER")]
    keys = ("replicas", "replicas_after", "leads", "leads_after")
    cells = ([str(row["node"]), row["state"], *(str(row[key]) for key in keys)] for row in nodes)
    yield from render(columns, cells, None, False)
    yield f"{_counts_text(rows)} {what}"


def _group_lines(rows: list[Row]) -> Iterator[str]:
    columns = [Column("GROUP", right=True), Column("FROM"), Column("TO")]
    columns += [Column("LEADER", right=True), Column("NEW LEADER", right=True)]
    cells = (
        [
            group_name(row["group"]),
            ",".join(map(str, row["from"])),
            ",".join(map(str, row["to"])),
            "none" if row["leader_from"] is None else str(row["leader_from"]),
            str(row["leader_to"]),
        ]
        for row in rows
    )
    yield from render(columns, cells, None, False)
