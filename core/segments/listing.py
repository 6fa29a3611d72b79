"""Lists rows of a segment: by time for a page of events, in log order for a feed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.gather import ANY_ACCOUNT, Wanted
from meterd.core.kernels.segment_match import COUNT, FIRST
from meterd.core.log.order import LogOrders
from meterd.core.questions.listing import Page
from meterd.core.segments.data import Runs
from meterd.core.segments.erased_runs import found as found_rows
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.erasures import Erasures
from meterd.protocol.segment_format import BLOCK_ROWS

Ints = NDArray[np.int64]

# A longer run is listed in pieces, from where the page begins until it is full.
SHORT_RUN: Final = 2 * BLOCK_ROWS
PIECE_ROWS: Final = 4 * BLOCK_ROWS
# Rows of a feed of all accounts that are looked up at once, first and at most.
FIRST_ORDINALS: Final = 1 << 11
PIECE_ORDINALS: Final = 1 << 16


def add_to_page(
    reader: SegmentReader,
    wanted: Wanted,
    page: Page,
    key: int,
    erasures: Erasures | None = None,
) -> Iterator[None]:
    """Add the rows that may be on a page, under a key for this segment; yield between pieces."""
    for runs in reader.runs(wanted):
        is_short = runs.rows[:, COUNT] <= SHORT_RUN
        short = Runs(runs.rows[is_short], runs.accounts)
        if len(short.rows):
            for matches, _ in found_rows(reader, short, wanted, erasures):
                page.add(key, matches)
                yield
        for run in runs.rows[~is_short]:
            long = Runs(run.reshape(1, -1), runs.accounts)
            yield from _add_long(reader, long, wanted, page, key, erasures)
        yield


def _add_long(
    reader: SegmentReader,
    runs: Runs,
    wanted: Wanted,
    page: Page,
    key: int,
    erasures: Erasures | None,
) -> Iterator[None]:
    """Add one long run, whose rows rise in time, until what follows cannot be on the page."""
    run = runs.rows[0]
    row, end = reader.narrowed(run, int(wanted.edges[0])), int(run[FIRST] + run[COUNT])
    while row < end and reader.earliest(row, end) <= page.last_timestamp:
        last = min(end, (row // BLOCK_ROWS) * BLOCK_ROWS + PIECE_ROWS)
        piece = run.copy().reshape(1, -1)
        piece[0, FIRST], piece[0, COUNT] = row, last - row
        rows = Runs(piece, runs.accounts)
        for matches, _ in found_rows(reader, rows, wanted, erasures):
            page.add(key, matches)
        yield
        row = last


def in_log_order(
    reader: SegmentReader, wanted: Wanted, low: int, high: int, orders: LogOrders
) -> Iterator[tuple[Ints, int]]:
    """Yield pieces of (ordinal, row) of rows with low <= ordinal < high, by ordinal; (n, 2).

    They are those of the accounts that are wanted, but of any time.  With each piece comes the
    ordinal behind it, whether stored or not.
    """
    if wanted.mode == ANY_ACCOUNT:
        size = FIRST_ORDINALS
        while low < high:
            end = min(low + size, high)
            yield orders.rows(reader, low, end), end
            low, size = end, min(4 * size, PIECE_ORDINALS)
        return
    found = [reader.rows_between(runs, low, high) for runs in reader.runs(wanted)]
    rows = np.concatenate([np.empty((0, 2), np.int64), *found])
    yield rows[np.argsort(rows[:, 0])], high


def matches_of(
    reader: SegmentReader, pairs: Ints, wanted: Wanted, erasures: Erasures | None = None
) -> tuple[Ints, Ints]:
    """Return (matches, ordinals) of those of some rows that match, by ordinal."""
    rows = np.sort(pairs[:, 1])
    runs = reader.runs_of_rows(rows, wanted)
    found = list(found_rows(reader, runs, wanted, erasures)) if len(runs.rows) else []
    if not found:
        return np.empty((0, 7), np.int64), np.empty(0, np.int64)
    matches = np.concatenate([one for one, _ in found])
    ordinals = np.concatenate([one for _, one in found])
    order = np.argsort(ordinals)
    return matches[order], ordinals[order]
