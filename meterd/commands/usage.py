"""`meterctl usage` and `meterctl accounts`: how much was used."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, tzinfo
from typing import Any

import click

from meterd.commands.console import Listing, Row, field_lines, to_row
from meterd.commands.moments import find_zone, format_moment, parse_moment
from meterd.commands.session import Session, command
from meterd.commands.tables import Column, group_thousands, render
from meterd.protocol.limits import PAGE_SIZE_MAX
from meterd.protocol.messages import CONSISTENCIES

WINDOWS = ("hour", "day", "week", "month")
TOP_MAX = 1_000_000

Decorated = Callable[..., Any]


consistency_option = click.option(
    "--consistency", type=click.Choice(CONSISTENCIES),
    help="local: answer at once from what the node has, and say how old that is "
         "[default: exact].",
)


def fresh_as(consistency: str | None) -> dict[str, Any]:
    """The argument of a question that says how fresh its answer is to be."""
    return {} if consistency is None else {"consistency": consistency}


def age_text(answer: Row, zone: tzinfo = UTC) -> str:
    """How old a local answer may be, for people."""
    as_of = answer.get("as_of")
    return "not known" if as_of is None else format_moment(as_of, zone)


def range_options(function: Decorated) -> Decorated:
    """The options that say which time is meant; `take_range` reads them."""
    options = (
        click.option("--period", metavar="P",
                     help="current, previous, or the one that holds a date [default: current]."),
        click.option("--start", metavar="TIME", help="From this moment on ..."),
        click.option("--end", metavar="TIME", help="... and before this one [default: now]."),
        click.option("--timezone", metavar="ZONE",
                     help="Zone of times without offset [default: UTC], and of windows "
                          "[default: the metric's]."),
        click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE",
                     help="Only events with this value; the same key again adds a value."),
        consistency_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


def parse_time(text: str, zone: str | None) -> int:
    """A point in time as nanoseconds; a wrong one is a usage error."""
    try:
        return parse_moment(text, time.time_ns(), zone_of(zone))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def zone_of(name: str | None) -> tzinfo:
    """The zone that times are read and shown in. Raises ValueError when there is none."""
    return UTC if name is None else find_zone(name)


def take_range(
    period: str | None,
    start: str | None,
    end: str | None,
    timezone: str | None,
    filters: tuple[str, ...],
    consistency: str | None,
) -> dict[str, Any]:
    """The arguments of a question that say which events; a wrong zone is told in any case."""
    question: dict[str, Any] = {"period": period or "current"}
    if start is not None or end is not None:
        if period is not None:
            raise click.UsageError("--period cannot be combined with --start and --end")
        if start is None:
            raise click.UsageError("--end needs --start")
        question = {"start": parse_time(start, timezone), "end": parse_time(end or "now", timezone)}
        if question["start"] >= question["end"]:
            raise click.UsageError("--start must lie before --end")
    parse_time("now", timezone)
    if filters:
        question["filters"] = take_filters(filters)
    return question | fresh_as(consistency)


def take_filters(filters: tuple[str, ...]) -> dict[str, list[str]]:
    """`KEY=VALUE` texts by key."""
    taken: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.UsageError(f"--filter {text!r} is not KEY=VALUE")
        taken.setdefault(key, []).append(value)
    return taken


@command("usage", short_help="Ask how much an account used.")
@click.argument("account")
@click.argument("metric")
@range_options
@click.option("--group-by", multiple=True, metavar="KEY", help="A line for each value; repeatable.")
@click.option("--window", type=click.Choice(WINDOWS), help="A series: one value for each window.")
@click.option("--subtree", is_flag=True, help="With everything below the account's path.")
def usage(session: Session, account: str, metric: str, group_by: tuple[str, ...],
          window: str | None, subtree: bool, **when: Any) -> None:
    """Ask how much ACCOUNT used of METRIC: in the current period, or in any range.

    Answers are exact for any range [start, end). Times: 2026-01-31, 2026-01-31T12:00:00Z,
    nanoseconds since 1970, now, -1h.
    """
    question = take_range(**when)
    if group_by:
        question["group_by"] = list(group_by)
    if window:
        question |= {"window": window, "timezone": when["timezone"]}
    if subtree:
        question["subtree"] = True
    with session.connect() as client:
        answer = to_row(client.usage(account, metric, **question))
    zone = zone_of(when["timezone"])
    local = when["consistency"] == "local"
    session.console.show(
        answer, lambda: _usage_lines(session, answer, list(group_by), zone, local)
    )


def value_text(value: str | None, unit: str) -> str:
    """A value as people read it, with its unit."""
    if value is None:
        return "-"
    return f"{group_thousands(value)} {unit}".rstrip()


def _usage_lines(
    session: Session, answer: Row, group_by: list[str], zone: tzinfo, local: bool
) -> Iterator[str]:
    unit = answer.get("unit") or ""
    fraction = answer.get("fraction")
    yield from field_lines(
        [
            ("account", answer["account"]),
            ("metric", f"{answer['metric']} ({answer['aggregation']})"),
            ("from", format_moment(answer["start"], zone)),
            ("to", format_moment(answer["end"], zone)),
            ("value", value_text(answer["value"], unit)),
            ("exactly", f"{fraction[0]}/{fraction[1]}" if fraction else ""),
            ("events", group_thousands(answer["count"])),
            ("expired", "some events of this range have expired" if answer["expired"] else ""),
            ("as of", age_text(answer, zone) if local else ""),
        ]
    )
    console = session.console
    for columns, rows in _parts(answer, group_by, unit, zone):
        yield ""
        yield from render(columns, rows, console.width, console.colour)


def _parts(
    answer: Row, group_by: list[str], unit: str, zone: tzinfo
) -> Iterator[tuple[list[Column], Iterable[list[str]]]]:
    """The tables below a total: groups, and a series."""
    numbers = [Column("VALUE", right=True), Column("EVENTS", right=True)]
    keys = [Column(key.upper(), elastic=True) for key in group_by]
    groups = answer.get("groups") or []
    if groups and not groups[0].get("series"):
        yield keys + numbers, ([*_key(g, group_by), *_numbers(g, unit)] for g in groups)
    elif groups:
        rows = (
            [*_key(group, group_by), *_window(step, unit, zone)]
            for group in groups
            for step in group["series"]
        )
        yield [*keys, Column("START"), *numbers], rows
    if series := answer.get("series"):
        yield [Column("START"), *numbers], (_window(step, unit, zone) for step in series)


def _key(group: Row, group_by: list[str]) -> list[str]:
    return ["-" if group["key"].get(key) is None else group["key"][key] for key in group_by]


def _numbers(row: Row, unit: str) -> list[str]:
    return [value_text(row["value"], unit), group_thousands(row["count"])]


def _window(step: Row, unit: str, zone: tzinfo) -> list[str]:
    return [format_moment(step["start"], zone), *_numbers(step, unit)]


@command("accounts", short_help="List the usage of every account.")
@click.argument("metric")
@range_options
@click.option("--sort", type=click.Choice(["account", "usage"]), default="account",
              show_default=True, help="usage: the largest first.")
@click.option("--top", type=click.IntRange(1, TOP_MAX), metavar="N", help="At most N accounts.")
def accounts(session: Session, metric: str, sort: str, top: int | None, **when: Any) -> None:
    """List what every account used of METRIC: an invoice run, or the --top N.

    All pages are of one position in the log, which the JSON result names.
    """
    question = {**take_range(**when), "sort": sort, "limit": top}
    with session.connect() as client:
        pages = client.accounts(metric, page_size=PAGE_SIZE_MAX, **question)
        session.console.show_listing(
            _ACCOUNTS, map(to_row, pages), {"metric": metric}, lambda: _range_of(pages.head)
        )


def _range_of(head: Row) -> Row:
    return {name: head[name] for name in ("start", "end", "position", "as_of") if name in head}


_ACCOUNTS = Listing(
    "rows",
    [Column("ACCOUNT", elastic=True), Column("VALUE", right=True), Column("EVENTS", right=True)],
    lambda row: (row["account"], value_text(row["value"], ""), group_thousands(row["count"])),
)
