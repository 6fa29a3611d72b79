"""Encodes sorted rows as the three files of a segment, a batch at a time.

Whoever has rows in the order of a segment (from a log file: `core/segments/intake.py`, or from
segments that are merged) gives them in batches of whole groups of blocks; the bytes of `.seg` come
out at once, those of `.props` and `.idx` at the end.  Memory: a batch, the index so far (about two
bytes a row), and the property sets.

Does not know: files, where rows come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import lz4.block
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.core.kernels import segment_blocks as kernels
from meterd.core.kernels.memory import reserve
from meterd.core.kernels.packing import CHUNK_SIZE_MAX
from meterd.core.kernels.segment_merge import copy_texts
from meterd.core.kernels.segment_rows import KEY
from meterd.protocol import segment_format as fmt
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.log_format import GROUP_COUNT, Bytes
from meterd.protocol.segment_format import (
    BLOCK_ROWS,
    PAGE_ACCOUNTS,
    SET_BLOCK_COUNT,
    FileHeader,
    SegmentHeader,
)

# Column blocks that lie together, before the ids of the same rows: totals read only the former.
BLOCKS_TOGETHER: Final = 16
GROUP_ROWS: Final = BLOCKS_TOGETHER * BLOCK_ROWS
BLOCK_SIZE_MAX: Final = (
    kernels.HEAD_SIZE
    + kernels.TAIL_SIZE
    + 8
    + kernels.COLUMN_COUNT * (CHUNK_SIZE_MAX * (BLOCK_ROWS // fmt.CHUNK_ROWS))
)
ID_SIZE_MAX: Final = 256
# Compressed bytes are kept when they save at least an eighth.
WORTH_IT: Final = 8

Ints = NDArray[np.int64]
Raw = NDArray[np.uint8]


class Batch(NamedTuple):
    """Rows in the order of a segment; all batches but the last hold whole groups of blocks.

    An account may go on in the next batch, under any number.
    """

    rows: Ints  # (n, 6): core/kernels/segment_rows.py
    order: Ints  # n: their order
    id_text: Raw  # text ids
    text: Raw  # texts of the accounts, one after another
    text_end: Ints
    sets: Raw  # property sets, as in heap entries
    set_end: Ints
    set_map: Ints  # number in the segment of each, or -1; written here


class SegmentLog(NamedTuple):
    """What a segment keeps of the log it was made from, besides rows."""

    files: NDArray[np.void]  # segment_format.FILE
    ordinal_count: int
    slices: Ints  # (k, 4): group, first ordinal, index, term; in log order within each group
    digests: NDArray[np.uint64]  # (k, 2)


class Encoded(NamedTuple):
    """The bytes of `.props` and `.idx`."""

    header: SegmentHeader
    props: list[Bytes]
    idx: list[Bytes]


class SegmentEncoder:
    """Encodes one segment: `begin`, `add` for every batch, `finish`."""

    def __init__(self, header: FileHeader, generation: int = 0) -> None:
        self._header = header
        self._generation = generation
        self._seg_header = fmt.encode_file_header(".seg", header)
        self._size = len(self._seg_header)
        self._blocks: list[tuple[Any, ...]] = []
        self._columns = np.empty((kernels.COLUMN_COUNT, BLOCK_ROWS), np.int64)
        self._out = (
            reserve((BLOCKS_TOGETHER * BLOCK_SIZE_MAX,), np.uint8),
            reserve((GROUP_ROWS * ID_SIZE_MAX,), np.uint8),
        )
        self._series = _Series()
        self._sets = _Sets(fmt.encode_file_header(".props", header))
        self._row_count = 0

    def begin(self) -> bytes:
        """Return the first bytes of `.seg`."""
        return self._seg_header

    def add(self, batch: Batch) -> Iterator[Bytes]:
        """Yield the next bytes of `.seg`; each piece is valid until the next is asked for."""
        if self._row_count % GROUP_ROWS:
            raise InvariantViolation("a batch follows one that did not fill its last blocks")
        for first in range(0, len(batch.order), GROUP_ROWS):
            yield from self._encode(batch, batch.order[first : first + GROUP_ROWS])
        self._row_count += len(batch.order)

    def finish(self, log: SegmentLog, has_erased: bool = False) -> Encoded:
        """Return the other two files; `.seg` has ended.

        has_erased: rows of erased accounts were left out.
        """
        props = self._sets.finish()
        props_size = sum(map(len, props))
        blocks = fmt.directory(fmt.BLOCK, self._blocks)
        groups, packed, digests = _pack_log(log)
        accounts, pages = self._series.pages()
        header = SegmentHeader(
            *self._header,
            self._row_count,
            log.ordinal_count,
            self._series.account_count,
            self._series.run_count,
            self._sets.count,
            len(log.slices),
            int(blocks["min_timestamp"].min()) if len(blocks) else I64_MAX,
            int(blocks["max_timestamp"].max()) if len(blocks) else I64_MIN,
            bool((blocks["flags"] & fmt.BLOCK_OPERATIONS).any()),
            self._size,
            fmt.header_crc(self._seg_header),
            props_size,
            fmt.header_crc(props[0]),
            has_erased,
            self._generation,
        )
        sections = {
            "files": log.files,
            "groups": groups,
            "blocks": blocks,
            "pages": pages,
            "set_blocks": fmt.directory(fmt.SET_BLOCK, self._sets.blocks),
            "slices": packed,
            "accounts": accounts,
            "digests": digests,
        }
        return Encoded(header, props, fmt.encode_index(header, sections))

    def _encode(self, batch: Batch, order: Ints) -> Iterator[Bytes]:
        """Yield blocks that lie together: columns, then ids."""
        facts = np.empty((-(-len(order) // BLOCK_ROWS), kernels.FACT_WORDS), np.int64)
        sets = (batch.set_map, self._sets.given, self._sets.state)
        series = self._series.begin(batch, order)
        out = (*self._out, facts)
        kernels.encode_blocks(batch.rows, order, batch.id_text, sets, series, self._columns, out)
        self._series.take(batch, order)
        self._sets.take(batch)
        columns, raw_ids = (one.data for one in self._out)
        column_end = id_end = 0
        id_at = self._size + int(facts[:, kernels.SIZE].sum())
        ids: list[Bytes] = []
        for size, id_size, low, high, has_operations, has_text in facts.tolist():
            block = columns[column_end : column_end + size]
            packed: Bytes = raw_ids[id_end : id_end + id_size]
            flags = fmt.BLOCK_OPERATIONS if has_operations else 0
            if has_text:
                packed, compressed = _compressed(packed)
                flags |= fmt.BLOCK_TEXT_IDS | (fmt.BLOCK_LZ4 if compressed else 0)
            place = (self._size + column_end, size, crc32c(block))
            id_place = (id_at, len(packed), crc32c(packed))
            self._blocks.append((*place, *id_place, low, high, id_size, flags))
            ids.append(packed)
            column_end, id_end, id_at = column_end + size, id_end + id_size, id_at + len(packed)
        yield columns[:column_end]
        yield from ids
        self._size = id_at


class _Series:
    """Accounts and their series so far: what the pages of the index are made of."""

    def __init__(self) -> None:
        self.account_count = self.run_count = 0
        self._text: list[Raw] = []  # of the accounts of each group of blocks
        self._ends: list[Ints] = []
        self._runs: list[Ints] = []  # metric number, rows
        self._first_run: list[Ints] = []
        self._last_account = b""
        # Row 0 of the runs is the one that goes on from the blocks before.
        self._listed = (
            np.empty((GROUP_ROWS + 1, 2), np.int64),
            np.empty(GROUP_ROWS, np.int64),
            np.empty(GROUP_ROWS, np.int64),
            np.empty(3, np.int64),
        )

    def begin(self, batch: Batch, order: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Return where `encode_blocks` lists the series of the next rows."""
        runs, _, _, state = self._listed
        account = int(batch.rows[order[0], KEY]) >> 32
        last = -1
        if self.account_count and self._text_of(batch, account) == self._last_account:
            # The last run goes on if its metric does; else a new run of the same account begins.
            last = account << 16 | int(self._runs[-1][-1, 0])
        runs[0, 1] = 0
        state[:] = 1, 0, last
        return self._listed

    def take(self, batch: Batch, order: Ints) -> None:
        """Take what `encode_blocks` has listed."""
        listed, firsts, numbers, state = self._listed
        count, accounts = int(state[kernels.RUNS]) - 1, int(state[kernels.ACCOUNTS])
        if listed[0, 1]:
            self._runs[-1][-1, 1] += listed[0, 1]
        if count:
            self._runs.append(listed[1 : count + 1].copy())
        self._first_run.append(firsts[:accounts] - 1 + self.run_count)
        numbers = numbers[:accounts]
        sizes = batch.text_end[numbers] - np.where(numbers > 0, batch.text_end[numbers - 1], 0)
        text, ends = np.empty(int(sizes.sum()), np.uint8), np.empty(accounts, np.int64)
        copy_texts(batch.text, batch.text_end, numbers, text, ends)
        self._text.append(text)
        base = int(self._ends[-1][-1]) if self._ends else 0
        if accounts:
            self._ends.append(ends + base)
        self.run_count += count
        self.account_count += accounts
        self._last_account = self._text_of(batch, int(batch.rows[order[-1], KEY]) >> 32)

    def pages(self) -> tuple[Raw, NDArray[np.void]]:
        """Return the pages' bytes and their directory."""
        text, ends = _joined(self._text, np.uint8), _joined(self._ends, np.int64)
        first_run = np.append(_joined(self._first_run, np.int64), self.run_count)
        runs = np.concatenate(self._runs) if self._runs else np.empty((0, 2), np.int64)
        count = -(-self.account_count // PAGE_ACCOUNTS)
        out = np.empty(len(text) + 8 * self.account_count + 8 * self.run_count + 64, np.uint8)
        rows = np.zeros((count, 6), np.int64)
        size = kernels.write_pages(text, ends, first_run, runs, PAGE_ACCOUNTS, (out, rows))
        pages = np.zeros(count, fmt.PAGE)
        names = ("offset", "size", "first_row", "runs", "partition", "text_size")
        for column, name in enumerate(names):
            pages[name] = rows[:, column]
        pages["accounts"] = PAGE_ACCOUNTS
        if count:
            pages["accounts"][-1] = self.account_count - (count - 1) * PAGE_ACCOUNTS
        data = out.data
        spans = zip(rows[:, 0].tolist(), rows[:, 1].tolist(), strict=True)
        pages["crc"] = [crc32c(data[at : at + length]) for at, length in spans]
        return out[:size], pages

    @staticmethod
    def _text_of(batch: Batch, account: int) -> bytes:
        start = int(batch.text_end[account - 1]) if account else 0
        return batch.text[start : int(batch.text_end[account])].tobytes()


class _Sets:
    """Property sets in the order of their numbers, in blocks."""

    def __init__(self, header: bytes) -> None:
        self.state = np.zeros(2, np.int64)  # how many have a number, and got it in this group
        self.given = np.empty(GROUP_ROWS, np.int64)  # those of this group, as the batch has them
        self.blocks: list[tuple[Any, ...]] = []
        self._pieces: list[Bytes] = [header]
        self._size = len(header)
        self._waiting: list[bytes] = []

    @property
    def count(self) -> int:
        return int(self.state[0])

    def take(self, batch: Batch) -> None:
        """Keep the bytes of the sets that a group of blocks has given a number."""
        for place in self.given[: int(self.state[1])].tolist():
            start = int(batch.set_end[place - 1]) if place else 0
            self._waiting.append(batch.sets[start : int(batch.set_end[place])].tobytes())
            if len(self._waiting) == SET_BLOCK_COUNT:
                self._flush()

    def finish(self) -> list[Bytes]:
        """Return the bytes of `.props`."""
        if self._waiting:
            self._flush()
        return self._pieces

    def _flush(self) -> None:
        ends = np.cumsum([len(one) for one in self._waiting]).astype("<u4").tobytes()
        raw = ends + b"".join(self._waiting)
        stored, compressed = _compressed(raw)
        flags = fmt.BLOCK_LZ4 if compressed else 0
        self.blocks.append((self._size, len(stored), crc32c(stored), len(raw), flags))
        self._pieces.append(stored)
        self._size += len(stored)
        self._waiting = []


def _compressed(raw: Bytes) -> tuple[Bytes, bool]:
    """Return bytes as they are stored, and whether that is LZ4."""
    packed = lz4.block.compress(raw, store_size=False)
    if len(packed) <= len(raw) - len(raw) // WORTH_IT:
        return packed, True
    return raw, False


def _joined(parts: list[Any], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _pack_log(log: SegmentLog) -> tuple[NDArray[np.void], Raw, NDArray[np.uint64]]:
    """Return the directory of the groups, their packed slices, and the digests in that order."""
    order = np.argsort(log.slices[:, 0].astype(np.uint16), kind="stable")
    bounds = np.searchsorted(log.slices[order, 0], np.arange(GROUP_COUNT + 1))
    groups = np.zeros(GROUP_COUNT, fmt.GROUP)
    packed: list[Raw] = []
    at = 0
    for group in range(GROUP_COUNT):
        first, last = int(bounds[group]), int(bounds[group + 1])
        count = last - first
        if count:
            out = np.empty(3 * (CHUNK_SIZE_MAX * (count // 128 + 1)) + 8, np.uint8)
            columns = np.empty((3, count), np.int64)
            size = kernels.pack_slices(log.slices, order[first:last], columns, out)
            packed.append(out[:size])
        size = len(packed[-1]) if count else 0
        crc = crc32c(packed[-1].data) if count else 0
        groups[group] = (at, size, crc, first, count)
        at += size
    return groups, _joined(packed, np.uint8), log.digests[order].reshape(-1)
