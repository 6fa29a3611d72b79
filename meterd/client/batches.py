"""Cuts what an application sends into requests within the limits, and joins their answers.

Events and columns are cut the same way: by leader, when a cluster has several, then by number, then
in halves while a body is still too large. An event that fits into no request of its own is cut
itself (`fitting`): a node rejects it, and those beside it are stored. Requests are encoded one by
one, when the session has room for them, so millions of rows take the memory of a few requests.

Invariants:
  * every row is in exactly one request, in the order given (within a leader);
  * a row's number in the result is its number in what the application passed.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from meterd.client.events import Event, account_text, make_id
from meterd.client.fitting import cut_constants, cut_event
from meterd.client.results import IngestResult, IngestUndecided
from meterd.client.session import Call, Job, Unsendable
from meterd.client.times import to_nanoseconds
from meterd.protocol.columns import ColumnInput, Durability, TextColumn, encode_columns
from meterd.protocol.errors import LocalProtocolError, MeterdError
from meterd.protocol.event_columns import text_column, text_rows
from meterd.protocol.limits import (
    BODY_SIZE_MAX,
    PROPERTY_KEY_SIZE_MAX,
    PROPERTY_KEYS_PER_REQUEST_MAX,
    PROPERTY_VALUE_SIZE_MAX,
)
from meterd.protocol.result import decode_result

# Half of what a request may hold: two requests under way are better than one.
REQUEST_EVENTS_COUNT = 5_000
# A value that many events share is sent once and kept with each of them: a node that has no room
# for all that at once refuses the request. It takes three times as much, but has so little more
# room on the way to another node that leads them.
WRITTEN_PROPERTIES_SIZE_MAX = 8 * 1024 * 1024

COLUMN_NAMES = frozenset(
    {"account", "metric", "value", "exponent", "timestamp", "id", "operation", "properties"}
)
UUID_TEXT_SIZE = 36
_UUID_TEXTS = re.compile("(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})*", re.ASCII)

# Row numbers: a range when they are neighbours, else in any order.
Rows = Sequence[int]
Route = Callable[[str], str | None]  # account → address of its leader


class Source(ABC):
    """Events that wait to be sent."""

    count: int

    @abstractmethod
    def accounts(self) -> Sequence[str]:
        """Give the account of each row."""

    @abstractmethod
    def input_of(self, rows: Rows) -> ColumnInput:
        """Give these rows as columns."""

    @abstractmethod
    def undecided(self, rows: Rows) -> list[Event] | dict[str, Any]:
        """Give these rows in the form in which the application can send them again."""


class EventSource(Source):
    """Events as objects."""

    def __init__(self, events: Iterable[Event]) -> None:
        if isinstance(events, Event):
            raise TypeError("events is a list of events: [Event(...)]")
        events = events if isinstance(events, list | tuple) else list(events)
        for event in events:
            if not isinstance(event, Event):
                raise TypeError(f"{event!r:.200} is no Event")
        self.events = events
        self.count = len(events)

    def accounts(self) -> Sequence[str]:
        return [event.account for event in self.events]

    def undecided(self, rows: Rows) -> list[Event]:
        return [self.events[row] for row in rows]

    def input_of(self, rows: Rows) -> ColumnInput:
        events = self.undecided(rows)
        keys = dict.fromkeys(key for event in events for key in event.properties)
        operations = [event.operation for event in events]
        return ColumnInput(
            timestamp=[event.timestamp for event in events],
            account=[event.account for event in events],
            metric=[event.metric for event in events],
            value=[event.value for event in events],
            id=compact_ids([event.id for event in events]),
            operation=operations if set(operations) != {"none"} else None,
            properties={key: [event.properties.get(key) for event in events] for key in keys},
        )


class ColumnSource(Source):
    """Events as columns: lists, numpy arrays, or one value for all rows."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        """Take columns; makes `timestamp` and `id` where they are missing.

        Raises TypeError for an unknown or missing column, ValueError when lengths differ.
        """
        unknown = columns.keys() - COLUMN_NAMES
        if unknown:
            raise TypeError(f"no column is called {min(unknown)!r}")
        missing = {"account", "metric"} - columns.keys()
        if missing:
            raise TypeError(f"the column {min(missing)!r} is missing")
        self.columns = cut_constants(columns)
        self.count = self._count()
        now = time.time_ns()
        timestamp = self.columns.get("timestamp", now)
        if isinstance(timestamp, np.datetime64):
            timestamp = int(timestamp.astype("datetime64[ns]").astype(np.int64))
        if isinstance(timestamp, int | str | datetime):
            timestamp = np.full(self.count, to_nanoseconds(timestamp), np.int64)
        self.columns["timestamp"] = _moments(timestamp)
        ids = self.columns.get("id")
        if ids is None:
            ids = [make_id(now) for _ in range(self.count)]
        self.columns["id"] = compact_ids(ids) if isinstance(ids, list) else ids

    def _count(self) -> int:
        """Count the rows, which all columns that are no single value must agree on."""
        properties = self.columns.get("properties") or {}
        named = {name: rows for name, rows in self.columns.items() if name != "properties"}
        named.update((f"property {key}", rows) for key, rows in properties.items())
        counts = {name: row_count(rows) for name, rows in named.items()}
        known = {name: count for name, count in counts.items() if count is not None}
        if len(set(known.values())) > 1:
            raise ValueError(f"the columns differ in length: {known}")
        return next(iter(known.values()), 1)

    def accounts(self) -> Sequence[str]:
        accounts = self.columns["account"]
        if row_count(accounts) is None:
            return [account_text(accounts)] * self.count
        if isinstance(accounts, TextColumn):
            return [text.decode("utf-8", "surrogateescape") for text in text_rows(accounts)]
        if isinstance(accounts, np.ndarray) and accounts.dtype.kind == "S":
            return [text.decode("utf-8", "surrogateescape") for text in accounts.tolist()]
        return [account if type(account) is str else str(account) for account in accounts]

    def undecided(self, rows: Rows) -> dict[str, Any]:
        fields = {name: take(column, rows) for name, column in self.columns.items()}
        properties = self.columns.get("properties")
        if properties:
            fields["properties"] = {key: take(texts, rows) for key, texts in properties.items()}
        return fields

    def input_of(self, rows: Rows) -> ColumnInput:
        fields = self.undecided(rows)
        if fields.get("properties"):
            # A key that none of these rows has would still count against the limit of a request.
            kept = {key: texts for key, texts in fields["properties"].items() if _has_text(texts)}
            fields["properties"] = kept
        return ColumnInput(**fields)


def row_count(column: object) -> int | None:
    """Count the rows of a column; None when it is one value for all rows."""
    if isinstance(column, TextColumn):
        return len(column.offsets) - 1
    if isinstance(column, list | tuple | np.ndarray):
        return len(column)
    return None


def _has_text(column: Any) -> bool:
    """Tell whether any row of a column of properties has one."""
    return column is not None and not (
        isinstance(column, list | tuple) and all(text is None for text in column)
    )


def take(column: Any, rows: Rows) -> Any:
    """Give these rows of a column, which may be one value for all rows."""
    if row_count(column) is None or isinstance(column, Mapping):
        return column
    if isinstance(rows, range):
        if isinstance(column, TextColumn):
            offsets = column.offsets[rows.start : rows.stop + 1]
            return TextColumn(offsets - offsets[0], column.text[offsets[0] : offsets[-1]])
        return column[rows.start : rows.stop]
    if isinstance(column, TextColumn):
        texts = text_rows(column)
        return text_column(texts[row] for row in rows)
    if isinstance(column, np.ndarray):
        return column[np.asarray(rows)]
    return [column[row] for row in rows]


def _moments(moments: Any) -> Any:
    """Give moments as integers: datetime64 arrays and lists of anything are turned into ns."""
    if isinstance(moments, np.ndarray) and moments.dtype.kind == "M":
        return moments.astype("datetime64[ns]").astype(np.int64)
    if isinstance(moments, np.ndarray) and moments.dtype.kind in "iu":
        return moments
    return [moment if type(moment) is int else to_nanoseconds(moment) for moment in moments]


def compact_ids(ids: list[Any]) -> Any:
    """Give UUIDs, when all of these are some, as rows of 16 bytes; else the ids as they are."""
    if not ids or any(type(one) is not str or len(one) != UUID_TEXT_SIZE for one in ids):
        return ids
    joined = "".join(ids)
    if _UUID_TEXTS.fullmatch(joined) is None:
        return ids
    raw = bytes.fromhex(joined.replace("-", ""))
    return np.frombuffer(raw, np.uint8).reshape(len(ids), 16)


def row_groups(source: Source, route: Route | None) -> Iterator[Rows]:
    """Give the rows of each leader; all of them when there is nothing to choose."""
    if route is None:
        yield range(source.count)
        return
    rows_of: dict[str | None, list[int]] = {}
    for row, account in enumerate(source.accounts()):
        rows_of.setdefault(route(account), []).append(row)
    yield from rows_of.values()


def ingest_calls(source: Source, durability: Durability, route: Route | None) -> Iterator[Call]:
    """Make the requests for all events of a source, one by one."""
    accounts = source.accounts() if route is not None else None
    for group in row_groups(source, route):
        for first in range(0, len(group), REQUEST_EVENTS_COUNT):
            rows = group[first : first + REQUEST_EVENTS_COUNT]
            account = None if accounts is None else accounts[rows[0]]
            yield from _calls_of(source, durability, rows, account)


def _calls_of(
    source: Source, durability: Durability, rows: Rows, account: str | None
) -> Iterator[Call]:
    """Make one request of these rows, or two of half of them when it cannot be made."""
    columns = source.input_of(rows)
    body = _body_of(columns, len(rows), durability)
    if body is None and len(rows) == 1:
        body = _body_of(cut_event(columns), 1, durability)
    if body is not None:
        yield Call("ingest", body, account, rows)
        return
    middle = len(rows) // 2
    yield from _calls_of(source, durability, rows[:middle], account)
    yield from _calls_of(source, durability, rows[middle:], account)


def _body_of(columns: ColumnInput, count: int, durability: Durability) -> bytes | None:
    """Encode these events; None when that makes no request that a node takes.

    Raises Unsendable for columns that are of a wrong type.
    """
    if not _may_go_together(columns, count):
        return None
    try:
        body = encode_columns(columns, durability)
    except LocalProtocolError as error:
        if isinstance(error.__cause__, UnicodeEncodeError):
            return None  # half a character, in a row or two
        raise Unsendable(error.message) from error
    return body if len(body) <= BODY_SIZE_MAX else None


def _may_go_together(columns: ColumnInput, count: int) -> bool:
    """Tell whether a node has room for the properties of these events."""
    keys_count = len(columns.properties)
    if keys_count > PROPERTY_KEYS_PER_REQUEST_MAX:
        return False
    pair_size_max = 2 + PROPERTY_KEY_SIZE_MAX + PROPERTY_VALUE_SIZE_MAX
    if count * keys_count * pair_size_max <= WRITTEN_PROPERTIES_SIZE_MAX:
        return True
    written = sum(_written_size(key, texts, count) for key, texts in columns.properties.items())
    return written <= WRITTEN_PROPERTIES_SIZE_MAX


def _written_size(key: str, values: str | Sequence[str | None], count: int) -> int:
    """Give the size of one property of all events, written out, or somewhat more."""
    if isinstance(values, str):
        return count * (2 + 4 * len(key) + 4 * len(values))
    texts = [text for text in values if isinstance(text, str)]
    width = 1 if all(map(str.isascii, texts)) else 4
    return len(texts) * (2 + 4 * len(key)) + width * sum(map(len, texts))


def ingest_result(source: Source, job: Job) -> IngestResult:
    """Join the answers of a job.

    Raises IngestUndecided when anything is left undecided, and the error itself when a node
    refused, or the application's input could not be encoded, and nothing can have been stored.
    """
    result = IngestResult()
    error = job.error
    decided: list[Call] = []
    is_open = False  # may a request without an answer have stored something?
    for call in job.calls:
        try:
            result.add(decode_result(call.body_of_answer()), call.rows)
            decided.append(call)
        except MeterdError as call_error:
            error = error or call_error
            is_open |= not _is_final(call_error)
    if error is not None:
        if not decided and not is_open:
            raise error
        result.add_unknown(_rows_beside(decided, source.count), code_of(error))
    result.items.sort()
    if result.unknown == 0:
        return result
    rows = [item.index for item in result.items if item.status == "unknown"]
    why = error or "nodes answer, but not that a majority has stored them"
    raise IngestUndecided(
        f"{result.unknown} of {result.received} events are undecided: {why}",
        result,
        source.undecided(rows),
    ) from error


def _rows_beside(calls: Sequence[Call], count: int) -> list[int]:
    """Give the rows that none of these calls carried."""
    carried = set().union(*(call.rows for call in calls))
    return [row for row in range(count) if row not in carried]


def code_of(error: BaseException) -> str:
    """Give the stable code of an error, or the name of one that is not meterd's."""
    return error.code if isinstance(error, MeterdError) else type(error).__name__


def _is_final(error: Exception) -> bool:
    """Tell errors that say nothing can have been stored from those that leave it open."""
    if isinstance(error, LocalProtocolError) or not isinstance(error, MeterdError):
        return True
    return error.retry == "never"
