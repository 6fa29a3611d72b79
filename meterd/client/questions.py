"""Every method of a client, written once for the sync and the async client.

A method is a plan: a generator that yields jobs, is resumed when each is done, and returns the
result. The clients differ only in how they wait for a job.

Options are checked here for their names only; what their values may be, the node says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

from meterd.client.batches import Route, Source, ingest_calls, ingest_result
from meterd.client.events import account_text
from meterd.client.results import (
    AccountUsage,
    IngestResult,
    RejectedEvent,
    StoredEvent,
    Usage,
)
from meterd.client.session import Call, Job, Unsendable
from meterd.client.times import to_nanoseconds
from meterd.protocol.body import pack
from meterd.protocol.columns import Durability
from meterd.protocol.errors import LocalProtocolError
from meterd.protocol.limits import PAGE_SIZE_DEFAULT

Result = TypeVar("Result")
Row = TypeVar("Row")
Plan = Generator[Job, None, Result]

Account = str | int
Moment = int | datetime | str
Filters = Mapping[str, str | Sequence[str | None] | None]


class ReadOptions(TypedDict, total=False):
    """How fresh an answer is."""

    # exact (default): all that was acknowledged before; local: what the node that is asked has
    consistency: str


class RangeOptions(ReadOptions, total=False):
    """Which events: a period of the metric, or [start, end); all filters must match."""

    period: str | None  # current (default), previous, or a date within
    start: Moment | None
    end: Moment | None
    filters: Filters


class UsageOptions(RangeOptions, total=False):
    """How usage is split."""

    group_by: Sequence[str]
    window: str | None  # hour, day, week or month: gives a series
    timezone: str | None  # of the windows
    subtree: bool  # the account and all below it


class PageOptions(TypedDict, total=False):
    """How a listing is followed."""

    limit: int | None  # rows in all; None: to the end
    page_size: int  # rows in one answer


class AccountsOptions(RangeOptions, PageOptions, total=False):
    """How an invoice run goes."""

    sort: str  # account (default) or usage, the greatest first


class FeedOptions(PageOptions, ReadOptions, total=False):
    """How the feed is followed."""


class EventsOptions(PageOptions, ReadOptions, total=False):
    """Which events of an account."""

    start: Moment | None
    end: Moment | None
    metric: str | None
    subtree: bool


class MetricOptions(TypedDict, total=False):
    """The definition of a metric, besides its code and aggregation."""

    decimals: int | None
    unit: str
    description: str
    dimensions: Sequence[str]
    unique_on: str | None
    period: str | Mapping[str, Any]  # a kind, or a map such as {"kind": "fixed", "duration": 3600}
    anchor_day: int | None
    timezone: str | None
    thresholds: Sequence[Mapping[str, Any]]
    replace: bool


class IngestColumns(TypedDict, total=False):
    """Columns: lists, numpy arrays, or one value for all rows."""

    account: Any
    metric: Any
    value: Any
    exponent: int  # integers in value mean value * 10^-exponent
    timestamp: Any
    id: Any
    operation: Any
    properties: Mapping[str, Any]


class MetricOutcome(NamedTuple):
    """What `put_metric` did."""

    outcome: str  # created, unchanged or replaced
    metric: dict[str, Any]


def check_options(options: Mapping[str, Any], known: type, method: str) -> None:
    """Raise TypeError for an option that the method does not have."""
    for name in options:
        if name not in known.__annotations__:
            nearest = get_close_matches(name, known.__annotations__, n=1)
            raise TypeError(
                f"{method}() has no option {name!r}"
                + (f"; did you mean {nearest[0]!r}?" if nearest else "")
            )


def ask(
    kind: str, fields: Mapping[str, Any], account: str | None = None
) -> Plan[dict[str, Any]]:
    """Ask one question; fields that are None are left out."""
    try:
        body = pack({name: value for name, value in fields.items() if value is not None})
    except LocalProtocolError as error:
        raise Unsendable(f"{kind}: {error.message}") from error
    call = Call(kind, body, account)
    yield Job([call])
    return call.result()


def range_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give options as fields of a body: moments as ns, filters as lists."""
    fields = dict(options)
    for name in ("start", "end"):
        if fields.get(name) is not None:
            fields[name] = to_nanoseconds(fields[name])
    if fields.get("filters"):
        fields["filters"] = {
            key: [wanted] if wanted is None or isinstance(wanted, str) else list(wanted)
            for key, wanted in fields["filters"].items()
        }
    if fields.get("group_by") is not None:
        fields["group_by"] = _keys(fields["group_by"], "group_by")
    return fields


def _keys(keys: Sequence[str], where: str) -> list[str]:
    if isinstance(keys, str):
        raise TypeError(f"{where} is a list of keys: [{keys!r}]")
    return list(keys)


