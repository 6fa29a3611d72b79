"""`meterctl metric`: the metric registry."""

from typing import Any

import click

from meterd.commands.console import Listing, Row, field_lines
from meterd.commands.moments import format_moment
from meterd.commands.session import AdminGroup, Session, command
from meterd.commands.tables import Column
from meterd.commands.usage import parse_time
from meterd.protocol.limits import I64_MIN

AGGREGATIONS = ("count", "sum", "min", "max", "avg", "latest", "first", "unique")
PERIODS = ("hour", "day", "week", "month", "quarter", "year")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.group("metric", cls=AdminGroup)
def metric() -> None:
    """Register, list, show and delete metrics."""


def _parse_period(_ctx: click.Context, _param: click.Parameter, text: str) -> str | int:
    """The name of a period, or the seconds of a `fixed:` one."""
    if text in PERIODS:
        return text
    kind, _, duration = text.partition(":")
    number, unit = duration[:-1], duration[-1:]
    if kind == "fixed" and unit in _UNITS and number.isascii() and number.isdigit():
        return int(number) * _UNITS[unit]
    raise click.BadParameter(f"{text!r} is none of {', '.join(PERIODS)}, fixed:<n>s|m|h|d|w")


def _parse_thresholds(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> list[dict[str, str]]:
    """CODE=VALUE and, each behind a colon, further NAME=VALUE, as the protocol has them."""
    return [_threshold(text) for text in texts]


def _threshold(text: str) -> dict[str, str]:
    first, *more = text.split(":")
    code, _, value = first.partition("=")
    fields = {"code": code, "value": value}
    for each in more:
        name, _, value = each.partition("=")
        if name not in ("every", "percent_of") or name in fields:
            raise click.BadParameter(f"{text!r}: {each!r} is no every=N")
        fields[name] = value
    if not all(fields.values()):
        raise click.BadParameter(f"{text!r} is not CODE=VALUE[:every=N]")
    return fields


@command("put", short_help="Register a metric, or change it with --replace.")
@click.argument("code")
@click.option("--aggregation", required=True, metavar="NAME",
              help=f"How events become an answer: {', '.join(AGGREGATIONS)}.")
@click.option("--decimals", type=click.IntRange(0, 9),
              help="Digits after the point of values [default: 6; 0 for the unit bytes].")
@click.option("--unit", default="", help="What is counted, as text: bytes, calls, seats.")
@click.option("--description", default="", help="For people.")
@click.option("--dimension", "dimensions", multiple=True, metavar="KEY",
              help="A property to group and filter by; may be repeated.")
@click.option("--unique-on", metavar="KEY", help="For unique: the property whose values count.")
@click.option("--period", callback=_parse_period, default="month", show_default=True,
              help=f"{', '.join(PERIODS)}, or fixed:<duration> such as fixed:8h.")
@click.option("--anchor-day", type=click.IntRange(1, 31),
              help="Day on which a month begins [default: 1]; its last day where it is shorter.")
@click.option("--epoch", metavar="TIME", help="Where the first fixed period begins.")
@click.option("--timezone", default="UTC", show_default=True, help="IANA name, Europe/Berlin.")
@click.option("--threshold", "thresholds", multiple=True, callback=_parse_thresholds,
              metavar="CODE=VALUE[:every=N]",
              help="Tell when usage crosses VALUE; may be repeated. This version refuses it.")
@click.option("--replace", is_flag=True, help="Make a new version of a metric that is there.")
def put(session: Session, code: str, period: str | int, epoch: str | None,
        **definition: Any) -> None:
    """Register the metric CODE. The same definition again changes nothing.

    Another definition under the same code is refused (exit code 6) unless --replace is given: it
    then counts for events from now on.
    """
    when: dict[str, Any] = {"kind": period}
    if isinstance(period, int):
        when = {"kind": "fixed", "duration": period, "epoch": parse_time(epoch or "0", None)}
    elif epoch:
        raise click.UsageError("--epoch is for fixed periods")
    with session.connect() as client:
        answer = client.put_metric(code, period=when, **definition)
    document = {"metric": answer.metric, "outcome": answer.outcome}
    session.console.show(document, lambda: [f"metric {code}: {answer.outcome}"])


_LISTING = Listing(
    "metrics",
    [
        Column("CODE"),
        Column("AGGREGATION"),
        Column("DECIMALS", right=True),
        Column("UNIT", elastic=True),
        Column("PERIOD"),
        Column("DIMENSIONS", elastic=True),
        Column("DESCRIPTION", elastic=True, dim=True),
    ],
    lambda row: (
        row["code"],
        row["aggregation"],
        str(row["decimals"]),
        row["unit"],
        period_text(row["period"]),
        " ".join(row["dimensions"]),
        row["description"],
    ),
)


@command("list", short_help="List the metrics.")
def list_metrics(session: Session) -> None:
    """List the metrics that are registered."""
    with session.connect() as client:
        session.console.show_listing(_LISTING, client.list_metrics())


@command("show", short_help="Show one metric and its versions.")
@click.argument("code")
def show(session: Session, code: str) -> None:
    """Show the metric CODE: its definition now, and the versions before it."""
    with session.connect() as client:
        answer = client.show_metric(code)
    session.console.show(answer, lambda: _lines(answer["metric"], answer["versions"]))


@command("delete", short_help="Delete a metric; its events stay.")
@click.argument("code")
def delete(session: Session, code: str) -> None:
    """Delete the metric CODE: new events of it are refused, those stored stay until they expire.

    Asks first; --yes answers.
    """
    session.confirm(f"Delete the metric {code}? New events of it will be refused.")
    with session.connect() as client:
        client.delete_metric(code)
    session.console.show({"code": code, "deleted": True}, lambda: [f"metric {code}: deleted"])


for _command in (put, list_metrics, show, delete):
    metric.add_command(_command)


def period_text(period: Row) -> str:
    """A period in one word and what is unusual about it."""
    text = period["kind"]
    if text == "fixed":
        text = f"fixed:{period['duration']}s"
    elif period.get("anchor_day", 1) != 1:
        text += f" from day {period['anchor_day']}"
    return text if period["timezone"] == "UTC" else f"{text} {period['timezone']}"


def _lines(definition: Row, versions: list[Row]) -> list[str]:
    fields = [(name, str(definition[name])) for name in ("code", "aggregation", "decimals")]
    fields += [
        ("unit", definition["unit"]),
        ("description", definition["description"]),
        ("dimensions", " ".join(definition["dimensions"])),
        ("unique on", definition["unique_on"] or ""),
        ("period", period_text(definition["period"])),
    ]
    for version in versions:
        state = " (deleted)" if version["deleted"] else ""
        since = version["effective_from"]
        begin = "from the beginning" if since == I64_MIN else f"from {format_moment(since)}"
        fields.append((f"version {version['version']}", begin + state))
    return field_lines(fields)
