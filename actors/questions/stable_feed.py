"""Reads a feed by positions, for the query actor of a node in a cluster.

The cursor says of each partition which position comes next (`core/questions/feed_cursor.py`).
Where that lies in this node's files is looked up: from the first part of the log on that has
something at or behind what comes next.  What lies there and was read elsewhere already is left out;
that may be much where a partition has moved, for its log was written here later.

The log is read up to its durable end, and rows that wait there are not given: they are behind what
is given of their partition, so the cursor does not step over them.

Where damage was repaired an op lies behind newer ones of its partition.  While some that is not
read yet does, a page gives of that partition what comes before those newer ones (`_held_back`); at
the end of the log the rest has its turn, from where it begins.

Where a page ended is remembered, so that the next one begins there, or where the first row waited.
A page without events is the end of the log, whatever had to be passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from meterd.actors.files import totals_files
from meterd.actors.questions.feed import Feed
from meterd.actors.questions.log_files import LogFile, Part, View
from meterd.actors.questions.reading import Steps
from meterd.core.kernels.cells import POSITION_ROW_BITS
from meterd.core.log.index import Rows
from meterd.core.log.slice_places import NO_INDEX, LogPlaces, Mask, SlicePlaces, of_segment
from meterd.core.questions.feed_cursor import FeedCursor, Positions, parse
from meterd.core.questions.listing import FeedPlace
from meterd.core.questions.partition_sets import partition
from meterd.core.questions.question import Question
from meterd.core.segments.data import Ints
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.registry import Registry
from meterd.protocol.errors import RangeExpired
from meterd.protocol.limits import I64_MAX, PARTITION_COUNT

# Pages whose end is remembered, and parts of the log of which is known what they hold.
ENDS_MAX: Final = 256
BOUNDS_MAX: Final = 4_096
# Tables of parts that are kept; of a segment about 24 bytes a slice.
TABLES_MAX: Final = 2

EXPIRED: Final = "events behind this cursor have expired; begin again without a cursor"

Key = tuple[str, bytes, bytes]


class AppliedLog(NamedTuple):
    """How far a node's log is applied when a page is asked for."""

    applied: bytes  # of each group, u64: the index
    waits: FeedPlace  # nothing before it waits
    repaired: list[int]  # files in which ops lie behind newer ones


def applied_log(context: Mapping[str, Any]) -> AppliedLog:
    """Return what the usage actor said with a question."""
    return AppliedLog(context["applied"], FeedPlace(*context["waits"]), context["repaired"])


class Places:
    """What is remembered from page to page; nothing depends on it but time."""

    def __init__(self) -> None:
        # Where a page ended, and up to where rows have to be looked at whether they were read.
        self.ends: OrderedDict[Key, tuple[FeedPlace, FeedPlace]] = OrderedDict()
        self._bounds: OrderedDict[tuple[int, int], tuple[Ints, Ints]] = OrderedDict()
        self._tables: OrderedDict[tuple[int, int], SlicePlaces] = OrderedDict()
        self._starts: OrderedDict[int, Ints] = OrderedDict()

    def note_end(self, key: Key, end: FeedPlace, until: FeedPlace, waits: FeedPlace) -> None:
        """Note where a page ended.  The next one begins before the first row that waits.

        When that lies in another file it is looked for again: it may wait for long.
        """
        if min(end, waits).file_number == end.file_number:
            _keep(self.ends, key, (min(end, waits), max(end, until)), ENDS_MAX)

    def bounds(self, view: View, part: Part) -> tuple[Ints, Ints]:
        """Return the least and the greatest index of each partition in a part (-1: none)."""
        key = _key_of(view, part)
        known = self._bounds.get(key)
        if known is None:
            known = self.table(view, part).bounds()
        _keep(self._bounds, key, known, BOUNDS_MAX)
        return known

    def table(self, view: View, part: Part) -> SlicePlaces:
        if part.segment is None:
            return self.of_log(view.log_file(part.first))
        return self.of_segment(view.segment(part.segment))

    def of_segment(self, reader: SegmentReader) -> SlicePlaces:
        key = (reader.header.set_id, -1)
        known = self._tables.get(key)
        known = of_segment(reader.all_slices()) if known is None else known
        _keep(self._tables, key, known, TABLES_MAX)
        return known

    def of_log(self, file: LogFile) -> LogPlaces:
        key = (file.number, len(file.rows.record_row))
        known = self._tables.get(key)
        made = known if isinstance(known, LogPlaces) else LogPlaces(file.rows)
        _keep(self._tables, key, made, TABLES_MAX)
        return made

    def partition_starts(self, reader: SegmentReader) -> Ints:
        known = self._starts.get(reader.header.set_id)
        known = reader.partition_starts() if known is None else known
        _keep(self._starts, reader.header.set_id, known, BOUNDS_MAX)
        return known