def put_metric(code: str, aggregation: str, options: Mapping[str, Any]) -> Plan[MetricOutcome]:
    """Register a metric."""
    check_options(options, MetricOptions, "put_metric")
    fields = range_fields({"code": code, "aggregation": aggregation} | dict(options))
    if "dimensions" in fields:
        fields["dimensions"] = _keys(fields["dimensions"], "dimensions")
    if "thresholds" in fields:
        fields["thresholds"] = [dict(threshold) for threshold in fields["thresholds"]]
    own = {name: fields.pop(name, None) for name in ("anchor_day", "timezone")}
    own = {name: setting for name, setting in own.items() if setting is not None}
    period = fields.get("period")
    if own or period is not None:
        period = {"kind": period} if isinstance(period, str) else dict(period or {})
        fields["period"] = period | own
    answer = yield from ask("metric_put", fields)
    return MetricOutcome(answer["outcome"], answer["metric"])


def list_metrics() -> Plan[list[dict[str, Any]]]:
    """Give the definitions of all metrics."""
    answer = yield from ask("metric_list", {})
    return answer["metrics"]


def usage(account: Account, metric: str, options: Mapping[str, Any]) -> Plan[Usage]:
    """Ask how much an account used."""
    check_options(options, UsageOptions, "usage")
    name = account_text(account)
    fields = {"account": name, "metric": metric} | range_fields(options)
    answer = yield from ask("usage", fields, name)
    return Usage.from_answer(answer)


def telemetry(name_filter: str) -> Plan[str]:
    """Give the node's telemetry as text."""
    answer = yield from ask("metrics", {"filter": name_filter})
    return answer["text"]


def ingest(source: Source, durability: Durability, route: Route | None) -> Plan[IngestResult]:
    """Send all events of a source."""
    if durability not in ("sync", "async"):
        raise ValueError(f"durability {durability!r} is neither sync nor async")
    job = Job(ingest_calls(source, durability, route))
    yield job
    return ingest_result(source, job)


class Page(NamedTuple, Generic[Row]):
    """One answer of a listing."""

    rows: list[Row]
    cursor: str | None  # where the next page begins; None: nowhere
    head: dict[str, Any]  # the rest of the answer


class Listing(Generic[Row]):
    """A question whose answer comes in pages."""

    def __init__(
        self,
        kind: str,
        row_of: Callable[[Mapping[str, Any]], Row],
        names: Sequence[str],
        fields: Mapping[str, Any],
        limit: int | None = None,
        page_size: int = PAGE_SIZE_DEFAULT,
    ) -> None:
        self.kind = kind
        self.row_of = row_of
        self.names = names
        self.fields = fields
        self.limit = limit
        self.page_size = page_size

    def page(self, cursor: str | None, taken_count: int) -> Plan[Page[Row]]:
        """Ask for the page at a cursor, after so many rows."""
        size = self.page_size
        if self.limit is not None:
            size = min(size, self.limit - taken_count)
        fields = {**self.fields, "limit": size, "after": cursor}
        answer = yield from ask(self.kind, fields, self.fields.get("account"))
        rows = answer.pop("rows" if "rows" in answer else "events")
        after = answer.pop("next", None)
        if self.kind == "feed" and not rows and after == cursor:
            after = None  # the end of the log, for now
        return Page([self.row_of(row) for row in rows], after, answer)

    def is_complete(self, taken_count: int) -> bool:
        """Tell whether the limit is reached."""
        return self.limit is not None and taken_count >= self.limit

    def columns_of(self, rows: Sequence[Row]) -> dict[str, list[Any]]:
        """Give rows as columns."""
        return {name: [getattr(row, name) for row in rows] for name in self.names}


def _split_off_pages(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the fields of a body, and how the listing is followed."""
    fields = dict(options)
    pages = {name: fields.pop(name) for name in PageOptions.__annotations__ if name in fields}
    return range_fields(fields), pages


def accounts(metric: str, options: Mapping[str, Any]) -> Listing[AccountUsage]:
    """List the usage of every account."""
    check_options(options, AccountsOptions, "accounts")
    fields, pages = _split_off_pages(options)
    fields["metric"] = metric
    return Listing("accounts", AccountUsage.from_map, AccountUsage._fields, fields, **pages)


def events(account: Account, options: Mapping[str, Any]) -> Listing[StoredEvent]:
    """List the stored events of an account."""
    check_options(options, EventsOptions, "events")
    fields, pages = _split_off_pages(options)
    fields["account"] = account_text(account)
    return Listing("events", StoredEvent.from_map, StoredEvent._fields, fields, **pages)


def feed(
    after: str | None, account: Account | None, options: Mapping[str, Any]
) -> Listing[StoredEvent]:
    """List stored events in the order of the log."""
    check_options(options, FeedOptions, "feed")
    fields, pages = _split_off_pages(options)
    fields |= {"after": after, "account": None if account is None else account_text(account)}
    return Listing("feed", StoredEvent.from_map, StoredEvent._fields, fields, **pages)


def rejected(options: Mapping[str, Any]) -> Listing[RejectedEvent]:
    """List refused events, the newest first."""
    check_options(options, PageOptions, "rejected")
    return Listing("rejected", RejectedEvent.from_map, RejectedEvent._fields, {}, **options)
