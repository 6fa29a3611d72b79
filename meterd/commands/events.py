"""`meterctl events` and `meterctl feed`: the events themselves, stored and refused."""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import click

from meterd.commands.console import Console, Listing, Row, to_json
from meterd.commands.moments import format_moment
from meterd.commands.session import AdminGroup, Session, command
from meterd.commands.tables import Column, group_thousands
from meterd.commands.usage import parse_time

LIMIT_DEFAULT = 100
LIMIT_MAX = 100_000_000
PAGE = 1000
FOLLOW_SECONDS = 0.2  # between two questions while nothing happens
TAIL_DEFAULT = 10


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
        str(row["value"]),
        format_moment(row["timestamp"]),
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
@click.option("--timezone", metavar="ZONE", default="UTC", show_default=True,
              help="Zone of times without offset.")
@click.option("--metric", metavar="CODE", help="Of this metric only.")
@click.option("--subtree", is_flag=True, help="With everything below the account's path.")
@_limit_option
def list_events(session: Session, account: str, start: str | None, end: str | None, timezone: str,
                metric: str | None, subtree: bool, limit: int) -> None:
    """List the events of ACCOUNT in the order of their time, with their properties."""
    question: dict[str, Any] = {"limit": min(limit, PAGE)}
    if start is not None:
        question["start"] = parse_time(start, timezone)
    if end is not None:
        question["end"] = parse_time(end, timezone)
    if metric is not None:
        question["metric"] = metric
    if subtree:
        question["subtree"] = True
    with session.connect() as client:
        rows = (event.to_dict() for event in client.events(account, **question))
        session.console.show_listing(EVENTS, islice(rows, limit))


@command("rejected", short_help="List refused events, with the reason.")
@_limit_option
def rejected(session: Session, limit: int) -> None:
    """List the events that were refused, the newest first, each with its reason."""
    with session.connect() as client:
        session.console.show_listing(REFUSED, islice(client.rejected(), limit))


@command("tail", short_help="Show new events as they are stored.")
@click.option("--account", metavar="ACCOUNT", help="Of this account only.")
def tail(session: Session, account: str | None) -> None:
    """Show events as they are stored, until Ctrl-C. JSON comes as one line for each event."""
    with session.connect() as client:
        _follow(session, client, "end", account)


@command("feed", short_help="Read stored events in the order of the log.")
@click.option("--after", metavar="CURSOR",
              help="Go on behind this cursor; 'end' means from now [default: the oldest kept].")
@click.option("--account", metavar="ACCOUNT", help="Of this account only.")
@click.option("--follow", is_flag=True, help="Wait for more at the end, until Ctrl-C.")
@_limit_option
def feed(session: Session, after: str | None, account: str | None, follow: bool,
         limit: int) -> None:
    """Read stored events in the order in which they were stored: a stream for other systems.

    The JSON result names the cursor to go on with: each event is then seen exactly once.
    """
    with session.connect() as client:
        if follow:
            _follow(session, client, after, account)
            return
        cursor = [after]
        rows = _feed_rows(client, cursor, account, limit)
        session.console.show_listing(EVENTS, rows, None, lambda: {"next": cursor[0]})
        if session.console.is_table:
            click.echo(f"next: --after {cursor[0]}", err=True)


for _command in (list_events, rejected, tail):
    events.add_command(_command)


def _feed_rows(
    client: Any, cursor: list[str | None], account: str | None, limit: int
) -> Iterator[Row]:
    """Rows of the feed up to a limit or its end; `cursor` moves behind what was given."""
    left = limit
    while left > 0:
        page = client.feed(after=cursor[0], limit=min(left, PAGE), account=account)
        cursor[0] = page.next
        yield from (event.to_dict() for event in page.events)
        left -= len(page.events)
        if not page.events:
            return


def _follow(session: Session, client: Any, after: str | None, account: str | None) -> None:
    """Show the feed and wait for more; ends by an interrupt, or when nobody reads any longer."""
    console = session.console
    cursor = [after]
    while True:
        rows = list(_feed_rows(client, cursor, account, PAGE))
        if not rows:
            time.sleep(FOLLOW_SECONDS)
            continue
        _write_rows(console, rows)
        console.stream.flush()


def _write_rows(console: Console, rows: Iterable[Row]) -> None:
    for row in rows:
        if console.is_table:
            line = "  ".join(cell for cell in EVENTS.cells(row) if cell)
            console.write_line(line)
        else:
            console.write_line(to_json(row))
