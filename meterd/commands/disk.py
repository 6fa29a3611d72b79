"""`meterctl disk status` and `disk free-reserve`: what uses the disk, and what helps when full."""

from collections.abc import Iterator
from typing import Any

import click

from meterd.commands.console import Row
from meterd.commands.moments import format_duration
from meterd.commands.nodes import ask_nodes, merge, reached
from meterd.commands.session import AdminGroup, Session
from meterd.commands.tables import Column, format_bytes, group_thousands, number_or_dash, render
from meterd.exits import AdminExit

DAY_SECONDS = 86_400
REFUSING = ("stop", "hard")
_NODES = [
    Column("NODE"),
    Column("PATH", elastic=True),
    Column("SIZE", right=True),
    Column("USED", right=True),
    Column("FREE", right=True),
    Column("FREE%", right=True),
    Column("INODES FREE", right=True),
    Column("STATE"),
    Column("GROWTH/DAY", right=True),
    Column("FULL IN", right=True),
    Column("TOP USER"),
]
_PARTS = [Column("BYTES", right=True), Column("FILES", right=True)]


@click.group("disk", cls=AdminGroup, default="status", subcommand_metavar="[COMMAND]")
def disk() -> None:
    """See what uses the disk and when it will be full; help a node whose disk is full."""


@disk.command("status", short_help="Show what uses the disk, and when it will be full.")
@click.option("--inodes", is_flag=True, help="Show the directories with most files instead.")
@click.pass_obj
def status(session: Session, inodes: bool) -> None:
    """Show free space, state, what uses the space, growth a day, and the most likely cause.

    Exit code 1 when a node refuses events for lack of space.
    """
    document = _ask(session, "disk_status")
    session.console.show(document, lambda: _status_lines(document, inodes), "nodes")
    _end(document, any(node.get("state") in REFUSING for node in document["nodes"]))


@disk.command("free-reserve", short_help="Give a full disk the space kept in reserve.")
@click.pass_obj
def free_reserve(session: Session) -> None:
    """Give back the space that a node keeps in reserve (disk.ballast).

    Use it to let a node on a full disk write a checkpoint and delete what has expired; it is
    kept again when there is room. Exit code 6 when there is none.
    """
    document = _ask(session, "disk_free_reserve")
    session.console.show(document, lambda: _reserve_lines(document))
    refused = [node for node in document["nodes"] if node.get("error") == "not_needed"]
    if len(refused) == len(document["nodes"]):
        raise SystemExit(AdminExit.REFUSED)
    _end(document, False)


def _ask(session: Session, kind: str) -> dict[str, Any]:
    from meterd.client import questions

    answers = ask_nodes(session, lambda client: client.run(questions.ask(kind, {})))
    if not any(row.get("error") == "not_needed" for row in answers):
        reached(answers)
    nodes = merge(answers)
    count = sum(node["reachable"] for node in nodes)
    return {"reachable": count, "configured": len(nodes), "nodes": nodes}


def _end(document: Row, refusing: bool) -> None:
    if document["reachable"] < document["configured"]:
        raise SystemExit(AdminExit.PARTLY)
    if refusing:
        raise SystemExit(AdminExit.NO)


def _status_lines(document: Row, inodes: bool) -> Iterator[str]:
    nodes = [node for node in document["nodes"] if node["reachable"]]
    yield from render(_NODES, map(_cells, nodes), None, False)
    for node in nodes:
        yield ""
        yield from _part_lines(node, inodes)
        if not node["complete"]:
            yield "there are more files than were looked at"
        reason = f" ({node['reason']})" if node["reason"] else ""
        yield f"state        {node['state']}{reason}"
        yield f"likely cause {node['cause']}"
        yield f"next         {node['next']}"
    yield from _silent_lines(document)


def _cells(node: Row) -> list[str]:
    top = max(node["kinds"], key=lambda one: one["bytes"])["kind"]
    if node["used"] > 2 * node["own"]:
        top = "not meterd"
    return [
        node["address"],
        node["path"],
        format_bytes(node["size"]),
        format_bytes(node["used"]),
        format_bytes(node["free"]),
        f"{100 * node['free'] / max(1, node['size']):.1f}",
        group_thousands(node["inodes_free"]) if node["inodes"] else "-",
        node["state"],
        _growth_text(node["growth_per_day"]),
        _days_text(node["full_in_days"]),
        top,
    ]


def _part_lines(node: Row, inodes: bool) -> Iterator[str]:
    if inodes:
        columns = [Column("DIRECTORY"), *_PARTS]
        parts = [(one["directory"], one) for one in node["directories"]]
    else:
        columns = [Column("KIND"), *_PARTS]
        ordered = sorted(node["kinds"], key=lambda one: -one["bytes"])
        parts = [(one["kind"], one) for one in ordered]
        elsewhere = max(0, node["used"] - node["own"])
        parts.append(("not meterd", {"bytes": elsewhere, "files": None}))
    rows = (
        [
            name,
            format_bytes(one["bytes"]),
            number_or_dash(one["files"]),
        ]
        for name, one in parts
    )
    yield from render(columns, rows, None, False)


def _growth_text(per_day: float | None) -> str:
    return "-" if per_day is None else format_bytes(int(per_day))


def _days_text(days: float | None) -> str:
    return "-" if days is None else format_duration(days * DAY_SECONDS)


def _reserve_lines(document: Row) -> Iterator[str]:
    for node in document["nodes"]:
        if node["reachable"]:
            freed, free = format_bytes(node["freed"]), format_bytes(node["free"])
            yield f"{node['address']}  gave back {freed}, {free} are free"
            yield "next: meterctl disk status; the reserve is kept again when there is room"
    yield from _silent_lines(document)


def _silent_lines(document: Row) -> Iterator[str]:
    for node in document["nodes"]:
        if not node["reachable"]:
            yield f"{node['address']}  {node['error']}: {node['message']}"
