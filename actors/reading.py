"""Answers one question from the log files, a file at a time.

Each function is a generator that yields between files and returns the result, so that the query
actor can serve several questions at once and keep its beat however long one takes.

What the log can say ends where files were deleted: as long as none was, any range is exact; later
a range that begins before the horizon is refused, and the error names the range that is left.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from meterd.actors.log_files import LogFile, View
from meterd.core.gathering import Gathering, find_matches
from meterd.core.kernels.gather import NUMBER, ROW
from meterd.core.listing import (
    PAGE_BYTES_MAX,
    Page,
    Place,
    event_of,
    feed_cursor,
    parse_feed_cursor,
    wanted_events,
)
from meterd.core.log_index import KeyRange, Rows, wanted_keys
from meterd.core.opening import joined
from meterd.core.questions import Question, known_versions
from meterd.core.registry import Registry
from meterd.protocol.errors import RangeExpired
from meterd.protocol.index_format import IndexHeader
from meterd.protocol.limits import I64_MAX, I64_MIN

# Rows that one request of a feed looks at, and that a listing compares at once.
FEED_ROWS_MAX = 200_000
LISTING_ROWS = 1 << 16

Steps = Generator[None, None, Any]


def read_cells(view: View, question: Question, registry: Registry, horizon: int) -> Steps:
    """Return the partial cells of a question of kind usage or accounts.  Raises RangeExpired."""
    if question.start < horizon and not view.is_complete:
        raise RangeExpired(
            f"events before {horizon} have expired; ask for {horizon} to {question.end}"
        )
    entries = known_versions(registry, question.metric)
    # Who is present depends on all adds and removes before the range.
    has_members = any(entry.definition.aggregation == "unique" for entry in entries)
    gathering = Gathering(question, entries, view.identity_key)
    for number in view.numbers:
        header = view.header(number)
        start = question.start
        if has_members and (header is None or header.has_operations):
            start = I64_MIN
        if header is not None and not _may_hold(header, start, question.end):
            continue
        file = view.open(number)
        keys = _keys(view, question, [entry.number for entry in entries])
        rows = file.rows_of(keys, start, question.end) if keys else file.all_rows()
        for first in range(0, len(rows), LISTING_ROWS):
            gathering.count(file.rows, rows[first : first + LISTING_ROWS])
            yield
        yield
    partial = gathering.partial()
    if has_members and not view.is_complete:
        partial = joined(partial, view.opening().partial(question, entries))
    return partial


def read_events(view: View, question: Question, registry: Registry, horizon: int) -> Steps:
    """Return a page of an account's events, by (timestamp, position)."""
    page = Page(question.limit, question.after)
    start = max(question.start, page.start, horizon)
    wanted = wanted_events(question, registry, start)
    numbers = [entry.number for entry in registry.versions(question.metric)]
    for number, earliest in _by_time(view, start, question.end):
        if earliest > page.last_timestamp:
            break
        file = view.open(number)
        rows = file.rows_of(_keys(view, question, numbers), start, question.end)
        for first in range(0, len(rows), LISTING_ROWS):
            matches, _ = find_matches(
                file.rows, rows[first : first + LISTING_ROWS], wanted, LISTING_ROWS
            )
            page.add(number, matches)
            yield
        yield
    events: list[dict[str, Any]] = []
    size = 0
    for number, match in page.rows():
        data = view.open(number).rows.data
        event, event_size = event_of(data, match, registry.entry(match[NUMBER]))
        size += event_size
        if events and size > PAGE_BYTES_MAX:
            break
        events.append(event)
    return {"events": events, "next": page.next_cursor(len(events))}


def read_feed(view: View, question: Question, registry: Registry, horizon: int) -> Steps:
    """Return stored events in log order, looking at a bounded number of rows."""
    if question.after == "end":
        end = Place(view.end_file, view.open(view.end_file).row_count)
        return {"events": [], "next": feed_cursor(end)}
    place = parse_feed_cursor(question.after) if question.after else Place(view.numbers[0], 0)
    feed = _Feed(view, question, registry, horizon)
    while not feed.is_full and place.file_number <= view.end_file:
        place = feed.read(_existing(view, place))
        yield
    return {"events": feed.events, "next": feed_cursor(place)}


class _Feed:
    """One page of a feed."""

    def __init__(self, view: View, question: Question, registry: Registry, horizon: int) -> None:
        self._view = view
        self._question = question
        self._registry = registry
        self._wanted = wanted_events(question, registry, horizon)
        self._rows_left = FEED_ROWS_MAX
        self._bytes_left = PAGE_BYTES_MAX
        self._at_end = False
        self.events: list[dict[str, Any]] = []

    @property
    def is_full(self) -> bool:
        full = len(self.events) >= self._question.limit
        return full or self._at_end or self._rows_left <= 0 or self._bytes_left <= 0

    def read(self, place: Place) -> Place:
        """Read on in one file; return where to go on."""
        file = self._view.open(place.file_number)
        rows = self._rows(file, place.row)[: self._rows_left]
        matches, looked_at = find_matches(
            file.rows, rows, self._wanted, self._question.limit - len(self.events)
        )
        self._rows_left -= looked_at
        for match in matches.tolist():
            entry = self._registry.entry(match[NUMBER])
            event, size = event_of(file.rows.data, match, entry)
            self.events.append(event)
            self._bytes_left -= size
            if self._bytes_left <= 0:
                return Place(place.file_number, match[ROW] + 1)
        if looked_at < len(rows) or len(rows) == self._rows_left + looked_at:
            last = int(rows[looked_at - 1]) if looked_at else place.row - 1
            return Place(place.file_number, last + 1)
        if place.file_number < self._view.end_file:
            return Place(place.file_number + 1, 0)
        self._at_end = True
        return Place(place.file_number, file.row_count)

    def _rows(self, file: LogFile, first: int) -> Rows:
        if not self._question.account:
            return file.all_rows(first)
        keys = _keys(self._view, self._question, [])
        rows = file.rows_of(keys, I64_MIN, I64_MAX)
        return rows[rows.searchsorted(first) :]


def _existing(view: View, place: Place) -> Place:
    """Return the place, or the beginning of the next file that is still there."""
    if place.file_number in view.numbers:
        return place
    later = [number for number in view.numbers if number > place.file_number]
    return Place(later[0], 0)


def _keys(view: View, question: Question, numbers: list[int]) -> list[KeyRange]:
    """Return the keys to look up, or none when every account is wanted."""
    if not question.account:
        return []
    return wanted_keys(view.identity_key, question.account.encode(), question.subtree, numbers)


def _by_time(view: View, start: int, end: int) -> list[tuple[int, int]]:
    """Return (file number, earliest timestamp that it may hold), earliest first."""
    found = []
    for number in view.numbers:
        header = view.header(number)
        if header is None:
            found.append((number, I64_MIN))
        elif _may_hold(header, start, end):
            found.append((number, header.min_timestamp))
    return sorted(found, key=lambda pair: pair[1])


def _may_hold(header: IndexHeader, start: int, end: int) -> bool:
    return header.max_timestamp >= start and header.min_timestamp < end
