"""Answers one question from segments and log files, a piece at a time.

Each function is a generator that yields between pieces and returns the result, so that the query
actor can serve several questions at once and keep its beat however long one takes.

Where log files were deleted, totals files say what was in them, and refuse a range that would cut
through what they have added up; the error names the nearest one that does not.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from meterd.actors.files.segment_files import Segment
from meterd.actors.questions.log_files import View
from meterd.core.kernels.gather import ENTRY, NUMBER, ROW
from meterd.core.log.index import KeyRange, wanted_keys
from meterd.core.questions.folded_cells import Cuts, joined, partial_of
from meterd.core.questions.gathering import CELLS_MAX, Gathering, find_matches
from meterd.core.questions.listing import PAGE_BYTES_MAX, Page, event_of, wanted_events
from meterd.core.questions.partial_cells import PartialCells
from meterd.core.questions.question import Question, known_versions
from meterd.core.segments import listing as segment_listing
from meterd.core.segments.erased_runs import touched
from meterd.core.state.registry import MetricEntry, Registry
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import I64_MIN

# Rows of a log file that are compared at once.
LISTING_ROWS = 1 << 16
# Events that are looked up at once for a page.
EVENTS_AT_ONCE = 512

Steps = Generator[Any, None, Any]


def read_cells(view: View, question: Question, registry: Registry) -> Steps:
    """Return the partial cells of a question of kind usage or accounts.  Raises RangeExpired."""
    entries = known_versions(registry, question.metric)
    # Who is present depends on all adds and removes before the range.
    has_members = any(entry.definition.aggregation == "unique" for entry in entries)
    parts = yield from _read_totals(view, question, entries, has_members)
    gathering = Gathering(question, entries, view.identity_key, view.erasures)
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
        erased = view.erasures.since(file.applied)
        for span in file.spans(question.account, question.subtree):
            held = file.read(span)
            if len(erased):
                held = held.behind(erased.floor)
            partial = partial_of(held, question, numbers, file.horizon, cuts)
            if len(partial.cells):
                parts.append(partial)
                count += len(partial.cells)
            if count > CELLS_MAX:
                raise BadRequest("too much to count for one answer; ask for less at once")
            yield
    cuts.check(question)
    return parts


def count_segment(view: View, segment: Segment, gathering: Gathering, members: bool) -> Steps:
    """Count the rows of a segment; `members`: with all that add or remove one before the range."""
    reader, wanted = view.segment(segment), gathering.wanted
    cells = gathering.plain_cells() if gathering.is_plain else None
    for runs in reader.runs(wanted):
        if cells is not None and not touched(runs, view.erasures):
            yield from reader.fold(runs, wanted, cells)
            continue
        for chunk in reader.chunks(runs, wanted, gathering.needs_properties, members):
            gathering.count_matches(chunk.heap, chunk.matches)
            yield
        yield
    if cells is not None:
        gathering.add_plain(cells)


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
            for _ in segment_listing.add_to_page(reader, wanted, page, place, view.erasures):
                yield
            continue
        file = view.log_file(part.first)
        rows = file.rows_of(keys, start, question.end)
        for first in range(0, len(rows), LISTING_ROWS):
            matches, _ = find_matches(
                file.rows, rows[first : first + LISTING_ROWS], wanted, LISTING_ROWS, view.erasures
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
