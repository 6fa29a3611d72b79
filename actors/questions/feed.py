"""Reads a feed: stored events in log order, from segments and log files alike.

A cursor names a log file and a row in it, also where a segment has taken its place, so it stays
good whatever is merged meanwhile.  In a cluster it names positions instead (`stable_feed.py`).
"""

from __future__ import annotations

from typing import Any, Protocol

from meterd.actors.questions.log_files import LogFile, Part, View
from meterd.actors.questions.reading import Steps, keys_of
from meterd.core.kernels.gather import ENTRY, NUMBER, POSITION, ROW
from meterd.core.log.index import Rows
from meterd.core.questions.gathering import find_matches
from meterd.core.questions.listing import (
    PAGE_BYTES_MAX,
    FeedPlace,
    Matches,
    event_of,
    feed_cursor,
    parse_feed_cursor,
    wanted_events,
)
from meterd.core.questions.partition_sets import partition
from meterd.core.questions.question import Question
from meterd.core.segments import listing as segment_listing
from meterd.core.segments.data import Ints
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.registry import Registry
from meterd.protocol.errors import RangeExpired
from meterd.protocol.limits import I64_MAX, I64_MIN

# Rows of the log that one request looks at.
FEED_ROWS_MAX = 200_000
# Events that are looked up at once.
EVENTS_AT_ONCE = 512
# Rows of a segment that are compared at once.
ROWS_AT_ONCE = 1 << 15


def read_feed(view: View, question: Question, registry: Registry, horizon: int) -> Steps:
    """Return stored events in log order, looking at a bounded number of rows.

    Raises RangeExpired when the cursor's place is gone.
    """
    if question.after == "end":
        end = FeedPlace(view.end_file, view.log_file(view.end_file).row_count)
        return {"events": [], "next": feed_cursor(end)}
    oldest = FeedPlace(view.parts[0].first, 0)
    place = parse_feed_cursor(question.after) if question.after else oldest
    if place < oldest:
        raise RangeExpired(
            f"events behind this cursor have expired; the oldest left is {feed_cursor(oldest)}"
        )
    feed = Feed(view, question, registry, horizon)
    while not feed.is_full and place.file_number <= view.end_file:
        place = feed.read(place)
        yield
    return {"events": feed.events, "next": feed_cursor(place)}


class Unread(Protocol):
    """Which of the rows in a feed's way were not read yet."""

    def in_log(self, place: FeedPlace, file: LogFile, rows: Rows) -> Rows:
        """Leave out rows of a log file, read from a place on."""

    def in_segment(self, place: FeedPlace, reader: SegmentReader, pairs: Ints) -> Ints:
        """Leave out rows, (ordinal, row), of a segment."""

    def take(self, partition: int, position: int) -> bool:
        """Is an event to be given?  Then it has been."""


class Feed:
    """One page of a feed."""

    def __init__(
        self,
        view: View,
        question: Question,
        registry: Registry,
        horizon: int,
        unread: Unread | None = None,
    ) -> None:
        self._unread = unread
        self._view = view
        self._question = question
        self._registry = registry
        self._wanted = wanted_events(question, registry, horizon)
        self._rows_left = FEED_ROWS_MAX
        self._bytes_left = PAGE_BYTES_MAX
        self.at_end = False
        chosen = question.partitions
        self._partitions = None if chosen is None else frozenset(chosen)
        self.events: list[dict[str, Any]] = []

    @property
    def is_full(self) -> bool:
        full = len(self.events) >= self._question.limit
        return full or self.at_end or self._rows_left <= 0 or self._bytes_left <= 0

    def look_on(self) -> None:
        """Look at as many rows again."""
        self._rows_left = FEED_ROWS_MAX

    def read(self, place: FeedPlace) -> FeedPlace:
        """Read on in one part of the log; return where to go on."""
        part = next(part for part in self._view.parts if part.last >= place.file_number)
        if part.segment is not None:
            return self._read_segment(part, self._view.segment(part.segment), place)
        return self._read_log(self._view.log_file(place.file_number), place)

    def _read_log(self, file: LogFile, place: FeedPlace) -> FeedPlace:
        rows = self._rows(file, place.row)
        if self._unread is not None:
            rows = self._unread.in_log(place, file, rows)
        rows = rows[: self._rows_left]
        matches, looked_at = find_matches(
            file.rows,
            rows,
            self._wanted,
            self._question.limit - len(self.events),
            self._view.erasures,
        )
        self._rows_left -= looked_at
        for match in matches.tolist():
            self._add(file.rows.data, match)
            if self._bytes_left <= 0:
                return FeedPlace(place.file_number, match[ROW] + 1)
        if looked_at < len(rows) or len(rows) == self._rows_left + looked_at:
            last = int(rows[looked_at - 1]) if looked_at else place.row - 1
            return FeedPlace(place.file_number, last + 1)
        if place.file_number < self._view.end_file:
            return FeedPlace(place.file_number + 1, 0)
        self.at_end = True
        return FeedPlace(place.file_number, file.row_count)

    def _rows(self, file: LogFile, first: int) -> Rows:
        if not self._question.account:
            return file.all_rows(first)
        rows = file.rows_of(keys_of(self._view, self._question, []), I64_MIN, I64_MAX)
        return rows[rows.searchsorted(first) :]

    def _read_segment(self, part: Part, reader: SegmentReader, place: FeedPlace) -> FeedPlace:
        low = reader.ordinal_of(*place)
        high = min(low + self._rows_left, reader.header.ordinal_count)
        pieces = segment_listing.in_log_order(reader, self._wanted, low, high, self._view.orders)
        step = self._room
        for pairs, end in pieces:
            if self._unread is not None:
                pairs = self._unread.in_segment(place, reader, pairs)
            while len(pairs):
                some, pairs = pairs[:step], pairs[step:]
                matches, ordinals = segment_listing.matches_of(
                    reader, some, self._wanted, self._view.erasures
                )
                # Where little matches more is looked at together: it shares blocks.
                step = min(max(self._room, 4 * step), ROWS_AT_ONCE)
                last = self._add_rows(reader, matches, ordinals)
                if last is not None:
                    return FeedPlace(*reader.place_of(last + 1))
            self._rows_left -= end - low
            low = end
        if high == reader.header.ordinal_count:
            return FeedPlace(part.last + 1, 0)
        return FeedPlace(*reader.place_of(high))

    @property
    def _room(self) -> int:
        """How many events are still wanted, and looked up at once."""
        return min(self._question.limit - len(self.events), EVENTS_AT_ONCE)

    def _add_rows(self, reader: SegmentReader, matches: Matches, ordinals: Matches) -> int | None:
        """Add events of a segment; return the ordinal of the last one when the page is full."""
        while len(matches):
            room = self._room
            heap, starts = reader.event_entries(matches[:room, ROW])
            matches[:room, ENTRY] = starts
            for match, ordinal in zip(matches[:room].tolist(), ordinals.tolist(), strict=False):
                self._add(heap, match)
                if self._bytes_left <= 0 or len(self.events) >= self._question.limit:
                    return int(ordinal)
            matches, ordinals = matches[room:], ordinals[room:]
        return None

    def _add(self, heap: Any, match: list[int]) -> None:
        event, size = event_of(heap, match, self._registry.entry(match[NUMBER]))
        if self._unread is not None:
            if not self._unread.take(partition(event["account"]), match[POSITION]):
                return
        elif self._partitions is not None and (partition(event["account"]) not in self._partitions):
            return
        self.events.append(event)
        self._bytes_left -= size
