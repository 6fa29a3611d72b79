"""`meterctl status`, `health`, `metrics`, `wait` and `version`: looking at nodes.

Every node that was named gets a row, also one that does not answer, with the reason. Nodes are
asked at the same time, so the whole takes one timeout and not their sum.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import click

import meterd
from meterd.commands.console import Row, field_lines, warn
from meterd.commands.moments import format_duration, format_moment
from meterd.commands.session import (
    AdminError,
    Session,
    admin_error_of,
    command,
    exit_of,
    exit_with,
)
from meterd.commands.tables import Column, group_thousands, render
from meterd.exits import AdminExit
from meterd.protocol.errors import MeterdError

STATUSES = ("pass", "warn", "fail")  # of a check and of a node, from good to bad
WAIT_TIMEOUT_DEFAULT = 60.0
POLL_SECONDS = 0.2
GOOD_ROUNDS = 2  # in a row: a node may look well for a moment while it starts
NODES_AT_ONCE = 32
MOMENTS = range(10**18, 4 * 10**18)  # nanoseconds from 2001 to 2096; no count comes near


def ask_nodes(session: Session, question: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Ask each node the same: `{"address", "answer"}`, or `{"address", "error"}`, in order."""

    def ask(address: str) -> dict[str, Any]:
        try:
            with replace(session, nodes=(address,)).connect() as client:
                return {"address": address, "answer": question(client)}
        except MeterdError as error:
            ending = admin_error_of(error)
            error_fields = {"error": ending.code, "message": ending.message, "hint": ending.hint}
            return {"address": address, **error_fields}

    with ThreadPoolExecutor(min(NODES_AT_ONCE, len(session.nodes))) as pool:
        return list(pool.map(ask, session.nodes))


def reached(answers: list[dict[str, Any]]) -> int:
    """How many nodes answered. Raises AdminError when none did."""
    count = sum("answer" in answer for answer in answers)
    if count == 0:
        first = answers[0]
        wrong = exit_of(first["error"]) is AdminExit.USAGE  # the question, not the nodes
        exit_code = AdminExit.USAGE if wrong else AdminExit.UNREACHABLE
        raise AdminError(exit_code, first["error"], first["message"], first["hint"])
    return count


