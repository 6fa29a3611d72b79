"""Segments made in memory from events in plain Python, and everything that can be asked of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from meterd.core.kernels.gather import ENTRY, NUMBER, ROW
from meterd.core.log.order import LogOrders
from meterd.core.questions.gathering import Gathering
from meterd.core.questions.listing import Page, event_of, wanted_events
from meterd.core.questions.question import Question
from meterd.core.questions.zones import UTC
from meterd.core.segments import listing as segment_listing
from meterd.core.segments.encoder import SegmentEncoder
from meterd.core.segments.intake import LogIntake
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.registry import Registry
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.log_format import FILE_HEADER_SIZE
from meterd.protocol.metric import MetricDefinition
from meterd.protocol.segment_format import FileHeader, parse_index
from tests.support.log_builder import IDENTITY_KEY, LogBuilder, LoggedEvent

KEY = np.frombuffer(IDENTITY_KEY, np.uint64).copy()

Files = dict[str, bytes]


def registry_of(count: int) -> Registry:
    """Metrics m1, m2, … with numbers 1, 2, …"""
    registry = Registry()
    for number in range(1, count + 1):
        definition = {"code": f"m{number}", "aggregation": "sum", "decimals": 0}
        definition |= {"dimensions": ["region"]}
        registry.put(MetricDefinition.from_map(definition), UTC, False, number)
    return registry


def logged(records: Sequence[Sequence[LoggedEvent]], file_number: int = 7) -> LogBuilder:
    """A log file with a block for each list of events."""
    builder = LogBuilder(file_number)
    for events in records:
        builder.block([events])
    return builder


def bitmap_of(rows: int, refused: set[int]) -> np.ndarray:
    bits = np.zeros(rows, np.uint8)
    bits[sorted(refused)] = 1
    return np.frombuffer(np.packbits(bits, bitorder="little").tobytes(), np.uint8)


def encoded(builder: LogBuilder, refused: set[int] = frozenset()) -> Files:
    """The three files of the segment of a log file."""
    data, number = builder.array(), builder.file_number
    intake = LogIntake("wal", len(data), builder.row, bitmap_of(builder.row, refused), KEY)
    intake.take(data[FILE_HEADER_SIZE:], FILE_HEADER_SIZE)
    batch, log = intake.finish()
    encoder = SegmentEncoder(FileHeader(7, number, number, 0))
    seg = b"".join([encoder.begin(), *map(bytes, encoder.add(batch))])
    rest = encoder.finish(log)
    return {".seg": seg, ".props": b"".join(rest.props), ".idx": b"".join(rest.idx)}


def opened(files: Files) -> SegmentReader:
    """Open a segment.  Raises Damaged."""
    seg, props = (np.frombuffer(files[suffix], np.uint8) for suffix in (".seg", ".props"))
    return SegmentReader(parse_index(files[".idx"]), seg, props)


def listed(reader: SegmentReader, question: Question, registry: Registry) -> list[dict[str, Any]]:
    """The events of a listing, without pages."""
    wanted = wanted_events(question, registry, question.start)
    page = Page(question.limit, question.after)
    for _ in segment_listing.add_to_page(reader, wanted, page, 0):
        pass
    matches = np.array([match for _, match in page.rows()], np.int64).reshape(-1, 7)
    return events_of(reader, matches, registry)


def fed(reader: SegmentReader, registry: Registry) -> list[dict[str, Any]]:
    """All events in log order."""
    wanted = wanted_events(Question("feed"), registry, I64_MIN)
    count = reader.header.ordinal_count
    pieces = list(segment_listing.in_log_order(reader, wanted, 0, count, LogOrders()))
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(piece for piece, _ in pieces)])
    matches, _ = segment_listing.matches_of(reader, pairs, wanted)
    return events_of(reader, matches, registry)


def events_of(reader: SegmentReader, matches: np.ndarray, registry: Registry) -> list[dict]:
    heap, starts = reader.event_entries(matches[:, ROW])
    matches[:, ENTRY] = starts
    return [event_of(heap, match, registry.entry(match[NUMBER]))[0] for match in matches.tolist()]


def counted(reader: SegmentReader, question: Question, registry: Registry) -> dict:
    """(metric number, window, dimensions) → (count, sum, least, greatest, first, latest)."""
    gathering = Gathering(question, registry.versions(question.metric), KEY)
    wanted = gathering.wanted
    if gathering.is_plain:
        cells = gathering.plain_cells()
        for runs in reader.runs(wanted):
            for _ in reader.fold(runs, wanted, cells):
                pass
        gathering.add_plain(cells)
    else:
        for runs in reader.runs(wanted):
            for chunk in reader.chunks(runs, wanted, gathering.needs_properties, False):
                gathering.count_matches(chunk.heap, chunk.matches)
    return cells_of(gathering)


def cells_of(gathering: Gathering) -> dict:
    partial = gathering.partial()
    accounts = partial.accounts or [""]
    return {
        (accounts[account], number, window, dims): cell[2:13].tolist()
        for account, number, window, dims, cell in zip(
            partial.account.tolist(),
            partial.metric.tolist(),
            partial.window.tolist(),
            partial.dims,
            partial.cells,
            strict=True,
        )
    }


EVER = {"start": I64_MIN, "end": I64_MAX}
