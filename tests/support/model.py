"""The whole product as a small plain-Python model: the oracle of the tests.

It knows no files, processes, partitions or columns, shares no code with the product, and keeps
every stored event in one list that each question walks from the beginning.  It is meant to be
obviously right, and slow.  What the contract leaves open is decided here once:

  * identity (account, id) is looked at before every other rule;
  * an event's timestamp selects the version of its metric; the first reaches back for ever;
  * a range is answered by the version in force at its last nanosecond, over events of all versions;
  * a property is a dimension of an event only where the event's own version declares it;
  * latest, first and seats go by (timestamp, order stored) over all events that match the question.

All values are exact: `Fraction` for amounts, None for what does not exist.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from fractions import Fraction
from re import ASCII, compile
from typing import Any

from tests.support.periods import DAY, Period, bounds, resolve, windows

DECIMAL = compile(r"[+-]?[0-9]+(\.[0-9]+)?", ASCII)
METRIC = compile(r"[a-z0-9_.:-]{1,63}", ASCII)
I64_MIN, I64_MAX = -(2**63), 2**63 - 1
AGGREGATIONS = ("count", "sum", "min", "max", "avg", "latest", "first", "unique")
EMPTY_IS_ZERO = ("count", "sum", "unique")
OPERATIONS = ("none", "add", "remove")
ACCOUNT_SIZE_MAX = ID_SIZE_MAX = 128
PROPERTIES_MAX, KEY_SIZE_MAX, VALUE_SIZE_MAX = 32, 63, 255


class Refused(Exception):
    """A question or definition that has no answer; the argument is the stable code."""


@dataclass(frozen=True)
class Metric:
    """One version of a metric definition."""

    code: str
    aggregation: str
    decimals: int = 6
    dimensions: tuple[str, ...] = ()
    unique_on: str | None = None
    period: Period = field(default_factory=Period)


@dataclass(frozen=True)
class Stored:
    """An event that was stored; `order` counts all stored events."""

    order: int
    account: str
    id: str
    metric: str
    value: Fraction
    timestamp: int
    operation: str
    properties: Mapping[str, str]
    version: Metric

    def content(self) -> tuple[Any, ...]:
        return (self.metric, self.value, self.timestamp, self.operation, dict(self.properties))

    def dimension(self, key: str) -> str | None:
        return self.properties.get(key) if key in self.version.dimensions else None


@dataclass
class Answer:
    """A total with the number of events in it, and what it splits into if that was asked."""

    value: Fraction | None
    count: int
    start: int = 0
    end: int = 0
    newest_event: int | None = None
    expired: bool = False
    groups: dict[tuple[str | None, ...], "Answer"] = field(default_factory=dict)
    series: list[tuple[int, Fraction | None, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """A usage question in full."""

    metric: str
    start: int
    end: int
    filters: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    group_by: Sequence[str] = ()
    window: str | None = None
    timezone: str = "UTC"


def parse_value(value: object) -> Fraction | None:
    """The exact value of an int or of decimal text; None where it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Fraction(value)
    if isinstance(value, str) and DECIMAL.fullmatch(value):
        return Fraction(value)
    return None


def fits(value: Fraction, decimals: int) -> bool:
    units: Fraction = value * 10**decimals
    return units.denominator == 1 and I64_MIN <= units <= I64_MAX


