"""Reads whole segments back in sorted order, for those who merge them.

`rows_in_order` gives the rows of one segment as batches that `SegmentEncoder.add` takes: the same
six words a row, with accounts, text ids and property sets of the batch.  Merging is left to the
caller: take batches of several segments, give ordinals their offset (PLACE), intern accounts and
sets, order the rows, and cut batches at whole blocks.  `joined_log` adds up what segments that
follow each other keep of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import segment_blocks as blocks
from meterd.core.kernels import segment_match as kernels
from meterd.core.kernels.segment_rows import (
    ID_0,
    ID_1,
    KEY,
    PLACE,
    ROW_WORDS,
    TEXT_ID,
    TIMESTAMP,
    VALUE,
)
from meterd.core.segment_encoder import Batch, SegmentLog
from meterd.core.segment_reader import SegmentReader
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.segment_format import BLOCK_ROWS


def rows_in_order(reader: SegmentReader, at_once: int) -> Iterator[Batch]:
    """Yield all rows of a segment in order, `at_once` (whole blocks) in a batch.  Raises Corrupt.

    A set that the encoder gave a number in one batch has it in the next ones.
    """
    if at_once % BLOCK_ROWS:
        raise InvariantViolation("batches of a segment are whole blocks")
    given = np.full(reader.header.set_count, -1, np.int64)
    for first in range(0, reader.header.row_count, at_once):
        last = min(first + at_once, reader.header.row_count)
        batch, numbers = _batch(reader, first, last)
        batch.set_map[:] = given[numbers]
        yield batch
        given[numbers] = batch.set_map


def _batch(reader: SegmentReader, first: int, last: int) -> tuple[Batch, NDArray[np.int64]]:
    """Return rows as a batch, and which sets of the segment those of the batch are."""
    runs = reader.runs_between(first, last)
    rows = np.empty((last - first, ROW_WORDS), np.int64)
    counts = runs.rows[:, kernels.COUNT]
    series = runs.rows[:, kernels.ACCOUNT] << 32 | runs.rows[:, kernels.METRIC] << 16
    rows[:, KEY] = np.repeat(series, counts)
    sets = np.empty(last - first, np.int64)
    texts: list[bytes] = []
    text_at = 0
    for block in range(first // BLOCK_ROWS, -(-last // BLOCK_ROWS)):
        columns, count = reader.block(block)
        start = block * BLOCK_ROWS - first
        part = rows[start : start + count]
        part[:, TIMESTAMP], part[:, VALUE] = columns[blocks.AT], columns[blocks.AMOUNT]
        part[:, KEY] |= columns[blocks.OPERATION] << 8
        part[:, PLACE] = columns[blocks.ORDINAL]
        sets[start : start + count] = columns[blocks.SET]
        is_uuid, ends, raw = reader.id_block(block)
        starts = ends - np.diff(ends, prepend=0)
        uuids = np.flatnonzero(is_uuid)
        words = raw[starts[uuids][:, None] + np.arange(16)].reshape(-1).view("<i8")
        part[uuids, ID_0], part[uuids, ID_1] = words[0::2], words[1::2]
        for place in np.flatnonzero(~is_uuid).tolist():
            texts.append(raw[int(starts[place]) : int(ends[place])].tobytes())
            part[place, ID_0], part[place, ID_1] = text_at, text_at + len(texts[-1])
            part[place, KEY] |= TEXT_ID
            text_at += len(texts[-1])
    numbers, local = np.unique(sets, return_inverse=True)
    rows[:, PLACE] |= local << 32
    packed = [reader.property_set(number) for number in numbers.tolist()]
    accounts = int(runs.rows[-1, kernels.ACCOUNT]) + 1
    batch = Batch(
        rows,
        np.arange(last - first),
        np.frombuffer(b"".join(texts) + bytes(8), np.uint8).copy(),
        runs.accounts.text,
        runs.accounts.text_end[:accounts],
        np.frombuffer(b"".join(packed) + bytes(8), np.uint8).copy(),
        np.cumsum([len(one) for one in packed]),
        np.full(len(numbers), -1, np.int64),
    )
    return batch, numbers


def joined_log(logs: Sequence[SegmentLog]) -> SegmentLog:
    """Return what segments that follow each other keep of the log, as one."""
    files, slices, offset = [], [], 0
    for log in logs:
        moved = log.files.copy()
        moved["first_ordinal"] += offset
        files.append(moved)
        rows = log.slices.copy()
        rows[:, 1] += offset
        slices.append(rows)
        offset += log.ordinal_count
    digests = np.concatenate([log.digests for log in logs])
    return SegmentLog(np.concatenate(files), offset, np.concatenate(slices), digests)
