"""Merges segments that follow each other into one, in bounded memory, and proves the result.

`Merge.batches` reads each segment once, from front to back, and gives what `SegmentEncoder.add`
takes; `joined_log` adds up what the segments keep of the log.  Rows of erased accounts are left
out, and so are those of groups that are not wanted.  `read_all` takes the rows of the result as
those of the parts were taken; when the facts are the same, so are the rows.  Memory: a batch, some
blocks of each segment, the texts of the accounts, and 40 bytes for each property set.

Does not know: files, when to merge (`core/segments/compaction_plan.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import segment_merge as kernels
from meterd.core.kernels.index import make_index
from meterd.core.kernels.memory import reserve
from meterd.core.kernels.segment_blocks import COLUMN_COUNT
from meterd.core.kernels.segment_match import Accounts
from meterd.core.kernels.segment_rows import ROW_WORDS, order_accounts
from meterd.core.segments.encoder import GROUP_ROWS, ID_SIZE_MAX, Batch, SegmentLog
from meterd.core.segments.erased_runs import erased_rules
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.erasures import Erasures
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.segment_format import BLOCK_ROWS, SET_BLOCK_COUNT, SegmentName

Ints = NDArray[np.int64]
Raw = NDArray[np.uint8]
Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]

# Rows of a batch: whole groups of blocks.
BATCH_ROWS: Final = GROUP_ROWS
# Blocks of each segment that are in memory.
WINDOW_BLOCKS: Final = 4
WINDOW_ROWS: Final = WINDOW_BLOCKS * BLOCK_ROWS
WINDOW_TEXT: Final = WINDOW_ROWS * ID_SIZE_MAX


class Facts(NamedTuple):
    """What was taken from segments."""

    rows: int
    erased: int  # rows left out
    digest: int  # of the former


class Merge:
    """Merges segments, or reads one.  `key` u64[2] is random, so that nobody can foresee hashes."""

    def __init__(
        self,
        readers: Sequence[SegmentReader],
        key: Words,
        erasures: Erasures | None = None,
        groups: Mask | None = None,
    ) -> None:
        """`readers`: of segments that follow each other.  What is erased is left out.

        groups bool[257]: those whose rows are taken; by default all.  Raises Corrupt.
        """
        self._readers = readers
        self.key = key
        self.of_some_groups = groups is not None
        self.bytes_read = 0
        # Rows of the segments, erased ones included.
        self.row_count = sum(reader.header.row_count for reader in readers)
        self._accounts = _Accounts(readers, key, erasures, groups)
        self._sets = _Sets(readers, key)
        offsets = np.cumsum([0, *(reader.header.ordinal_count for reader in readers)])
        self._offsets = offsets.tolist()
        self._next_block = [0] * len(readers)
        # No run of account -1 is left.
        self._cursors = np.zeros((len(readers), kernels.CURSOR_WORDS), np.int64)
        self._cursors[:, kernels.ACCOUNT] = -1
        self._facts = np.zeros((len(readers), kernels.FACT_WORDS), np.int64)
        self._facts[:, kernels.IN_ORDER] = 1
        self._facts[:, kernels.LAST_KEY] = -1
        self._columns = np.empty((COLUMN_COUNT, BLOCK_ROWS), np.int64)
        self._rows = np.empty((len(readers) * WINDOW_ROWS, ROW_WORDS), np.int64)
        self._text = reserve((len(readers) * WINDOW_TEXT,), np.uint8)

    @property
    def name(self) -> SegmentName:
        """The log files that all of them cover."""
        return SegmentName(self._readers[0].name.first, self._readers[-1].name.last)

    def facts(self) -> Facts:
        """Return what was taken so far.  Raises InvariantViolation when it was in no order."""
        if not self._facts[:, kernels.IN_ORDER].all():
            raise InvariantViolation("the rows of a segment are in no order")
        digest = self._facts[:, kernels.DIGEST].view(np.uint64).sum(dtype=np.uint64)
        totals = self._facts.sum(axis=0)
        return Facts(int(totals[kernels.TAKEN]), int(totals[kernels.ERASED]), int(digest))

    def batches(self) -> Iterator[Batch]:
        """Yield all rows in order.  Each batch must have been encoded when the next is asked for.

        Raises Corrupt.
        """
        windows = np.zeros((len(self._readers), 3), np.int64)
        windows[:, kernels.MORE] = [reader.header.row_count > 0 for reader in self._readers]
        rows = np.empty((BATCH_ROWS, ROW_WORDS), np.int64)
        text = reserve((BATCH_ROWS * ID_SIZE_MAX,), np.uint8)
        state = np.zeros(4, np.int64)
        out, sets = (rows, text, state), self._sets.tables(BATCH_ROWS)
        answer = kernels.FULL
        while answer != kernels.DONE:
            answer = int(kernels.merge(self._rows, self._text, windows, sets, out))
            if answer >= 0:
                windows[answer] = self._fill(answer)
            elif state[kernels.OUT_ROWS]:
                numbers = sets[2][: state[kernels.OUT_SETS]]
                batch = self._batch(rows[: state[kernels.OUT_ROWS]], text, numbers)
                yield batch
                self._sets.given[numbers] = batch.set_map
                state[:3] = 0
                state[kernels.OUT_BATCH] += 1

    def read_all(self) -> Iterator[float]:
        """Read all rows for their facts alone; yield how much is done, 0 to 1.  Raises Corrupt."""
        for number, reader in enumerate(self._readers):
            count = len(reader.index.blocks)
            while self._next_block[number] < count:
                self._fill(number)
                yield (number + self._next_block[number] / count) / len(self._readers)

    def _fill(self, number: int) -> tuple[int, int, bool]:
        """Take the next blocks of a segment into its window; return where its rows lie there."""
        reader, first = self._readers[number], self._next_block[number]
        last = min(first + WINDOW_BLOCKS, len(reader.index.blocks))
        self._next_block[number] = last
        blocks = reader.blocks(first, last)
        self.bytes_read += blocks.size
        base = number * WINDOW_ROWS
        kept = kernels.take_blocks(
            blocks.columns,
            blocks.places,
            blocks.ids,
            (reader.index.accounts, reader.page_starts, self._cursors[number]),
            (self._sets.numbers[number], self._sets.hashes),
            (
                self.key,
                self._accounts.ranks[number],
                self._accounts.hashes,
                self._offsets[number],
                self._accounts.erased[number],
            ),
            self._columns,
            (
                self._rows[base : base + WINDOW_ROWS],
                self._text,
                number * WINDOW_TEXT,
                self._facts[number],
            ),
        )
        return base, base + int(kept), last < len(reader.index.blocks)

    def _batch(self, rows: Ints, text: Raw, numbers: Ints) -> Batch:
        given = self._sets.given[numbers]
        packed = [
            self._sets.packed(number) if known < 0 else b""
            for number, known in zip(numbers.tolist(), given.tolist(), strict=True)
        ]
        return Batch(
            rows,
            np.arange(len(rows)),
            text,
            self._accounts.text,
            self._accounts.text_end,
            np.frombuffer(b"".join(packed) + bytes(8), np.uint8).copy(),
            np.cumsum([len(one) for one in packed]),
            given,
        )


class _Accounts:
    """The accounts of all segments, the rank of each one's own among them, and what is erased."""

    def __init__(
        self,
        readers: Sequence[SegmentReader],
        key: Words,
        erasures: Erasures | None,
        groups: Mask | None,
    ) -> None:
        parts = [reader.all_accounts() for reader in readers]
        self.erased = [
            erased_rules(reader, one, erasures, groups)
            for reader, one in zip(readers, parts, strict=True)
        ]
        text, ends = _joined_texts(parts)
        hashes = np.empty((len(ends), 2), np.uint64)
        kernels.hash_texts(key, text, ends, hashes)
        if len(parts) == 1:
            self.ranks, self.hashes = [np.arange(len(ends))], hashes
            self.text, self.text_end = text, ends
            return
        order, rank = np.arange(len(ends)), np.empty(len(ends), np.int64)
        partition = np.concatenate([part.partition for part in parts])
        order_accounts(text, ends, partition, order, rank)
        is_first = np.ones(len(ends), np.bool_)
        is_first[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
        rank[order] = np.cumsum(is_first) - 1
        self.ranks = np.split(rank, np.cumsum([len(part.text_end) for part in parts])[:-1])
        firsts = order[is_first]
        self.hashes = hashes[firsts]
        self.text = np.empty(len(text), np.uint8)
        self.text_end = np.empty(len(firsts), np.int64)
        kernels.copy_texts(text, ends, firsts, self.text, self.text_end)


def _joined_texts(parts: Sequence[Accounts]) -> tuple[Raw, Ints]:
    """Return the texts of all accounts, one after another, and where each ends."""
    text = np.concatenate([*(part.text for part in parts), np.zeros(8, np.uint8)])
    bases = np.cumsum([0, *(len(part.text) for part in parts)]).tolist()
    ends = [part.text_end + base for part, base in zip(parts, bases[:-1], strict=True)]
    return text, np.concatenate(ends)


class _Sets:
    """The distinct property sets of all segments, by number."""

    def __init__(self, readers: Sequence[SegmentReader], key: Words) -> None:
        self._readers = readers
        total = sum(reader.header.set_count for reader in readers)
        self.numbers = [np.empty(reader.header.set_count, np.int64) for reader in readers]
        self.hashes = np.empty(total, np.uint64)
        # Where the bytes of each lie: segment, number there.
        self._origin = np.empty((total, 2), np.int64)
        # The number that it has in the segment that is made, or -1.
        self.given = np.full(total, -1, np.int64)
        self._total = total
        index, known = make_index(total + 1), np.zeros(1, np.int64)
        for place, reader in enumerate(readers):
            for first in range(0, reader.header.set_count, SET_BLOCK_COUNT):
                raw = np.frombuffer(reader.set_block(first // SET_BLOCK_COUNT) + bytes(8), np.uint8)
                numbers = self.numbers[place][first : first + SET_BLOCK_COUNT]
                before = int(known[0])
                out = (numbers, self.hashes, known)
                if kernels.number_sets(key, raw, len(numbers), index, out):
                    new, where = np.unique(numbers, return_index=True)
                    places = where[new >= before] + first
                    self._origin[before : int(known[0]), 0] = place
                    self._origin[before : int(known[0]), 1] = places

    def tables(self, rows: int) -> tuple[Ints, Ints, Ints]:
        """Return what `merge` needs to number the sets of a batch."""
        return (
            np.full(self._total, -1, np.int64),
            np.empty(self._total, np.int64),
            np.empty(rows, np.int64),
        )

    def packed(self, number: int) -> bytes:
        """Return a set as it stands in heap entries."""
        place, own = self._origin[number].tolist()
        return self._readers[place].property_set(own)


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


def log_of_groups(log: SegmentLog, groups: Mask) -> SegmentLog:
    """Return what a segment keeps of some groups' logs (bool[257]); ordinals stay."""
    kept = groups[log.slices[:, 0]]
    return log._replace(slices=log.slices[kept], digests=log.digests[kept])


def same_log(one: SegmentLog, two: SegmentLog) -> bool:
    """Whether two segments keep the same of the log; slices may lie in another order."""
    if len(one.slices) != len(two.slices) or one.ordinal_count != two.ordinal_count:
        return False
    orders = _order_of_slices(one), _order_of_slices(two)
    columns = [(one.slices[:, place], two.slices[:, place]) for place in range(4)]
    digests = [(one.digests[:, place], two.digests[:, place]) for place in range(2)]
    return np.array_equal(one.files, two.files) and all(
        np.array_equal(left[orders[0]], right[orders[1]]) for left, right in (*columns, *digests)
    )


def _order_of_slices(log: SegmentLog) -> Ints:
    # Numbers of 16 bits are sorted digit by digit.
    return np.argsort(log.slices[:, 0].astype(np.uint16), kind="stable")
