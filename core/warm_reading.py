"""Runs every kernel of the reading side once, on a log file of a few events (see `core/warm.py`).

The file goes the way of all log files: read while it is active, made into a segment when it is
full, searched in both forms, counted, listed, and added up for every aggregation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meterd.core.kernels.gather import ENTRY, ROW, LogRows, copy_entries
from meterd.core.kernels.index import make_index
from meterd.core.kernels.scan import whole_blocks
from meterd.core.log.index import KeyRange, OpenIndex, wanted_keys
from meterd.core.log.order import LogOrders
from meterd.core.questions.answers import AnswerContext, answer_accounts, answer_usage
from meterd.core.questions.folded import fold_question, folded, merged
from meterd.core.questions.gathering import Gathering, find_matches
from meterd.core.questions.listing import Page, event_of, wanted_events
from meterd.core.questions.question import Question
from meterd.core.segments import listing as segment_listing
from meterd.core.segments.encoder import SegmentEncoder
from meterd.core.segments.intake import LogIntake
from meterd.core.segments.merging import Merge, joined_log
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.erasures import Erasures, erasure_command, erasure_of
from meterd.core.state.registry import Registry
from meterd.protocol import log_format
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.log_format import FILE_HEADER_SIZE, BlockHeader, FileHeader
from meterd.protocol.segment_format import FileHeader as SegmentFileHeader
from meterd.protocol.segment_format import parse_index

CONTEXT = AnswerContext("", I64_MIN)

Words = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
NONE_REFUSED = np.frombuffer(b"", np.uint8)


def warm_reading(records: Sequence[bytes], registry: Registry, key: tuple[int, int]) -> None:
    """Compile or load what questions to the log need; `records` as they lie in a block."""
    identity_key = np.array(key, np.uint64)
    data = np.frombuffer(_file(records), np.uint8)
    active = OpenIndex()
    active.extend(data, len(data), identity_key, log_format.ACTIVE_NAME)
    log = LogRows(data, active.record_row, active.record_offset, NONE_REFUSED)
    segment = _segment(data, active.row_count, identity_key)
    for code in dict.fromkeys(entry.code for entry in registry.entries):
        for question in _questions(code):
            entries = registry.versions(code)
            gathering = Gathering(question, entries, identity_key)
            gathering.count(log, active.rows_of(_keys(question, identity_key), I64_MIN, I64_MAX))
            _answer(question, registry, gathering)
            gathering = Gathering(question, entries, identity_key)
            for runs in segment.runs(gathering.wanted):
                if gathering.is_plain:
                    cells = gathering.plain_cells()
                    list(segment.fold(runs, gathering.wanted, cells))
                    gathering.add_plain(cells)
                for with_sets in (False, True):
                    for chunk in segment.chunks(runs, gathering.wanted, with_sets, True):
                        gathering.count_matches(chunk.heap, chunk.matches)
            _answer(question, registry, gathering)
    _list(registry, identity_key, active, log)
    _list_segment(registry, segment, identity_key)
    _fold(segment, registry, identity_key)
    _merge(segment, identity_key)
    copy_entries(make_index(1), make_index(2))


def _segment(
    data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], rows: int, key: Words
) -> SegmentReader:
    """Make a segment of a log file and open it."""
    blocks = data[FILE_HEADER_SIZE:]
    whole_blocks(blocks)
    intake = LogIntake("", len(data), rows, NONE_REFUSED, key)
    intake.take(blocks, FILE_HEADER_SIZE)
    batch, log = intake.finish()
    encoder = SegmentEncoder(SegmentFileHeader(1, 1, 1, 0))
    seg = b"".join([encoder.begin(), *map(bytes, encoder.add(batch))])
    encoded = encoder.finish(log)
    index, props = b"".join(encoded.idx), b"".join(encoded.props)
    return SegmentReader(
        parse_index(np.frombuffer(index, np.uint8).data),
        np.frombuffer(seg, np.uint8),
        np.frombuffer(props, np.uint8),
    )


def _merge(segment: SegmentReader, key: Words) -> None:
    merge = Merge([segment, segment], key)
    encoder = SegmentEncoder(SegmentFileHeader(1, 1, 2, 0))
    for batch in merge.batches():
        list(encoder.add(batch))
    encoder.finish(joined_log([segment.log(), segment.log()]))


def _file(records: Sequence[bytes]) -> bytes:
    header = log_format.encode_file_header(FileHeader(1, bytes(16), bytes(16), 1, 1, 0, 0))
    _, file_crc = log_format.parse_file_header(header)
    body = b"".join(records)
    size = log_format.padded(log_format.BLOCK_HEADER_SIZE + len(body), log_format.SECTOR_SIZE)
    rows = sum(log_format.parse_record(record).row_count for record in records)
    block = BlockHeader(1, size, len(records), rows, 0, 0, 0, 0, 1, file_crc)
    padding = size - log_format.BLOCK_HEADER_SIZE - len(body)
    return header + log_format.encode_block_header(block) + body + bytes(padding)


def _questions(code: str) -> list[Question]:
    edges = (I64_MIN, 0, I64_MAX)
    return [
        Question("usage", "a", True, code, edges=edges),
        Question("usage", "a/b", False, code),
        Question("accounts", metric=code),
    ]


def _keys(question: Question, key: Words) -> list[KeyRange]:
    return wanted_keys(key, question.account.encode(), question.subtree, [])


def _answer(question: Question, registry: Registry, gathering: Gathering) -> None:
    entries = registry.versions(question.metric)
    if question.kind == "accounts":
        list(answer_accounts(question, entries, gathering.partial()))
    else:
        answer_usage(question, entries, gathering.partial(), CONTEXT)


def _list(registry: Registry, key: Words, index: OpenIndex, log: LogRows) -> None:
    question = Question("events", "a", True)
    wanted = wanted_events(question, registry, I64_MIN)
    rows = index.rows_of(_keys(question, key), I64_MIN, I64_MAX)
    matches, _ = find_matches(log, rows, wanted, len(rows), _erasures(key))
    page = Page(1, None)
    page.add(1, matches)
    for _, match in page.rows():
        event_of(log.data, match, registry.entries[0])


def _erasures(key: Words) -> Erasures:
    """Return an erasure before the beginning of the log, so that it takes no row away."""
    command, partition = erasure_command(key, "a", True, "warm")
    erasures = Erasures([erasure_of(command, partition, 0, 0)], key)
    erasures.is_erased("b/c", 0)
    return erasures


def _fold(segment: SegmentReader, registry: Registry, key: Words) -> None:
    """Fold all rows as the retention sweeper does before a segment goes."""
    header = segment.header
    question = fold_question(registry.entries, header.min_timestamp, header.max_timestamp)
    gathering = Gathering(question, registry.entries, key, _erasures(key))
    for runs in segment.runs(gathering.wanted):
        for chunk in segment.chunks(runs, gathering.wanted, True, True):
            gathering.count_matches(chunk.heap, chunk.matches)
    merged([folded(gathering.partial())])


def _list_segment(registry: Registry, segment: SegmentReader, key: Words) -> None:
    for question in (Question("events", "a", True), Question("feed")):
        wanted = wanted_events(question, registry, I64_MIN)
        page = Page(1, None)
        for _ in segment_listing.add_to_page(segment, wanted, page, 0, _erasures(key)):
            pass
        count = segment.header.ordinal_count
        ((pairs, _),) = segment_listing.in_log_order(segment, wanted, 0, count, LogOrders())
        matches, _ = segment_listing.matches_of(segment, pairs, wanted, _erasures(key))
        heap, starts = segment.event_entries(matches[:, ROW])
        matches[:, ENTRY] = starts
        event_of(heap, matches[0].tolist(), registry.entries[0])