def _key_of(view: View, part: Part) -> tuple[int, int]:
    if part.segment is not None:
        return part.segment.header.set_id, -1
    is_full = part.first < view.end_file
    return part.first, -2 if is_full else len(view.log_file(part.first).rows.record_row)


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)


class _Unread:
    """Which rows were not read yet, by the cursor, which moves on."""

    def __init__(
        self,
        places: Places,
        positions: Positions,
        limits: Positions,
        wanted: Mask,
        until: FeedPlace,
    ) -> None:
        self._places = places
        self._positions, self._wanted = positions, wanted
        self._limits = limits  # nothing at or behind these is given
        self._until = until  # behind it nothing was read elsewhere

    def in_log(self, place: FeedPlace, file: LogFile, rows: Rows) -> Rows:
        if place >= self._until or not len(rows):
            return rows
        table, at = self._places.of_log(file), rows.astype(np.int64)
        return rows[table.unread(table.partitions(at), at, self._positions, self._wanted)]

    def in_segment(self, place: FeedPlace, reader: SegmentReader, pairs: Ints) -> Ints:
        if place >= self._until or not len(pairs):
            return pairs
        starts = self._places.partition_starts(reader)
        groups = np.searchsorted(starts, pairs[:, 1], side="right") - 1
        table = self._places.of_segment(reader)
        return pairs[table.unread(groups, pairs[:, 0], self._positions, self._wanted)]

    def take(self, partition: int, position: int) -> bool:
        if not self._wanted[partition] or position < self._positions[partition]:
            return False
        if position >= self._limits[partition]:
            return False
        self._positions[partition] = position + 1
        return True


def read_feed(
    view: View,
    question: Question,
    registry: Registry,
    horizon: int,
    places: Places,
    log: AppliedLog,
) -> Steps:
    """Return a page; its events come in the order of this node's log.

    Raises RangeExpired when events behind the cursor have gone.
    """
    if question.after == "end":
        return {"events": [], "next": str(FeedCursor(_unapplied(log)))}
    cursor = parse(question.after) if question.after else FeedCursor()
    events: list[dict[str, Any]] = []
    is_end = False
    while not (events or is_end):
        events, is_end = yield from _read_page(
            view, question, registry, horizon, places, log, cursor.positions
        )
    return {"events": events, "next": str(cursor)}


def _read_page(
    view: View,
    question: Question,
    registry: Registry,
    horizon: int,
    places: Places,
    log: AppliedLog,
    positions: Positions,
) -> Generator[None, None, tuple[list[dict[str, Any]], bool]]:
    """Return a page, and whether one without events is the end; the positions move on."""
    unapplied, wanted = _unapplied(log), _wanted(question)
    end = FeedPlace(view.end_file, view.log_file(view.end_file).row_count)
    key = _ends_key(question, positions, wanted)
    known = places.ends.get(key)
    if known is not None and known[0].file_number < view.parts[0].first:
        # It has gone.  Nobody can say what went unread of partitions that were not begun.
        if not positions[wanted].all():
            raise RangeExpired(EXPIRED)
        known = None
    begin, until = known or (_find(view, places, positions, wanted, unapplied), end)
    yield
    limits = _held_back(view, places, positions, begin, log.repaired)
    is_held_back = bool((limits < unapplied)[wanted].any())
    # Segments may hold more than was applied when this was asked, in another order than by index.
    unread = _Unread(places, positions, np.minimum(limits, unapplied), wanted, until)
    feed = Feed(view, question, registry, horizon, unread)
    place = begin
    while not feed.is_full and place.file_number <= view.end_file:
        place = feed.read(place)
        if not feed.events:
            if not is_held_back:
                places.note_end(key, place, until, log.waits)
            feed.look_on()
        yield
    if feed.at_end:
        read = np.maximum(positions, np.minimum(limits, unapplied))
        positions[wanted] = read[wanted]
    if not is_held_back:
        key = _ends_key(question, positions, wanted)
        places.note_end(key, place, until, log.waits)
    return feed.events, not is_held_back


