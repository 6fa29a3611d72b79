"""`meterctl events` and `meterctl feed`: the events themselves, stored and refused."""

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from meterd.commands.cluster import ask_members
from meterd.commands.console import Listing, Row, to_json, to_row, warn
from meterd.commands.moments import format_moment
from meterd.commands.nodes import ask_nodes
from meterd.commands.session import AdminGroup, Session, command, exit_with
from meterd.commands.tables import Column, group_thousands
from meterd.commands.usage import consistency_option, fresh_as, parse_time
from meterd.exits import AdminExit

if TYPE_CHECKING:
    from meterd.client import Client

LIMIT_DEFAULT = 100
LIMIT_MAX = 100_000_000
FOLLOW_SECONDS = 0.2  # between two questions while nothing happens


def _properties_text(row: Row) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(row["properties"].items()))


EVENTS = Listing(
    "events",
    [
        Column("TIME"),
        Column("ACCOUNT", elastic=True),
        Column("METRIC", elastic=True),
        Column("VALUE", right=True),
        Column("ID", elastic=True, dim=True),
        Column("PROPERTIES", elastic=True),
    ],
    lambda row: (
        format_moment(row["timestamp"]),
        row["account"],
        row["metric"],
        group_thousands(row["value"]),
        row["id"],
        _properties_text(row),
    ),
)

REFUSED = Listing(
    "events",
    [
        Column("REFUSED"),
        Column("REASON"),
        Column("ACCOUNT", elastic=True),
        Column("METRIC", elastic=True),
        Column("VALUE", right=True, elastic=True),
        Column("TIME"),
        Column("ID", elastic=True, dim=True),
    ],
    lambda row: (
        format_moment(row["time"]),
        row["reason"],
        row["account"],
        row["metric"],
        row["value"] or "-",
        "-" if row["timestamp"] is None else format_moment(row["timestamp"]),
        row["id"],
    ),
)

_limit_option = click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=LIMIT_DEFAULT,
                             show_default=True, help="At most so many events.")


@click.group("events", cls=AdminGroup, default="list", subcommand_metavar="ACCOUNT | COMMAND")
def events() -> None:
    """List events: of an account, refused ones, or new ones as they arrive.

    `meterctl events ACCOUNT` is short for `meterctl events list ACCOUNT`.
    """


@command("list", short_help="List the events of an account (the default).")
@click.argument("account")
@click.option("--start", metavar="TIME", help="From this moment on [default: the oldest kept].")
@click.option("--end", metavar="TIME", help="Before this moment [default: the newest].")
@click.option("--timezone", metavar="ZONE", help="Zone of times without offset [default: UTC].")
@click.option("--metric", metavar="CODE", help="Of this metric only.")
@click.option("--subtree", is_flag=True, help="With everything below the account's path.")
@consistency_option
@_limit_option
def list_events(session: Session, account: str, start: str | None, end: str | None,
                timezone: str | None, consistency: str | None, **question: Any) -> None:
    """List the events of ACCOUNT in the order of their time, with their properties."""
    question["start"] = parse_time(start, timezone) if start else None
    question["end"] = parse_time(end, timezone) if end else None
    with session.connect() as client:
        pages = client.events(account, **question, **fresh_as(consistency))
        session.console.show_listing(EVENTS, map(to_row, pages), None, lambda: _age(pages.head))


@command("rejected", short_help="List refused events, with the reason.")
@_limit_option
def rejected(session: Session, limit: int) -> None:
    """List the events that were refused, the newest first, each with its reason.

    Each node keeps those that it has judged: all nodes of a cluster are asked, and exit code 7
    says that some did not answer.
    """
    _, found = ask_members(session)
    reached = [one["address"] for one in found.values() if "answer" in one]
    answers = ask_nodes(
        replace(session, nodes=tuple(reached)), lambda client: list(client.rejected(limit=limit))
    )
    told = [one["answer"] for one in answers if "answer" in one]
    rows = sorted(chain.from_iterable(told), key=attrgetter("time"), reverse=True)
    session.console.show_listing(REFUSED, map(to_row, rows[:limit]))
    exit_with([AdminExit.PARTLY] * (len(told) < len(found)))


@command("tail", short_help="Show new events as they are stored.")
@click.option("--account", metavar="ACCOUNT", help="Of this account only.")
def tail(session: Session, account: str | None) -> None:
    """Show events as they are stored, until Ctrl-C. JSON comes as one line for each event."""
    with session.connect() as client:
        _follow(session, client, "end", account, {})


@command("feed", short_help="Read stored events in the order of the log.")
@click.option("--after", metavar="CURSOR",
              help="Go on behind this cursor; 'end' means from now [default: the oldest kept].")
@click.option("--account", metavar="ACCOUNT", help="Of this account only.")
@click.option("--follow", is_flag=True, help="Wait for more at the end, until Ctrl-C.")
@consistency_option
@_limit_option
def feed(session: Session, after: str | None, account: str | None, follow: bool,
         consistency: str | None, limit: int) -> None:
    """Read stored events in the order in which they were stored: a stream for other systems.

    The JSON result names the cursor to go on with: each event is then seen exactly once.
    """
    with session.connect() as client:
        fresh = fresh_as(consistency)
        if follow:
            _follow(session, client, after, account, fresh)
            return
        pages = client.feed(after, account, limit=limit, **fresh)
        session.console.show_listing(
            EVENTS, map(to_row, pages), None,
            lambda: {"next": pages.cursor or after} | _age(pages.head),
        )
    if session.console.is_table:
        warn(f"go on with --after {pages.cursor or after}")


for _command in (list_events, rejected, tail):
    events.add_command(_command)


def _age(head: Row) -> dict[str, Any]:
    """What a local answer says of its age; nothing of an exact one."""
    return {"as_of": head["as_of"]} if "as_of" in head else {}


def _follow(session: Session, client: "Client", after: str | None, account: str | None,
            fresh: Mapping[str, Any]) -> None:
    """Show the feed and wait for more; ends by an interrupt, or when nobody reads any longer."""
    console = session.console
    while True:
        pages = client.feed(after, account, **fresh)
        for row in map(to_row, pages):
            if console.is_table:
                console.write_line("  ".join(cell for cell in EVENTS.cells(row) if cell))
            else:
                console.write_line(to_json(row))
        console.stream.flush()
        if pages.cursor in (None, after):
            time.sleep(FOLLOW_SECONDS)
        after = pages.cursor or after
