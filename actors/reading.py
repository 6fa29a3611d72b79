"""Answers one question from the log files, a file at a time.

Each function is a generator that yields between files and returns the result, so that the query
actor can serve several questions at once and keep its beat however long one takes.

Where log files were deleted, totals files say what was in them, and refuse a range that would cut
through what they have added up; the error names the nearest one that does not.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from meterd.actors.log_files import LogFile, View
from meterd.core.folded_cells import Cuts, joined, partial_of
from meterd.core.gathering import CELLS_MAX, Gathering, find_matches
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
from meterd.core.partial_cells import PartialCells
from meterd.core.questions import Question, known_versions
from meterd.core.registry import MetricEntry, Registry
from meterd.protocol.errors import BadRequest, RangeExpired
from meterd.protocol.index_format import IndexHeader
from meterd.protocol.limits import I64_MAX, I64_MIN

# Rows that one request of a feed looks at, and that a listing compares at once.
FEED_ROWS_MAX = 200_000
LISTING_ROWS = 1 << 16

Steps = Generator[None, None, Any]


def read_cells(view: View, question: Question, registry: Registry) -> Steps:
    """Return the partial cells of a question of kind usage or accounts.  Raises RangeExpired."""
    entries = known_versions(registry, question.metric)
    # Who is present depends on all adds and removes before the range.
    has_members = any(entry.definition.aggregation == "unique" for entry in entries)
    parts = yield from _read_totals(view, question, entries, has_members)
    gathering = Gathering(question, entries, view.identity_key, view.erasures)
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
    return joined([gathering.partial(), *parts])


def _read_totals(
    view: View, question: Question, entries: list[MetricEntry], has_members: bool
) -> Generator[None, None, list[PartialCells]]:
    """Return what totals files hold for a question.  Raises RangeExpired, BadRequest."""
    numbers = [entry.number for entry in entries]
    cuts, parts, count = Cuts(), [], 0
    for file in view.totals:
        start = I64_MIN if has_members and file.has_seats else question.start
        if file.max_timestamp < start or file.min_timestamp >= question.end:
            continue
        erased = view.erasures.since(file.erasures)
        for span in file.spans(question.account, question.subtree):
            held = file.read(span)
            if len(erased):
                held = held.without(erased.touches)
            partial = partial_of(held, question, numbers, file.horizon, cuts)
            if len(partial.cells):
                parts.append(partial)
                count += len(partial.cells)
            if count > CELLS_MAX:
                raise BadRequest("too much to count for one answer; ask for less at once")
            yield
    cuts.check(question)
    return parts


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
                file.rows, rows[first : first + LISTING_ROWS], wanted, LISTING_ROWS, view.erasures
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
    """Return stored events in log order, looking at a bounded number of rows.

    Raises RangeExpired when the cursor's place is gone.
    """
    if question.after == "end":
        end = Place(view.end_file, view.open(view.end_file).row_count)
        return {"events": [], "next": feed_cursor(end)}
    oldest = Place(view.numbers[0], 0)
    place = parse_feed_cursor(question.after) if question.after else oldest
    if place < oldest:
        raise RangeExpired(
            f"events behind this cursor have expired; the oldest left is {feed_cursor(oldest)}"
        )
    feed = _Feed(view, question, registry, horizon)
    while not feed.is_full and place.file_number <= view.end_file:
        place = feed.read(place)
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
        left = self._question.limit - len(self.events)
        matches, looked_at = find_matches(file.rows, rows, self._wanted, left, self._view.erasures)
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
