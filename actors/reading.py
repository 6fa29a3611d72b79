"""Answers one question from segments and log files, a piece at a time.

Each function is a generator that yields between pieces and returns the result, so that the query
actor can serve several questions at once and keep its beat however long one takes.

What the log can say ends where it was deleted: as long as nothing was, any range is exact; later a
range that begins before the horizon is refused, and the error names the range that is left.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from meterd.actors.log_files import View
from meterd.actors.segment_files import Segment
from meterd.core import segment_listing
from meterd.core.gathering import Gathering, find_matches
from meterd.core.kernels.gather import ENTRY, NUMBER, ROW
from meterd.core.listing import PAGE_BYTES_MAX, Page, event_of, wanted_events
from meterd.core.log_index import KeyRange, wanted_keys
from meterd.core.opening import joined
from meterd.core.questions import Question, known_versions
from meterd.core.registry import Registry
from meterd.protocol.errors import RangeExpired
from meterd.protocol.limits import I64_MIN

# Rows of a log file that are compared at once.
LISTING_ROWS = 1 << 16
# Events that are looked up at once for a page.
EVENTS_AT_ONCE = 512

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
    keys = keys_of(view, question, [entry.number for entry in entries])
    for part in view.parts:
        reaches_back = has_members and part.may_have_operations
        start = I64_MIN if reaches_back else question.start
        if not part.may_hold(start, question.end):
            continue
        if part.segment is not None:
            yield from count_segment(view, part.segment, gathering, reaches_back)
            continue
        file = view.log_file(part.first)
        rows = file.rows_of(keys, start, question.end) if keys else file.all_rows()
        for first in range(0, len(rows), LISTING_ROWS):
            gathering.count(file.rows, rows[first : first + LISTING_ROWS])
            yield
        yield
    partial = gathering.partial()
    if has_members and not view.is_complete:
        partial = joined(partial, view.opening().partial(question, entries))
    return partial


def count_segment(view: View, segment: Segment, gathering: Gathering, members: bool) -> Steps:
    """Count the rows of a segment; `members`: with all that add or remove one before the range."""
    reader, wanted = view.segment(segment), gathering.wanted
    if gathering.is_plain:
        cells = gathering.plain_cells()
        for runs in reader.runs(wanted):
            yield from reader.fold(runs, wanted, cells)
        gathering.add_plain(cells)
        return
    for runs in reader.runs(wanted):
        for chunk in reader.chunks(runs, wanted, gathering.needs_properties, members):
            gathering.count_matches(chunk.heap, chunk.matches)
            yield
        yield


def read_events(view: View, question: Question, registry: Registry, horizon: int) -> Steps:
    """Return a page of an account's events, by (timestamp, position)."""
    page = Page(question.limit, question.after)
    start = max(question.start, page.start, horizon)
    wanted = wanted_events(question, registry, start)
    numbers = [entry.number for entry in registry.versions(question.metric)]
    keys = keys_of(view, question, numbers)
    for place, earliest in _by_time(view, start, question.end):
        if earliest > page.last_timestamp:
            break
        part = view.parts[place]
        if part.segment is not None:
            reader = view.segment(part.segment)
            for _ in segment_listing.add_to_page(reader, wanted, page, place):
                yield
            continue
        file = view.log_file(part.first)
        rows = file.rows_of(keys, start, question.end)
        for first in range(0, len(rows), LISTING_ROWS):
            matches, _ = find_matches(
                file.rows, rows[first : first + LISTING_ROWS], wanted, LISTING_ROWS
            )
            page.add(place, matches)
            yield
        yield
    events: list[dict[str, Any]] = []
    size = 0
    for event, event_size in _events(view, page.rows(), registry):
        size += event_size
        if events and size > PAGE_BYTES_MAX:
            break
        events.append(event)
    return {"events": events, "next": page.next_cursor(len(events))}


def _events(
    view: View, rows: list[tuple[int, list[int]]], registry: Registry
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield events and their sizes, of (place of the part, match)."""
    for first in range(0, len(rows), EVENTS_AT_ONCE):
        some = rows[first : first + EVENTS_AT_ONCE]
        heaps: dict[int, Any] = {}
        for place in dict.fromkeys(place for place, _ in some):
            part = view.parts[place]
            if part.segment is None:
                heaps[place] = (view.log_file(part.first).rows.data, None)
                continue
            wanted = np.array([match[ROW] for of, match in some if of == place], np.int64)
            heap, starts = view.segment(part.segment).event_entries(wanted)
            heaps[place] = (heap, dict(zip(wanted.tolist(), starts.tolist(), strict=True)))
        for place, match in some:
            heap, entries = heaps[place]
            if entries is not None:
                match[ENTRY] = entries[match[ROW]]
            yield event_of(heap, match, registry.entry(match[NUMBER]))


def keys_of(view: View, question: Question, numbers: list[int]) -> list[KeyRange]:
    """Return the keys to look up in log files, or none when every account is wanted."""
    if not question.account:
        return []
    return wanted_keys(view.identity_key, question.account.encode(), question.subtree, numbers)


def _by_time(view: View, start: int, end: int) -> list[tuple[int, int]]:
    """Return (place of the part, earliest timestamp that it may hold), earliest first."""
    found = []
    for place, part in enumerate(view.parts):
        if part.may_hold(start, end):
            earliest = part.segment.header.min_timestamp if part.segment else I64_MIN
            found.append((place, earliest))
    return sorted(found, key=lambda pair: pair[1])