def _unapplied(log: AppliedLog) -> Positions:
    return np.frombuffer(log.applied, np.int64)[:PARTITION_COUNT] + 1 << POSITION_ROW_BITS


def _held_back(
    view: View, places: Places, positions: Positions, begin: FeedPlace, repaired: list[int]
) -> Positions:
    """Return where the rows of each partition begin that must wait for lower ones behind them.

    What is below that lies in its order, and `begin` before all that is not read.
    """
    parts = [part for part in view.parts if part.last >= begin.file_number]
    later = np.full(PARTITION_COUNT, NO_INDEX, np.int64)
    first = later.copy()
    mended = [part for part in parts if any(part.first <= one <= part.last for one in repaired)]
    if mended:
        following = positions >> POSITION_ROW_BITS
        for part in reversed(parts):
            low, high = places.bounds(view, part)
            if part in mended or (high > later).any():
                ahead = places.table(view, part).first_ahead(positions, later)
                first = np.minimum(first, ahead)
            # Where a part begins before what is not read yet, its bounds do not say what is.
            is_begun = bool(((low < following) & (following <= high)).any())
            least = places.table(view, part).least_unread(positions) if is_begun else low
            there = high >= following
            later[there] = np.minimum(later, least)[there]
    return np.where(first == NO_INDEX, I64_MAX, first << POSITION_ROW_BITS)


def _wanted(question: Question) -> Mask:
    chosen: Any = slice(None) if question.partitions is None else list(question.partitions)
    if question.account:
        chosen = [partition(question.account)]
    wanted = np.zeros(PARTITION_COUNT, np.bool_)
    wanted[chosen] = True
    return wanted


def _ends_key(question: Question, positions: Positions, wanted: Mask) -> Key:
    return question.account, positions[wanted].tobytes(), np.packbits(wanted).tobytes()


def _folded(view: View) -> Ints:
    """Return up to which index rows of each partition are folded; where nobody knows, all are."""
    known = totals_files.reached_by(view.totals)
    return np.full(PARTITION_COUNT, I64_MAX) if known is None else known


def _find(
    view: View, places: Places, positions: Positions, wanted: Mask, unapplied: Positions
) -> FeedPlace:
    """Return a place behind which all lies that comes next.  Raises RangeExpired."""
    following = positions >> POSITION_ROW_BITS
    wanted = wanted & (positions < unapplied)
    begun = np.flatnonzero(wanted & (positions > 0))
    found, lows = None, np.full(PARTITION_COUNT, -1, np.int64)
    for part in view.parts:
        low, high = places.bounds(view, part)
        if found is None and (wanted & (high >= following)).any():
            found = part
        lows = np.where((lows < 0) | ((low >= 0) & (low < lows)), low, lows)
        if found is not None and (lows[begun] >= 0).all():
            break
    # What lies between need not have had rows: each new leader begins with an op without any.
    lacking = begun[(lows[begun] < 0) | (lows[begun] > following[begun])]
    if view.totals and (_folded(view)[lacking] >= following[lacking]).any():
        raise RangeExpired(EXPIRED)
    place = None if found is None else places.table(view, found).begin(positions, wanted)
    if found is None or place is None:
        return FeedPlace(view.end_file, view.log_file(view.end_file).row_count)
    if found.segment is None:
        return FeedPlace(found.first, place)
    return FeedPlace(*view.segment(found.segment).place_of(place))
