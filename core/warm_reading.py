"""Runs every kernel of the reading side once, on a log file of a few events (see `core/warm.py`).

The file goes the way of all log files: read while it is active, indexed when it is full, searched
through both kinds of index, counted, listed, and added up for every aggregation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meterd.core.answers import AnswerContext, answer_accounts, answer_usage
from meterd.core.erasures import Erasures, erasure_command, erasure_of
from meterd.core.folded import fold_question, folded, merged
from meterd.core.gathering import Gathering, find_matches
from meterd.core.kernels.gather import LogRows, copy_entries
from meterd.core.kernels.index import make_index
from meterd.core.kernels.scan import whole_blocks
from meterd.core.listing import Page, event_of, wanted_events
from meterd.core.log_index import OpenIndex, SealedIndex, frozen, wanted_keys
from meterd.core.questions import Question
from meterd.core.registry import Registry
from meterd.protocol import log_format
from meterd.protocol.index_format import encode_index, parse_index
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.log_format import BlockHeader, FileHeader

CONTEXT = AnswerContext("", I64_MIN)

Key = NDArray[np.uint64]


def warm_reading(records: Sequence[bytes], registry: Registry, key: tuple[int, int]) -> None:
    """Compile or load what questions to the log files need; `records` as they lie in a block."""
    identity_key = np.array(key, np.uint64)
    data = np.frombuffer(_file(records), np.uint8)
    active = OpenIndex()
    active.extend(data, len(data), identity_key, log_format.ACTIVE_NAME)
    whole_blocks(data[log_format.FILE_HEADER_SIZE :])
    made = active.seal(1, len(data), np.frombuffer(b"", np.uint8))
    index = parse_index(b"".join(encode_index(made)))
    rows_active = LogRows(data, active.record_row, active.record_offset, index.refused)
    rows_full = LogRows(data, index.record_row, index.record_offset, index.refused)
    codes = dict.fromkeys(entry.code for entry in registry.entries)
    for finder, rows in ((active, rows_active), (SealedIndex(index), rows_full)):
        for code in codes:
            for question in _questions(code):
                _answer(question, registry, identity_key, finder, rows)
        _list(registry, identity_key, finder, rows)
    _fold(rows_full, index.header.row_count, registry, identity_key)
    copy_entries(make_index(1), make_index(2))


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


def _answer(
    question: Question,
    registry: Registry,
    key: Key,
    index: OpenIndex | SealedIndex,
    log: LogRows,
) -> None:
    entries = registry.versions(question.metric)
    numbers = [entry.number for entry in entries]
    keys = wanted_keys(key, question.account.encode(), question.subtree, numbers)
    rows = index.rows_of(keys, question.start, question.end)
    gathering = Gathering(question, entries, key)
    gathering.count(log, rows)
    if question.kind == "accounts":
        list(answer_accounts(question, entries, gathering.partial()))
    else:
        answer_usage(question, entries, gathering.partial(), CONTEXT)


def _list(
    registry: Registry,
    key: Key,
    index: OpenIndex | SealedIndex,
    log: LogRows,
) -> None:
    question = Question("events", "a", True)
    wanted = wanted_events(question, registry, I64_MIN)
    rows = index.rows_of(wanted_keys(key, b"a", True, []), I64_MIN, I64_MAX)
    command, partition = erasure_command(key, "b", True, "warm")
    erasures = Erasures([erasure_of(command, partition, 1, 0)], key)
    erasures.is_erased("b/c", 0)
    matches, _ = find_matches(log, rows, wanted, len(rows), erasures)
    page = Page(1, None)
    page.add(1, matches)
    for _, match in page.rows():
        event_of(log.data, match, registry.entries[0])


def _fold(log: LogRows, row_count: int, registry: Registry, key: Key) -> None:
    """Fold all rows as the retention sweeper does before a file goes."""
    question = fold_question(registry.entries, 0, 0)
    gathering = Gathering(question, registry.entries, key)
    gathering.count(log, frozen(np.arange(row_count, dtype=np.uint32)))
    merged([folded(gathering.partial())])
