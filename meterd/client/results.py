"""What the methods of a client return: plain values, built from answers.

Amounts are decimal.Decimal and moments are UTC nanoseconds as int, as on the wire: neither is ever
a float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from meterd.client.events import Event
from meterd.client.tables import Columns, Tabular
from meterd.protocol import result
from meterd.protocol.errors import DeadlineExceeded, RemoteProtocolError


class Item(NamedTuple):
    """What became of one event that was not simply stored."""

    index: int  # type: ignore[assignment]  # of the event; hides tuple.index
    status: str  # duplicate, conflict, rejected or unknown
    reason: str


@dataclass(slots=True)
class IngestResult:
    """How many events came to which end; the counts add up to `received`.

    A row that is `duplicate` was stored before, possibly by an earlier attempt of this very call
    whose answer was lost: either way it is stored once.
    """

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0
    unknown: int = 0
    accepted: int = 0
    items: list[Item] = field(default_factory=list)  # by index

    def add(self, answer: result.IngestResult, rows: Sequence[int]) -> None:
        """Add the answer about these rows."""
        if answer.received != len(rows):
            raise RemoteProtocolError("malformed", "an answer about another number of events")
        for name in result.COUNTS:
            setattr(self, name, getattr(self, name) + getattr(answer, name))
        for row, status, reason in answer.items:
            self.items.append(Item(int(rows[row]), status, reason))

    def add_unknown(self, rows: Iterable[int], reason: str) -> None:
        """Add rows about which there is no answer."""
        items = [Item(int(row), "unknown", reason) for row in rows]
        self.items += items
        self.received += len(items)
        self.unknown += len(items)


class IngestUndecided(DeadlineExceeded):
    """Some events are not known to be stored, and not known not to be.

    `result` says what is known; the undecided events are `unknown` in it. Sending `undecided` once
    more, which has the same ids, settles them: it is a list for `ingest`, keywords for
    `ingest_columns`.
    """

    def __init__(
        self, message: str, known: IngestResult, undecided: list[Event] | dict[str, Any]
    ) -> None:
        super().__init__(message)
        self.result = known
        self.undecided = undecided

    def __reduce__(self) -> tuple[type[IngestUndecided], tuple[Any, ...]]:
        return type(self), (self.message, self.result, self.undecided)


class Group(NamedTuple):
    """One row of a grouped usage."""

    key: dict[str, str | None]  # dimension → value; None where an event had no such property
    value: Decimal | None
    count: int  # type: ignore[assignment]  # hides tuple.count, as below
    series: list[Point]


class Point(NamedTuple):
    """One window of a series."""

    start: int  # UTC ns
    value: Decimal | None
    count: int  # type: ignore[assignment]


def amount(text: str | None) -> Decimal | None:
    """Read a value of an answer."""
    return None if text is None else Decimal(text)


def _points(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    return [Point(row["start"], amount(row["value"]), row["count"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Usage(Tabular):
    """How much of a metric an account used in [start, end)."""

    account: str
    metric: str
    aggregation: str
    unit: str
    start: int  # UTC ns
    end: int
    value: Decimal | None  # None where there is nothing to take the minimum, average … of
    fraction: Fraction | None  # avg, exactly
    count: int  # of events
    groups: list[Group]
    series: list[Point]
    position: str  # of the log, at which it was computed
    newest_event: int | None  # UTC ns
    expired: bool  # whether anything in the range has expired
    # UTC ns: all that was acknowledged until then is in it; None of an exact answer, or not known
    as_of: int | None = None

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Usage:
        """Read the answer to `usage`."""
        fraction = answer.get("fraction")
        groups = [
            Group(
                dict(row["key"]),
                amount(row["value"]),
                row["count"],
                _points(row.get("series") or ()),
            )
            for row in answer.get("groups") or ()
        ]
        return cls(
            account=answer["account"],
            metric=answer["metric"],
            aggregation=answer["aggregation"],
            unit=answer["unit"],
            start=answer["start"],
            end=answer["end"],
            value=amount(answer["value"]),
            fraction=Fraction(int(fraction[0]), int(fraction[1])) if fraction else None,
            count=answer["count"],
            groups=groups,
            series=_points(answer.get("series") or ()),
            position=answer["position"],
            newest_event=answer["newest_event"],
            expired=answer["expired"],
            as_of=answer.get("as_of"),
        )

    def columns(self) -> Columns:
        """Give one row for each window of each group, or for each group, or for the whole."""
        whole = Point(self.start, self.value, self.count)
        if self.groups:
            rows = [
                (group.key, point)
                for group in self.groups
                for point in group.series or [Point(self.start, group.value, group.count)]
            ]
        else:
            rows = [({}, point) for point in self.series or [whole]]
        columns: Columns = {}
        for dimension in rows[0][0]:
            name = f"key_{dimension}" if dimension in Point._fields else dimension
            columns[name] = [key[dimension] for key, _ in rows]
        for name in Point._fields:
            columns[name] = [getattr(point, name) for _, point in rows]
        return columns


class AccountUsage(NamedTuple):
    """One row of `accounts`."""

    account: str
    value: Decimal | None
    count: int  # type: ignore[assignment]

    @classmethod
    def from_map(cls, row: Mapping[str, Any]) -> AccountUsage:
        return cls(row["account"], amount(row["value"]), row["count"])


class StoredEvent(NamedTuple):
    """One row of `events` and `feed`: an event as the node keeps it."""

    account: str
    metric: str
    value: Decimal
    timestamp: int  # UTC ns
    id: str
    operation: str
    properties: dict[str, str]

    @classmethod
    def from_map(cls, row: Mapping[str, Any]) -> StoredEvent:
        return cls(
            row["account"],
            row["metric"],
            Decimal(row["value"]),
            row["timestamp"],
            row["id"],
            row["operation"],
            dict(row["properties"]),
        )


class RejectedEvent(NamedTuple):
    """One row of `rejected`: an event that was refused, and why."""

    time: int  # UTC ns, when it was refused
    account: str
    metric: str
    id: str
    reason: str
    timestamp: int | None
    value: str | None

    @classmethod
    def from_map(cls, row: Mapping[str, Any]) -> RejectedEvent:
        return cls(
            row["time"],
            row["account"],
            row["metric"],
            row["id"],
            row["reason"],
            row.get("timestamp"),
            row.get("value"),
        )
