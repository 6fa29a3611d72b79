"""Reads a segment: the rows of an account, of a path, or all, in the form that log files give.

Does not know: files, questions, what matches are counted into; how bytes are checked
(`core/segments/data.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import gather
from meterd.core.kernels import segment_match as kernels
from meterd.core.kernels.gather import ANY_ACCOUNT, ENTRY, SUBTREE, Wanted
from meterd.core.kernels.hashing import partition_of
from meterd.core.kernels.segment_match import Accounts, Columns
from meterd.core.kernels.segment_merge import list_accounts
from meterd.core.segments.data import NO_ACCOUNTS, NO_SETS, Ints, Raw, Runs, SegmentData, set_bytes
from meterd.protocol import segment_format as fmt
from meterd.protocol.limits import I64_MAX, I64_MIN, PARTITION_COUNT
from meterd.protocol.segment_format import BLOCK_ROWS

# Rows whose matches are made at once, and runs that are listed at once: they bound the memory.
MATCHES_MAX: Final = 1 << 15
ROWS_AT_ONCE: Final = 1 << 16
RUNS_AT_ONCE: Final = 1 << 15
# Rows that are counted without being looked at one by one: a few milliseconds.
FOLDED_AT_ONCE: Final = 1 << 18
# Heap entries of one chunk.
HEAP_SIZE: Final = 1 << 20
SLASH: Final = b"/"
AFTER_SLASH: Final = b"0"


# Pages of accounts that are listed at once.
PAGES_AT_ONCE: Final = 1_024


class Chunk(NamedTuple):
    """Rows that match, and the heap that their ENTRY points into."""

    matches: Ints  # (n, 7): kernels/gather.py; ROW is the row in the segment
    ordinals: Ints  # n: row in the covered log
    heap: Raw


class SegmentReader(SegmentData):
    """One segment."""

    # What a question looks at

    def runs(self, wanted: Wanted) -> Iterator[Runs]:
        """Yield the runs of the accounts and metrics that are wanted, in pieces, in row order."""
        for first, last in self._page_ranges(wanted):
            page = first
            while page < last:
                upto = page + 1
                rows = int(self.index.pages["runs"][page])
                while upto < last and rows + int(self.index.pages["runs"][upto]) <= RUNS_AT_ONCE:
                    rows += int(self.index.pages["runs"][upto])
                    upto += 1
                found = self._list(np.arange(page, upto), wanted)
                if len(found.rows):
                    yield from _in_pieces(found)
                page = upto

    def chunks(self, runs: Runs, wanted: Wanted, with_sets: bool, members: bool) -> Iterator[Chunk]:
        """Yield the rows of runs that match, with entries that have no id.

        with_sets: entries have the properties.  members: rows that add or remove a member are
        wanted from the beginning on.
        """
        for matches, ordinals in self._matched(runs, wanted, with_sets, members):
            sets = self.sets_of(matches) if with_sets else NO_SETS
            while len(matches):
                heap, used = np.empty(HEAP_SIZE, np.uint8), np.zeros(1, np.int64)
                recent = np.full((kernels.RECENT, 2), -1, np.int64)
                done = kernels.write_entries(
                    matches, runs.accounts, with_sets, sets, recent, (heap, used)
                )
                yield Chunk(matches[:done], ordinals[:done], frozen(heap))
                matches, ordinals = matches[done:], ordinals[done:]

    def fold(self, runs: Runs, wanted: Wanted, cells: Ints) -> Iterator[None]:
        """Count rows into cells (`Gathering.plain_cells`); yield between parts."""
        columns = self.columns_of(runs, _span(wanted))
        if not columns.wanted.any():
            return
        slices = self.slices_of(runs)
        state = np.array([0, 0, -1, -1], np.int64)
        while state[kernels.RUN] < len(runs.rows):
            kernels.fold_runs(
                columns, runs.rows, runs.accounts, slices, wanted, FOLDED_AT_ONCE, state, cells
            )
            yield

    def found(self, runs: Runs, wanted: Wanted) -> Iterator[tuple[Ints, Ints]]:
        """Yield (matches, ordinals) of the rows of runs that match; ENTRY says account << 32."""
        yield from self._matched(runs, wanted, False, False)

    def narrowed(self, run: Ints, start: int) -> int:
        """Return the first row of a run that may be at `start` or later: rows rise in time."""
        first, last = int(run[kernels.FIRST]), int(run[kernels.FIRST] + run[kernels.COUNT])
        inner, end = -(-first // BLOCK_ROWS), last // BLOCK_ROWS  # blocks of this run alone
        if inner >= end:
            return first
        skipped = int(np.searchsorted(self.times[inner:end, 1], start, side="left"))
        return max(first, (inner + skipped) * BLOCK_ROWS) if skipped else first

    def earliest(self, row: int, end: int) -> int:
        """Return a timestamp that no row from `row` to the end of its run comes before."""
        block = row // BLOCK_ROWS
        if row % BLOCK_ROWS == 0 and row + BLOCK_ROWS <= end:
            return int(self.times[block, 0])
        return I64_MIN

    def rows_between(self, runs: Runs, low: int, high: int) -> Ints:
        """Return (ordinal, row) of rows with low <= ordinal < high, by ordinal."""
        columns = self.columns_of(runs)
        most = min(high - low, int(runs.rows[:, kernels.COUNT].sum()))
        out = np.empty((max(most, 0), 2), np.int64)
        count = kernels.find_ordinals(columns, runs.rows, low, high, out)
        return out[:count]

    def all_columns(self) -> Columns:
        """Return the column blocks of all rows, checked.  Raises Corrupt."""
        return self.columns_of(
            Runs(np.array([[0, self.header.row_count, 0, 0]], np.int64), NO_ACCOUNTS)
        )

    def runs_of_rows(self, rows: Ints, wanted: Wanted) -> Runs:
        """Return the runs of single rows (rising) whose metric is wanted."""
        pages = np.unique(np.searchsorted(self._first_rows, rows, side="right") - 1)
        found = self._list(pages, wanted)
        place = np.searchsorted(found.rows[:, kernels.FIRST], rows, side="right") - 1
        there = place >= 0
        run = found.rows[place[there]]
        inside = rows[there] < run[:, kernels.FIRST] + run[:, kernels.COUNT]
        single = run[inside].copy()
        single[:, kernels.FIRST] = rows[there][inside]
        single[:, kernels.COUNT] = 1
        return Runs(single, found.accounts)

    def event_entries(self, rows: Ints) -> tuple[Raw, Ints]:
        """Return heap entries with account, id and properties of rows, and where each begins."""
        rising = np.unique(rows)
        runs = self.runs_of_rows(rising, EVERYTHING)
        heap, starts = bytearray(), {}
        for matches, _ in self._matched(runs, EVERYTHING, True, False):
            raw, places, count = self.sets_of(matches)
            for match in matches.tolist():
                account, number = match[ENTRY] >> 32, match[ENTRY] & 0xFFFFFFFF
                ends = runs.accounts.text_end
                text = runs.accounts.text[ends[account - 1] if account else 0 : ends[account]]
                is_uuid, identifier = self.id_of(match[gather.ROW])
                starts[match[gather.ROW]] = len(heap)
                heap += bytes([len(text), 0 if is_uuid else len(identifier)])
                heap += text.tobytes() + identifier
                heap += set_bytes(raw, int(places[number // fmt.SET_BLOCK_COUNT]), number, count)
        where = np.array([starts[row] for row in rows.tolist()], np.int64)
        return np.frombuffer(bytes(heap), np.uint8), where

    def ordinal_of(self, file_number: int, row: int) -> int:
        """Return the ordinal of a row of a log file that the segment covers."""
        firsts = self.index.files["first_ordinal"]
        place = file_number - self.header.first
        end = self.header.ordinal_count if place + 1 == len(firsts) else int(firsts[place + 1])
        return min(int(firsts[place]) + row, end)

    def place_of(self, ordinal: int) -> tuple[int, int]:
        """Return (file number, row in it) of an ordinal; the last one may be the end."""
        firsts = self.index.files["first_ordinal"]
        file = int(np.searchsorted(firsts, ordinal, side="right")) - 1
        return self.header.first + file, ordinal - int(firsts[file])

    # Whole segments

    def runs_of_pages(self, first: int, last: int) -> Runs:
        """Return all runs of the pages from first to before last.  Raises Corrupt."""
        return self._list(np.arange(first, min(last, len(self.index.pages))), EVERYTHING)

    def runs_between(self, first: int, last: int) -> Runs:
        """Return all runs of the rows from first to before last, cut to them.  Raises Corrupt."""
        found = self.runs_of_pages(self.page_of(first), self.page_of(last - 1) + 1)
        starts = found.rows[:, kernels.FIRST]
        ends = starts + found.rows[:, kernels.COUNT]
        inside = (ends > first) & (starts < last)
        rows = found.rows[inside]
        rows[:, kernels.FIRST] = np.maximum(starts[inside], first)
        rows[:, kernels.COUNT] = np.minimum(ends[inside], last) - rows[:, kernels.FIRST]
        return Runs(rows, found.accounts)

    def partition_starts(self) -> Ints:
        """Return the first row of each partition, and the number of rows: i64[257].  Raises
        Corrupt."""
        starts = np.full(PARTITION_COUNT + 1, self.header.row_count, np.int64)
        for page in range(0, len(self.index.pages), PAGES_AT_ONCE):
            runs = self.runs_of_pages(page, page + PAGES_AT_ONCE)
            partitions = runs.accounts.partition[runs.rows[:, kernels.ACCOUNT]]
            np.minimum.at(starts, partitions, runs.rows[:, kernels.FIRST])
        # Where one has no rows the next one begins.
        return np.minimum.accumulate(starts[::-1])[::-1]

    def page_of(self, row: int) -> int:
        """Return the page of the index in which the account of a row stands."""
        return int(np.searchsorted(self._first_rows, row, side="right")) - 1

    def all_accounts(self) -> Accounts:
        """Return all accounts, in their order.  Raises Corrupt."""
        self.check_pages()
        count, size = self.header.account_count, int(self.index.pages["text_size"].sum())
        text, (ends, partitions) = np.empty(size, np.uint8), np.empty((2, count), np.int64)
        list_accounts(self.index.accounts, self.page_starts, (text, ends, partitions))
        return Accounts(text, ends, partitions)

    # Pages of the index

    def _page_ranges(self, wanted: Wanted) -> list[tuple[int, int]]:
        """Return the pages in which the wanted accounts may stand, as ranges."""
        count = len(self.index.pages)
        if not count:
            return []
        if wanted.mode == ANY_ACCOUNT:
            return [(0, count)]
        account = wanted.account.tobytes()
        partition = int(partition_of(wanted.account, 0, len(account)))
        ranges = [(self._page_of(partition, account), self._page_of(partition, account) + 1)]
        if wanted.mode == SUBTREE:
            first = self._page_of(partition, account + SLASH)
            last = self._page_of(partition, account + AFTER_SLASH) + 1
            first = max(first, ranges[0][1])
            if first == ranges[0][1]:
                return [(ranges[0][0], max(last, ranges[0][1]))]
            ranges.append((first, last))
        return ranges

    def _page_of(self, partition: int, account: bytes) -> int:
        """Return the last page that begins at or before an account."""
        partitions = self.index.pages["partition"]
        low = int(np.searchsorted(partitions, partition, side="left")) - 1
        high = int(np.searchsorted(partitions, partition, side="right"))
        low = max(low, 0)
        while high - low > 1:
            middle = (low + high) // 2
            if int(partitions[middle]) < partition or self._first_account(middle) <= account:
                low = middle
            else:
                high = middle
        return low

    def _first_account(self, page: int) -> bytes:
        at = self.page_at(page)
        size = int(self.index.accounts[at + 1])
        return self.index.accounts[at + 2 : at + 2 + size].tobytes()

    def _list(self, numbers: NDArray[np.int64], wanted: Wanted) -> Runs:
        pages = np.empty((len(numbers), 3), np.int64)
        for place, page in enumerate(numbers.tolist()):
            pages[place, 0] = self.page_at(page)
        chosen = self.index.pages[numbers]
        pages[:, 1], pages[:, 2] = chosen["accounts"], chosen["first_row"]
        runs = np.empty((int(chosen["runs"].sum()), 4), np.int64)
        count = int(chosen["accounts"].sum())
        text = np.empty(int(chosen["text_size"].sum()) + 8, np.uint8)
        ends, partitions = np.empty((2, count), np.int64)
        accounts = Accounts(text, ends, partitions)
        found, _ = kernels.list_runs(self.index.accounts, pages, wanted, runs, accounts)
        return Runs(runs[:found], accounts)

    # Blocks

    def _matched(
        self, runs: Runs, wanted: Wanted, with_sets: bool, members: bool
    ) -> Iterator[tuple[Ints, Ints]]:
        columns = self.columns_of(runs, _span(wanted), members)
        if not columns.wanted.any():
            return
        slices = self.slices_of(runs)
        state = np.array([0, 0, -1, -1], np.int64)
        most = min(MATCHES_MAX, int(runs.rows[:, kernels.COUNT].sum()))
        while state[kernels.RUN] < len(runs.rows):
            out = (np.empty((most, gather.MATCH_WORDS), np.int64), np.empty(most, np.int64))
            found = kernels.match_runs(
                columns, runs.rows, runs.accounts, slices, wanted, with_sets, state, out
            )
            if found:
                yield out[0][:found], out[1][:found]


# All accounts and metrics at any time, for rows that are known by their number.
EVERYTHING: Final = Wanted(
    np.frombuffer(b"", np.uint8),
    ANY_ACCOUNT,
    False,
    np.zeros(1 << 16, np.int32),
    np.zeros((1, 6), np.int64),
    np.frombuffer(b"", np.uint8),
    np.array([(0, 0)], np.int64),
    np.array([0], np.uint8),
    np.array([I64_MIN, I64_MAX], np.int64),
)


def _span(wanted: Wanted) -> tuple[int, int]:
    return int(wanted.edges[0]), int(wanted.edges[-1])


def _in_pieces(runs: Runs) -> Iterator[Runs]:
    """Yield runs so that each piece has a bounded number of rows, but for a single large run."""
    ends = np.cumsum(runs.rows[:, kernels.COUNT])
    first = 0
    while first < len(runs.rows):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + ROWS_AT_ONCE, side="right")))
        yield runs.part(first, last)
        first = last
