"""`meterctl leader`, `node`, `drain` and `undrain`: changing a cluster.

The plan says who is to have replicas and who is to lead; nodes carry it out by themselves, safely
and a little at a time. So a command changes the plan, and waits to see it come true.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import click

from meterd.commands.cluster import ask_cluster, end, group_name, group_of
from meterd.commands.console import Row
from meterd.commands.jobs import ask
from meterd.commands.session import AdminError, AdminGroup, Session, command
from meterd.commands.tables import Column, render
from meterd.core.cluster.members import Member, Members, Seat, balanced_leaders
from meterd.exits import AdminExit

WAIT_TIMEOUT_DEFAULT = 60.0
POLL_SECONDS = 0.2
LATER = {"replace": "add the new node, meterctl rebalance run, then remove the old one"}


def change(session: Session, kind: str, **fields: Any) -> Row:
    """Ask any node for a change of the cluster; its answer."""
    with session.connect() as client:
        return ask(client, kind, **fields)


def members_of(document: Row) -> Members:
    """The members and the plan, as the newest node has told them."""
    nodes = [
        Member(
            node["node"],
            node["incarnation"],
            node["peer_address"],
            node["client_address"],
            node["state"],
            "known" if node["joined"] else "",
        )
        for node in document["nodes"]
    ]
    return Members(nodes, [Seat(tuple(voters), leader) for voters, leader in document["plan"]])


def await_cluster(session: Session, done: Callable[[Row], bool], what: str, patience: float) -> Row:
    """Ask until a condition holds. Raises AdminError when the time is over."""
    deadline = time.monotonic() + patience
    while True:
        document = _ask_until(session, deadline)
        if done(document):
            return document
        if time.monotonic() >= deadline:
            raise AdminError(
                AdminExit.RUNNING,
                "still_running",
                f"{what} is not yet so after {patience:.3g} s; the nodes go on",
                "meterctl topology shows how far they are",
            )
        time.sleep(POLL_SECONDS)


def _ask_until(session: Session, deadline: float) -> Row:
    """Ask until a node answers: one that starts, or has much to do, is worth another question."""
    while True:
        try:
            return ask_cluster(session.looking())
        except AdminError as error:
            if error.exit_code != AdminExit.UNREACHABLE or time.monotonic() >= deadline:
                raise
        time.sleep(POLL_SECONDS)


def _look(session: Session) -> Row:
    """Ask once, before a change that is then waited for."""
    return _ask_until(session, time.monotonic() + session.timeout)


def await_condition(session: Session, condition: str, patience: float) -> Row:
    """Wait for `leader` or `caught-up`. Raises AdminError when the time is over.

    Caught up has who has what was committed when this was asked: under load there is always more.
    """
    if condition == "leader":
        document = await_cluster(session, _has_leaders, "a leader for every partition", patience)
    else:
        commits: dict[int, int] = {}

        def done(document: Row) -> bool:
            if not commits:
                commits.update({one["group"]: one["commit"] for one in document["groups"]})
            return _has_caught_up(commits, document)

        document = await_cluster(session, done, "every node caught up", patience)
    return {key: document[key] for key in ("members_version", "reachable", "configured")}


def _has_leaders(document: Row) -> bool:
    there = {node["node"] for node in document["nodes"] if node["reachable"]}
    return all(group["leader"] in there for group in document["groups"])


def _has_caught_up(commits: dict[int, int], document: Row) -> bool:
    """Is everybody there and at work, and has applied each of its groups up to an index?"""
    if not _has_leaders(document) or document["reachable"] < document["configured"]:
        return False
    nodes = document["nodes"]
    plan = document["plan"]
    return all(
        not node["standing_aside"]
        and not node["holes"]
        and node["leads"] + node["follows"] == node["planned"] == node["holds"]
        and all(peer["connected"] for peer in node["peers"])
        and all(
            group["applied"] >= commits.get(group["group"], 0)
            for group in node["groups"]
            if group["role"] != "none"
        )
        for node in nodes
    ) and all(group["voters"] == plan[group["group"]][0] for group in document["groups"])


# Leaders


@click.group("leader", cls=AdminGroup)
def leader() -> None:
    """Say which node is to lead which partition."""


@leader.command("transfer", short_help="Let a node lead partitions.")
@click.argument("partitions", nargs=-1, required=True, metavar="PARTITION...")
@click.option(
    "--to",
    "target",
    type=click.IntRange(1, 255),
    required=True,
    help="Number of the node that is to lead.",
)
@click.pass_obj
def transfer(session: Session, partitions: tuple[str, ...], target: int) -> None:
    """Let a node lead partitions: numbers from 0 to 255, or meta.

    The plan is changed, so it stays so, and the leaders hand over at once. Exit code 6 when the
    node has no replica, 8 when it does not lead them all in time (--timeout).
    """
    groups = sorted({group_of(text) for text in partitions})
    plan = _look(session)["plan"]
    lacking = [group for group in groups if target not in plan[group][0]]
    if lacking:
        raise AdminError(
            AdminExit.REFUSED,
            "change_refused",
            f"node {target} has no replica of {', '.join(map(group_name, lacking))}",
            "meterctl rebalance run gives nodes replicas",
        )
    moves = [[group, plan[group][0], target] for group in groups]
    _lead(session, moves, f"node {target} leads {len(groups)} groups")


@leader.command("balance", short_help="Spread the leaders evenly.")
@click.pass_obj
def balance(session: Session) -> None:
    """Spread the leaders evenly over the nodes that have replicas, and bring them there.

    Exit code 8 when that is not so in time (--timeout).
    """
    document = _look(session)
    members = members_of(document)
    moves = {group: [group, voters, to] for group, voters, to in balanced_leaders(members)}
    # Those that only have to come back to where the plan has them.
    there = {node["node"] for node in document["nodes"] if node["reachable"]}
    for group in document["groups"]:
        number = group["group"]
        voters, planned = document["plan"][number]
        if number not in moves and group["leader"] != planned and planned in there:
            moves[number] = [number, voters, planned]
    _lead(session, [moves[number] for number in sorted(moves)], "every leader in its place")


def _lead(session: Session, moves: list[list[Any]], what: str) -> None:
    """Change the plan, ask the leaders to hand over, and wait until they have."""
    wanted = {group: to for group, _, to in moves}
    if moves:
        change(session, "plan_move", moves=moves)
        patience = session.patience(WAIT_TIMEOUT_DEFAULT)
        done = partial(_handed_over, session, wanted)
        await_cluster(session, done, what, patience)
    rows = [{"group": group, "leader": to} for group, to in wanted.items()]
    session.console.show(
        {"moved": rows},
        lambda: (
            [f"{group_name(row['group'])}: node {row['leader']} leads" for row in rows]
            or ["nothing to do"]
        ),
        "moved",
    )


def _handed_over(session: Session, wanted: dict[int, int], document: Row) -> bool:
    """Ask who leads what is not where it should be to hand over; is everything there?"""
    nodes = {node["node"]: node for node in document["nodes"] if node["reachable"]}
    asked: dict[tuple[int, int], list[int]] = {}
    left = 0
    for group in document["groups"]:
        to = wanted.get(group["group"])
        if to is None or group["leader"] == to:
            continue
        left += 1
        if group["leader"] in nodes:
            asked.setdefault((group["leader"], to), []).append(group["group"])
    for (source, to), groups in asked.items():
        alone = replace(session, nodes=(nodes[source]["address"],))
        change(alone, "leader_transfer", groups=groups, node=to)
    return left == 0


# Nodes


@click.group(
    "node", cls=AdminGroup, default="list", later=LATER, subcommand_metavar="[COMMAND]"
)
def node() -> None:
    """List the nodes of a cluster; add, promote, remove and recover them."""


@node.command("list", short_help="List the nodes.")
@click.pass_obj
def list_nodes(session: Session) -> None:
    """List the nodes of the cluster with address, state and incarnation.

    Exit code 7 when one does not answer.
    """
    document = ask_cluster(session)
    keys = ("node", "peer_address", "client_address", "state", "incarnation", "joined", "reachable")
    rows: list[Row] = [{key: one[key] for key in keys} for one in document["nodes"]]
    session.console.show({"nodes": rows}, lambda: _node_lines(rows), "nodes")
    end(document, bad=False)


def _node_lines(rows: list[Row]) -> Iterator[str]:
    columns = [Column("NODE", right=True), Column("PEER ADDRESS"), Column("CLIENT ADDRESS")]
    columns += [Column("STATE"), Column("INCARNATION", right=True), Column("JOINED"), Column("UP")]
    cells = (
        [
            str(row["node"]),
            row["peer_address"],
            row["client_address"],
            row["state"],
            str(row["incarnation"]),
            "yes" if row["joined"] else "no",
            "yes" if row["reachable"] else "no",
        ]
        for row in rows
    )
    yield from render(columns, cells, None, False)


def _show_node(session: Session, answer: Row, then: str = "") -> None:
    lines = [f"node {answer['node']} is {answer['state']}, incarnation {answer['incarnation']}"]
    session.console.show({"node": answer}, lambda: lines + ([then] if then else []))


@node.command("add", short_help="Announce a new node.")
@click.argument("number", type=click.IntRange(1, 255), metavar="NODE")
@click.argument("peer_address", metavar="HOST:REPLICATION_PORT")
@click.option(
    "--client-address",
    metavar="HOST:PORT",
    help="Where its clients go; default: the port 1000 below.",
)
@click.pass_obj
def add(session: Session, number: int, peer_address: str, client_address: str | None) -> None:
    """Announce a new node, as a learner; then start it with --bootstrap join and --peers.

    A node that is started so announces itself: this is for who wants to see it refused or taken
    first.
    """
    host, _, port = peer_address.rpartition(":")
    if client_address is None:
        if not (host and port.isdecimal() and int(port[:6]) > 1000):
            raise click.BadParameter(f"{peer_address!r} is not HOST:REPLICATION_PORT")
        client_address = f"{host}:{int(port) - 1000}"
    fields = {"node": number, "peer_address": peer_address, "client_address": client_address}
    answer = change(session, "node_add", **fields)
    _show_node(session, answer, f"start it: meterd --node-id {number} --bootstrap join --peers ...")


def _set_state(session: Session, number: int, state: str) -> Row:
    return change(session, "node_state", node=number, state=state)


@node.command("promote", short_help="Let a learner have replicas.")
@click.argument("number", type=click.IntRange(1, 255), metavar="NODE")
@click.pass_obj
def promote(session: Session, number: int) -> None:
    """Let a node that has joined have replicas; `rebalance run` then gives it some."""
    answer = _set_state(session, number, "voter")
    _show_node(session, answer, "meterctl rebalance run gives it partitions")


@node.command("remove", short_help="Remove a node for good.")
@click.argument("number", type=click.IntRange(1, 255), metavar="NODE")
@click.pass_obj
def remove(session: Session, number: int) -> None:
    """Remove a node that has no replicas. It comes back only as a new incarnation.

    Exit code 6 when it has replicas: drain it and run `rebalance run` before, and wait until
    `rebalance status` has nothing to move.
    """
    _refuse_voter(session, number)
    session.confirm(f"Remove node {number} from the cluster?")
    _show_node(session, _set_state(session, number, "removed"))


def _refuse_voter(session: Session, number: int) -> None:
    """Raise AdminError while a node still votes somewhere: the plan alone may be far ahead.

    The others take a removed node for one that is lost, so each of those groups would give it up
    before its successor votes, and one more failure would leave it without a leader.
    """
    voters = [group["voters"] for group in ask_cluster(session)["groups"]]
    held = sum(number in numbers for numbers in voters)
    if held:
        raise AdminError(
            AdminExit.REFUSED,
            "change_refused",
            f"node {number} still has replicas of {held} groups",
            f"meterctl drain {number}, rebalance run, and wait until rebalance has nothing to move",
        )


@node.command("recover", short_help="Let a node whose disk is lost come back.")
@click.argument("number", type=click.IntRange(1, 255), metavar="NODE")
@click.pass_obj
def recover(session: Session, number: int) -> None:
    """Let a node whose directory is lost come back with an empty one, as a new incarnation.

    What it had promised is forgotten safely: the others take it for somebody else. Then start it
    with an empty directory and --bootstrap join. Never do this for a node that still runs.
    """
    for one in ask_cluster(session)["nodes"]:
        if one["node"] == number and one["reachable"]:
            raise AdminError(
                AdminExit.REFUSED,
                "change_refused",
                f"node {number} answers: its directory is not lost",
                "stop it first, if its directory is to be given up",
            )
    session.confirm(f"Give up the directory of node {number}?")
    answer = change(session, "node_recover", node=number)
    then = f"start it: meterd --node-id {number} --bootstrap join --peers ... (empty directory)"
    _show_node(session, answer, then)


@command("drain", short_help="Let a node lead nothing.")
@click.argument("number", type=click.IntRange(1, 255), metavar="NODE")
def drain(session: Session, number: int) -> None:
    """Let a node lead nothing, and wait until that is so; its replicas stay.

    `rebalance run` then takes its replicas away, where others can have them. Exit code 8 when it
    still leads after --timeout seconds.
    """
    answer = _set_state(session, number, "drained")
    patience = session.patience(WAIT_TIMEOUT_DEFAULT)
    what = f"node {number} leading nothing"
    await_cluster(session, lambda document: _leads_nothing(document, number), what, patience)
    _show_node(session, answer)


def _leads_nothing(document: Row, number: int) -> bool:
    return all(
        group["leader"] != number or group["voters"] == [number] for group in document["groups"]
    )


@command("undrain", short_help="Let a drained node lead again.")
@click.argument("number", type=click.IntRange(1, 255), metavar="NODE")
def undrain(session: Session, number: int) -> None:
    """Let a drained node lead again; `leader balance` gives it its partitions at once."""
    _show_node(session, _set_state(session, number, "voter"))