def ingest_content(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two events with one identity must agree on, to be the same event."""
    value = parse_value(event.get("value", 1))
    operation = event.get("operation") or "none"
    properties = dict(event.get("properties") or {})
    return (event["metric"], value, event["timestamp"], operation, properties)


def sized(text: object, least: int, most: int) -> bool:
    return isinstance(text, str) and least <= len(text.encode()) <= most


def below(account: str, parent: str) -> bool:
    return account == parent or account.startswith(parent + "/")


class Model:
    """All metrics and events; `ingest`, `put_metric`, `delete_metric`, `expire`, `erase`, `bring`
    change it."""

    def __init__(self, retention_days: int = 90, ahead: int = DAY) -> None:
        self.retention = retention_days * DAY
        self.ahead = ahead
        self.horizon = I64_MIN
        self.versions: dict[str, list[tuple[int, Metric]]] = {}
        self.deleted: set[str] = set()
        self.stored: list[Stored] = []
        self.identities: dict[tuple[str, str], Stored] = {}
        self.expired: list[Stored] = []
        self.erased: list[Stored] = []
        self.order = 0

    # Metrics

    def put_metric(self, metric: Metric, now: int = 0, replace: bool = False) -> str:
        if not METRIC.fullmatch(metric.code) or metric.aggregation not in AGGREGATIONS:
            raise Refused("bad_request")
        versions = self.versions.setdefault(metric.code, [])
        since = max(now, versions[-1][0] + 1) if versions else I64_MIN
        if not versions or metric.code in self.deleted:
            self.deleted.discard(metric.code)
            versions.append((since, copy(metric)))
            return "created"
        if versions[-1][1] == metric:
            return "unchanged"
        if not replace:
            raise Refused("metric_conflict")
        versions.append((since, copy(metric)))
        return "replaced"

    def delete_metric(self, code: str) -> None:
        """Let a metric take no more events; what it has counted can still be asked for."""
        if code not in self.versions or code in self.deleted:
            raise Refused("unknown_metric")
        self.deleted.add(code)

    def current(self, code: str) -> Metric:
        return self.version_at(code, I64_MAX)

    def version_at(self, code: str, moment: int) -> Metric:
        if code not in self.versions:
            raise Refused("unknown_metric")
        return [metric for since, metric in self.versions[code] if since <= moment][-1]

    # Events

    def ingest(self, event: Mapping[str, Any], leader_time: int) -> tuple[str, str]:
        """Take one event; its status, and the reason where it was rejected."""
        account, identifier = event["account"], event["id"]
        account = str(account) if isinstance(account, int) else account
        if not sized(account, 1, ACCOUNT_SIZE_MAX):
            return "rejected", "bad_account"
        if not sized(identifier, 1, ID_SIZE_MAX):
            return "rejected", "bad_id"
        content = ingest_content(event)
        known = self.identities.get((account, identifier))
        if known is not None:
            return ("duplicate" if known.content() == content else "conflict"), ""
        reason = self.ingest_reason(content, leader_time)
        if reason:
            return "rejected", reason
        metric, value, timestamp, operation, properties = content
        stored = Stored(
            order=self.order,
            account=account,
            id=identifier,
            metric=metric,
            value=value,
            timestamp=timestamp,
            operation=operation,
            properties=properties,
            version=self.version_at(metric, timestamp),
        )
        self.order += 1
        self.stored.append(stored)
        self.identities[account, identifier] = stored
        return "stored", ""

    def ingest_reason(self, content: tuple[Any, ...], leader_time: int) -> str:
        metric, value, timestamp, operation, properties = content
        if not isinstance(metric, str) or not METRIC.fullmatch(metric):
            return "bad_metric"
        if metric not in self.versions or metric in self.deleted:
            return "unknown_metric"
        if value is None or not fits(value, self.version_at(metric, timestamp).decimals):
            return "bad_value"
        if operation not in OPERATIONS:
            return "bad_operation"
        if len(properties) > PROPERTIES_MAX or not all(
            sized(key, 1, KEY_SIZE_MAX) and sized(text, 0, VALUE_SIZE_MAX)
            for key, text in properties.items()
        ):
            return "bad_properties"
        if timestamp < max(self.horizon, leader_time - self.retention):
            return "too_old"
        if timestamp > leader_time + self.ahead:
            return "too_far_ahead"
        return ""

    def expire(self, horizon: int) -> None:
        """Forget events before the horizon and their identities; members stay (opening state)."""
        self.horizon = max(self.horizon, horizon)
        self.erased = [event for event in self.erased if not self.forgotten(event)]
        old = [event for event in self.stored if event.timestamp < self.horizon]
        self.stored = [event for event in self.stored if event.timestamp >= self.horizon]
        self.expired += old
        for event in old:
            del self.identities[event.account, event.id]

    def forgotten(self, erased: Stored) -> bool:
        """Is the identity of an erased event free by now?  Then free it."""
        if erased.timestamp >= self.horizon:
            return False
        del self.identities[erased.account, erased.id]
        return True

    def erase(self, account: str, subtree: bool = False) -> None:
        """Forget what an account has; its identities stay as long as they would have."""

        def is_gone(event: Stored) -> bool:
            return below(event.account, account) if subtree else event.account == account

        self.erased += [event for event in self.stored if is_gone(event)]
        self.stored = [event for event in self.stored if not is_gone(event)]
        self.expired = [event for event in self.expired if not is_gone(event)]

    def bring(self, events: Iterable[Stored]) -> None:
        """Take a balance: events of another system, which have no identity here."""
        self.expired += events

    # Questions

    def period(self, metric: str, named: str, now: int) -> tuple[int, int]:
        return resolve(self.current(metric).period, named, now)

    def period_of(self, metric: str, moment: int) -> tuple[int, int]:
        return bounds(self.current(metric).period, moment)

    def usage(self, account: str, question: Question, subtree: bool = False) -> Answer:
        """The answer for one account, or for a path and everything below it."""
        if subtree:
            return self.answer(question, lambda other: below(other, account))
        return self.answer(question, lambda other: other == account)

    def accounts(self, question: Question) -> dict[str, Answer]:
        """The answer for each account that has one."""
        names = sorted({event.account for event in self.expired + self.stored})
        answers = {name: self.usage(name, question) for name in names}
        return {name: answer for name, answer in answers.items() if answer.count or answer.value}

    def events(
        self, account: str, start: int, end: int, metric: str | None = None, subtree: bool = False
    ) -> list[Stored]:
        return sorted(
            (
                event
                for event in self.stored
                if (below(event.account, account) if subtree else event.account == account)
                and start <= event.timestamp < end
                and metric in (None, event.metric)
            ),
            key=lambda event: (event.timestamp, event.order),
        )

    def answer(self, question: Question, is_asked: Callable[[str], bool]) -> Answer:
        version = self.version_at(question.metric, question.end - 1)
        if not {*question.filters, *question.group_by} <= set(version.dimensions):
            raise Refused("bad_request")
        matching = self.answer_matching(question, is_asked)
        answer = self.answer_of(matching, version, question)
        if question.group_by:
            split: dict[tuple[str | None, ...], list[Stored]] = {}
            for event in matching:
                split.setdefault(tuple(map(event.dimension, question.group_by)), []).append(event)
            groups = {k: self.answer_of(of_key, version, question) for k, of_key in split.items()}
            answer.groups = {k: group for k, group in groups.items() if group.count or group.value}
        return answer

    def answer_matching(self, question: Question, is_asked: Callable[[str], bool]) -> list[Stored]:
        """Every event before the end that the question is about, in (timestamp, stored) order."""
        return sorted(
            (
                event
                for event in self.expired + self.stored
                if event.metric == question.metric
                and event.timestamp < question.end
                and is_asked(event.account)
                and all(event.dimension(k) in values for k, values in question.filters.items())
            ),
            key=lambda event: (event.timestamp, event.order),
        )

    def answer_of(self, matching: list[Stored], version: Metric, question: Question) -> Answer:
        value, inside = aggregate(matching, version, question.start, question.end)
        answer = Answer(value, len(inside), question.start, question.end)
        answer.newest_event = max((event.timestamp for event in inside), default=None)
        answer.expired = question.start < self.horizon
        if question.window:
            for start, end in windows(
                question.window, question.timezone, question.start, question.end
            ):
                value, inside = aggregate(matching, version, start, end)
                answer.series.append((start, value, len(inside)))
        return answer


def aggregate(
    matching: list[Stored], version: Metric, start: int, end: int
) -> tuple[Fraction | None, list[Stored]]:
    """The value over [start, end), and the events in it; `matching` is in order."""
    inside = [event for event in matching if start <= event.timestamp < end]
    if version.aggregation == "unique":
        return Fraction(len(members(matching, version, start, end))), inside
    if not inside:
        return (Fraction(0) if version.aggregation in EMPTY_IS_ZERO else None), inside
    values = [event.value for event in inside]
    answers: dict[str, Callable[[], Fraction]] = {
        "count": lambda: Fraction(len(values)),
        "sum": lambda: sum(values, Fraction(0)),
        "min": lambda: min(values),
        "max": lambda: max(values),
        "avg": lambda: sum(values, Fraction(0)) / len(values),
        "latest": lambda: values[-1],
        "first": lambda: values[0],
    }
    return answers[version.aggregation](), inside


def members(matching: Iterable[Stored], version: Metric, start: int, end: int) -> set[object]:
    """Distinct members seen in [start, end), or present at a moment of it."""
    counted: set[object] = set()
    present_since: dict[object, int] = {}
    for event in matching:
        member: object = event.value
        if version.unique_on is not None:
            member = event.properties.get(version.unique_on)
        if member is None or event.timestamp >= end:
            continue
        if event.operation == "none":
            if event.timestamp >= start:
                counted.add(member)
        elif event.operation == "add":
            present_since.setdefault(member, event.timestamp)
        else:
            since = present_since.pop(member, event.timestamp)
            if max(since, start) < event.timestamp:
                counted.add(member)
    return counted | set(present_since) if start < end else set()
