"""Turns the checked body of a question into what it means: whose events, of which metric, when.

Everything that depends on the moment (what "current" is) or on the registry (periods, dimensions)
is settled here once, by the usage actor, so that whoever answers needs neither a clock nor a zone
file.  A question travels to the query actor as a plain map.

What a range of usage means: it is answered by the version of the metric in force at its last
nanosecond; that version's dimensions may be filtered and grouped by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Final

from meterd.core.questions import periods
from meterd.core.questions.zones import DAY, Transitions, moment_of_local
from meterd.core.state.registry import MetricEntry, Registry, effective_at
from meterd.protocol.errors import BadRequest, UnknownMetric
from meterd.protocol.limits import I64_MAX, I64_MIN, PAGE_SIZE_DEFAULT

Filters = tuple[tuple[str, tuple[str | None, ...]], ...]
Zones = Callable[[str], Transitions]

UNIX_EPOCH: Final = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Question:
    """A question of kind usage, accounts, events or feed; fields of other kinds are empty."""

    kind: str
    account: str = ""  # "": every account
    subtree: bool = False
    metric: str = ""  # "": every metric
    start: int = I64_MIN  # UTC ns; the range is [start, end)
    end: int = I64_MAX
    filters: Filters = ()
    group_by: tuple[str, ...] = ()
    edges: tuple[int, ...] = ()  # boundaries of the windows of a series, clipped to the range
    sort: str = "account"
    limit: int = PAGE_SIZE_DEFAULT
    after: str | None = None
    whole_period: bool = False  # exactly one period of every version of the metric
    partitions: tuple[int, ...] | None = None  # only accounts of these; None: of all

    @property
    def from_totals(self) -> bool:
        """Whether the totals of one period answer it, if they are kept."""
        return self.whole_period and not self.edges

    def to_map(self) -> dict[str, Any]:
        """Return the question as plain values."""
        return asdict(self)

    @classmethod
    def from_map(cls, fields: Mapping[str, Any]) -> Question:
        """Read what `to_map` gave, lists where it had tuples."""
        values = dict(fields)
        values["filters"] = tuple((key, tuple(wanted)) for key, wanted in values["filters"])
        values["group_by"] = tuple(values["group_by"])
        values["edges"] = tuple(values["edges"])
        if values["partitions"] is not None:
            values["partitions"] = tuple(values["partitions"])
        return cls(**values)


def resolve_question(
    kind: str, body: Mapping[str, Any], registry: Registry, now: int, zones: Zones
) -> Question:
    """Return what a question means at `now`; `body` is as `check_request` returns it.

    `zones` gives the transitions of a named time zone.  Raises UnknownMetric, BadRequest.
    """
    if kind == "feed":
        return Question(
            kind,
            account=body["account"] or "",
            limit=body["limit"],
            after=body["after"],
            partitions=body["partitions"],
        )
    if kind == "events":
        return _events(body, registry)
    versions = known_versions(registry, body["metric"])
    start, end = _range(body, versions[-1], now)
    # A named period of the only version needs no second look.
    whole = (len(versions) == 1 and body["period"] is not None and _in_calendar(start, end)) or (
        _is_whole_period(versions, start, end)
    )
    if kind == "accounts":
        extra: dict[str, Any] = {
            "sort": body["sort"],
            "limit": body["limit"],
            "after": body["after"],
            "partitions": body["partitions"],
        }
    else:
        extra = {
            "account": body["account"],
            "subtree": body["subtree"],
            "group_by": tuple(body["group_by"]),
            "edges": _edges(body, answering(versions, end), start, end, zones),
        }
    question = Question(
        kind,
        metric=body["metric"],
        start=start,
        end=end,
        filters=_filters(body["filters"]),
        whole_period=whole,
        **extra,
    )
    _check_dimensions(question, answering(versions, end))
    return question


def known_versions(registry: Registry, code: str) -> list[MetricEntry]:
    """Return the versions of a metric, which may be deleted.  Raises UnknownMetric."""
    versions = registry.versions(code)
    if not versions:
        raise UnknownMetric(f"no metric {code} is registered")
    return versions


def answering(versions: list[MetricEntry], end: int) -> MetricEntry:
    """Return the version that answers for a range with this end."""
    return versions[effective_at(versions, end - 1)]


def _events(body: Mapping[str, Any], registry: Registry) -> Question:
    if body["metric"] is not None:
        known_versions(registry, body["metric"])
    start, end = body["start"], body["end"]
    return Question(
        "events",
        account=body["account"],
        subtree=body["subtree"],
        metric=body["metric"] or "",
        start=I64_MIN if start is None else start,
        end=I64_MAX if end is None else end,
        limit=body["limit"],
        after=body["after"],
    )


def _range(body: Mapping[str, Any], current: MetricEntry, now: int) -> tuple[int, int]:
    named = body["period"]
    if named is None:
        return body["start"], body["end"]
    period, transitions = current.definition.period, current.transitions
    if named == "current":
        return periods.bounds(period, transitions, now)
    if named == "previous":
        return periods.previous(period, transitions, now)
    midnight = (date.fromisoformat(named) - UNIX_EPOCH).days * DAY
    if not periods.CALENDAR_START < midnight < periods.CALENDAR_END:
        raise BadRequest("period: a date between the years 1700 and 2239")
    return periods.bounds(period, transitions, moment_of_local(transitions, midnight))


def _is_whole_period(versions: list[MetricEntry], start: int, end: int) -> bool:
    """An event may count by any version, so all of them must see one period here."""
    if not _in_calendar(start, end):
        return False
    kinds = {(entry.definition.period, entry.transitions) for entry in versions}
    return all(
        periods.bounds(period, transitions, start) == (start, end) for period, transitions in kinds
    )


def _in_calendar(start: int, end: int) -> bool:
    return periods.CALENDAR_START < start < end < periods.CALENDAR_END


def _edges(
    body: Mapping[str, Any], entry: MetricEntry, start: int, end: int, zones: Zones
) -> tuple[int, ...]:
    if body["window"] is None:
        if body["timezone"] is not None:
            raise BadRequest("timezone: goes with a window")
        return ()
    # Days as the metric counts them, unless another zone is asked for.
    transitions = entry.transitions if body["timezone"] is None else zones(body["timezone"])
    return tuple(periods.windows(body["window"], transitions, start, end).tolist())


def _filters(raw: Mapping[str, tuple[str | None, ...]]) -> Filters:
    return tuple((key, tuple(raw[key])) for key in sorted(raw))


def _check_dimensions(question: Question, entry: MetricEntry) -> None:
    declared = entry.definition.dimensions
    for where, keys in (
        ("filters", [key for key, _ in question.filters]),
        ("group_by", list(question.group_by)),
    ):
        for key in keys:
            if key not in declared:
                known = ", ".join(declared) if declared else "none"
                raise BadRequest(
                    f"{where}: {key} is no dimension of {question.metric}; it declares: {known}"
                )