def merge(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One flat object for each node."""
    return [
        {"address": row["address"], "reachable": True, **row["answer"]}
        if "answer" in row
        else {**row, "reachable": False}
        for row in answers
    ]


@command("status", short_help="Show what the nodes are and do.")
def status(session: Session) -> None:
    """Show node, actors, log and totals of every node named with -n, and their cluster.

    Exit code 1: a partition of the cluster has no leader, or lacks a replica; 7: a node does not
    answer.
    """
    from meterd.commands.cluster_summary import cluster_section, is_degraded

    answers = ask_nodes(session, lambda client: client.status())
    count = reached(answers)
    section = cluster_section(session)
    document = {
        "reachable": count,
        "configured": len(answers),
        "nodes": merge(answers),
        "cluster": section,
    }
    session.console.show(document, lambda: _status_lines(document))
    silent = 0 if section is None else section["configured"] - section["reachable"]
    partly = silent > 0 or count < len(answers)
    exit_with([AdminExit.NO] * is_degraded(section) + [AdminExit.PARTLY] * partly)


def _status_lines(document: Row) -> Iterator[str]:
    from meterd.commands.cluster_summary import cluster_lines

    for node in document["nodes"]:
        yield f"{node['address']}  " + ("" if node["reachable"] else f"{node['error']}")
        if node["reachable"]:
            fields = {k: v for k, v in node.items() if k not in ("address", "reachable")}
            yield from tree_lines(fields, "  ")
        else:
            yield f"  {node['message']}"
    if document["cluster"] is not None:
        yield from cluster_lines(document["cluster"])
    yield f"{document['reachable']}/{document['configured']} reachable"


def tree_lines(fields: Row, indent: str) -> Iterator[str]:
    """Nested fields as indented lines, tables where a list holds objects."""
    plain = [(k, v) for k, v in fields.items() if not isinstance(v, dict | list)]
    for line in field_lines((k.replace("_", " "), scalar_text(v)) for k, v in plain):
        yield indent + line
    for key, value in fields.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key.replace('_', ' ')}"
            yield from tree_lines(value, indent + "  ")
        elif isinstance(value, list) and value:
            yield f"{indent}{key.replace('_', ' ')}"
            yield from _list_lines(value, indent + "  ")


def _list_lines(values: list[Any], indent: str) -> Iterator[str]:
    if not all(isinstance(value, dict) for value in values):
        yield indent + ", ".join(map(scalar_text, values))
        return
    keys = list(dict.fromkeys(key for value in values for key in value))
    numeric = {key for key in keys if all(is_number(value.get(key)) for value in values)}
    columns = [Column(key.upper().replace("_", " "), right=key in numeric) for key in keys]
    rows = ([scalar_text(value.get(key)) for key in keys] for value in values)
    for line in render(columns, rows, None, False):
        yield indent + line


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def scalar_text(value: object) -> str:
    """One value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_moment(value) if value in MOMENTS else group_thousands(value)
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return str(value)


def _health(session: Session) -> dict[str, Any]:
    """The health of all nodes as one document; its status is the worst, silence being `fail`."""
    nodes = merge(ask_nodes(session, lambda client: client.health()))
    statuses = [node["status"] if node["reachable"] else "fail" for node in nodes]
    return {
        "status": max(statuses, key=STATUSES.index),
        "reachable": sum(node["reachable"] for node in nodes),
        "configured": len(nodes),
        "nodes": nodes,
    }


def await_healthy(session: Session, patience: float) -> dict[str, Any]:
    """Ask until all nodes are well twice in a row. Raises AdminError when the time is over."""
    deadline = time.monotonic() + patience
    good_rounds = 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise AdminError(
                AdminExit.RUNNING,
                "not_healthy",
                f"the nodes were not all well within {patience:g} s",
                "meterctl health shows which check fails",
            )
        looking = session.looking()
        document = _health(replace(looking, timeout=max(0.1, min(left, looking.timeout))))
        good_rounds = good_rounds + 1 if document["status"] != "fail" else 0
        if good_rounds >= GOOD_ROUNDS:
            return document
        time.sleep(POLL_SECONDS)


@command("health", short_help="Tell whether the nodes are well.")
@click.option(
    "--exit-when-healthy",
    is_flag=True,
    help="Wait until all are, at most --timeout seconds [default then: 60].",
)
def health(session: Session, exit_when_healthy: bool) -> None:
    """Tell whether every node named with -n can do its work.

    Exit code 0: all are well; 1: one is not; 3: none answers; 7: some do not answer; 8: not well
    when the time for --exit-when-healthy was over.
    """
    if exit_when_healthy:
        document = await_healthy(session, session.patience(WAIT_TIMEOUT_DEFAULT))
    else:
        document = _health(session)
    session.console.show(document, lambda: _health_lines(document))
    if document["reachable"] == 0:
        raise SystemExit(AdminExit.UNREACHABLE)
    if document["reachable"] < document["configured"]:
        raise SystemExit(AdminExit.PARTLY)
    if document["status"] == "fail":
        raise SystemExit(AdminExit.NO)


def _health_lines(document: Row) -> Iterator[str]:
    columns = [Column(title) for title in ("NODE", "STATUS", "STATE", "UPTIME", "FAILED CHECKS")]
    yield from render(columns, map(_health_cells, document["nodes"]), None, False)
    yield f"{document['status']}: {document['reachable']}/{document['configured']} reachable"


def _health_cells(node: Row) -> list[str]:
    if not node["reachable"]:
        return [node["address"], "fail", "-", "-", f"{node['error']}: {node['message']}"]
    failed = [
        f"{name} {check['status']}: {check.get('reason') or check.get('value')}"
        for name, check in node["checks"].items()
        if check["status"] != "pass"
    ]
    uptime = format_duration(node["uptime_seconds"])
    return [node["address"], node["status"], node["state"], uptime, ", ".join(failed) or "none"]


@command("metrics", short_help="Show telemetry of the nodes.")
@click.option(
    "--filter",
    "text",
    default="",
    metavar="TEXT",
    help="Only series whose name or labels contain this.",
)
def metrics(session: Session, text: str) -> None:
    """Show the telemetry of every node named with -n: names, labels, values.

    With -o json: a list of {"node", "name", "labels", "value"}.
    """
    answers = ask_nodes(session, lambda client: client.metrics(text))
    count = reached(answers)
    rows = [
        {"node": answer["address"], **sample}
        for answer in answers
        if "answer" in answer
        for sample in parse_exposition(answer["answer"])
    ]
    session.console.show(
        {"metrics": rows},
        lambda: render(_SAMPLES, map(_sample_cells, rows), session.console.width, False),
        "metrics",
    )
    if count < len(answers):
        for answer in answers:
            if "error" in answer:
                warn(f"{answer['address']}: {answer['error']}: {answer['message']}")
        raise SystemExit(AdminExit.PARTLY)


_SAMPLES = [
    Column("NODE"),
    Column("NAME"),
    Column("LABELS", elastic=True),
    Column("VALUE", right=True),
]


def parse_exposition(text: str) -> list[dict[str, Any]]:
    """The samples of a Prometheus exposition."""
    from prometheus_client.parser import text_string_to_metric_families

    return [
        {"name": sample.name, "labels": sample.labels, "value": sample.value}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def _sample_cells(row: Row) -> list[str]:
    labels = " ".join(f"{key}={value}" for key, value in row["labels"].items())
    return [row["node"], row["name"], labels, scalar_text(row["value"])]


@command("wait", short_help="Wait until the nodes, or the cluster, are well.")
@click.option(
    "--for",
    "condition",
    type=click.Choice(["healthy", "caught-up", "leader"]),
    required=True,
    help="What to wait for.",
)
def wait(session: Session, condition: str) -> None:
    """Wait until a condition holds, at most --timeout seconds (60 by default).

    healthy: every node named with -n is well. leader: every partition of the cluster has a leader.
    caught-up: that, all its nodes answer, and have applied what was committed when this was
    asked. Exit code 8 when it did not happen in time.
    """
    patience = session.patience(WAIT_TIMEOUT_DEFAULT)
    if condition == "healthy":
        document = await_healthy(session, patience)
    else:
        from meterd.commands.changes import await_condition

        document = dict(await_condition(session, condition, patience))
    session.console.show(document, lambda: [condition])


@command("version", short_help="Show versions of this program and of the nodes.")
def version(session: Session) -> None:
    """Show the version of meterctl and of every node named with -n.

    Exit code 0 also when no node answers, 1 when versions differ.
    """
    answers = ask_nodes(session, lambda client: client.hello())
    rows = [
        {"address": row["address"], "version": row["answer"]["version"]}
        if "answer" in row
        else {"address": row["address"], "version": None, "error": row["error"]}
        for row in answers
    ]
    document = {
        "meterctl": meterd.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "nodes": rows,
    }
    lines = [("meterctl", meterd.__version__), ("python", str(document["python"]))]
    lines += [(row["address"], row["version"] or row["error"]) for row in rows]
    session.console.show(document, lambda: field_lines(lines))
    if {row["version"] for row in rows if row["version"]} - {meterd.__version__}:
        raise SystemExit(AdminExit.NO)
