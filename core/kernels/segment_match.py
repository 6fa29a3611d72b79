"""Finds rows of a segment: runs of an account in its index, and the rows of runs that match.

What it emits are the `matches` of `kernels/gather.py`, but that ROW is the row in the segment, and
ENTRY says account (of those listed) << 32 | property set until `write_entries` has made heap
entries of them: one for each account and set, however many rows share it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels import gather
from meterd.core.kernels.apply import NOT_UNIQUE
from meterd.core.kernels.cells import COUNT as CELL_COUNT
from meterd.core.kernels.cells import (
    FIRST_POS,
    FIRST_TS,
    FIRST_VALUE,
    LATEST_POS,
    LATEST_TS,
    LATEST_VALUE,
    MAX,
    MIN,
    POSITION_ROW_BITS,
    SUM_HI,
    SUM_LO,
    merge_cell,
)
from meterd.core.kernels.gather import ENTRY, KIND, NUMBER, is_account, window_of
from meterd.core.kernels.hashing import load_u32, partition_of
from meterd.core.kernels.segment_blocks import (
    AMOUNT,
    AT,
    OPERATION,
    ORDINAL,
    SET,
    decode_block,
    decode_ordinals,
    read_varint,
)
from meterd.core.kernels.text import copy_bytes

Array = Any
_U64 = np.uint64

BLOCK_ROWS = 2048
SET_BLOCK_COUNT = 256
# Columns of a run (int64[r, 4]).  ACCOUNT: place among the accounts listed.
FIRST, COUNT, METRIC, ACCOUNT = range(4)
# Where a walk through runs is (int64[4]): run, row within it, block decoded (or -1), its slice.
RUN, WITHIN, BLOCK, SLICE = range(4)
# Entries that were written last (int64[n, 2]: account and set, entry); a power of two.
RECENT = 1 << 12
TEXT_MAX = 256
# Account, sizes, an id of one byte.
ENTRY_FIXED = 3 + 255


class Accounts(NamedTuple):
    """Accounts whose runs were listed."""

    text: Array  # u8
    text_end: Array  # int64[a]
    partition: Array  # int64[a]


class Columns(NamedTuple):
    """The column blocks of a segment."""

    data: Array  # u8: the whole file
    offset: Array  # int64[b]
    wanted: Array  # u8[b]: 1, may hold something
    scratch: Array  # int64[6, rows of a block]


class Slices(NamedTuple):
    """Slices of some partitions, those of one together."""

    first: Array  # int64[k]: ordinal of the first row
    index: Array  # int64[k]
    term: Array  # int64[k]
    group: Array  # int64[258]: where those of each group begin


@njit(cache=True, nogil=True)
def list_runs(data: Array, pages: Array, wanted: Any, runs: Array, accounts: Any) -> Any:
    """List the runs of the accounts and metrics that are wanted; return (runs, accounts).

    pages int64[p, 3]: offset, accounts, first row of pages that follow each other or do not.
    """
    count = number = np.int64(0)
    text_at = np.int64(0)
    current = np.empty(TEXT_MAX, np.uint8)
    for p in range(len(pages)):
        at, row = pages[p, 0], pages[p, 2]
        for _ in range(pages[p, 1]):
            shared, rest = np.int64(data[at]), np.int64(data[at + 1])
            at += 2
            copy_bytes(current, shared, data, at, at + rest)
            at += rest
            size = shared + rest
            is_wanted = is_account(current, 0, size, wanted.account, wanted.mode)
            run_count, at = read_varint(data, at)
            metric, listed = np.int64(0), False
            for _ in range(run_count):
                more, at = read_varint(data, at)
                rows, at = read_varint(data, at)
                metric += more
                if is_wanted and metric < len(wanted.local) and wanted.local[metric] >= 0:
                    runs[count, FIRST], runs[count, COUNT] = row, rows
                    runs[count, METRIC], runs[count, ACCOUNT] = metric, number
                    count += 1
                    listed = True
                row += rows
            if listed:
                text_at = copy_bytes(accounts.text, text_at, current, 0, size)
                accounts.text_end[number] = text_at
                accounts.partition[number] = partition_of(current, 0, size)
                number += 1
    return count, number


@njit(cache=True, nogil=True)
def mark_blocks(runs: Array, times: Array, start: int, end: int, members: bool, out: Array) -> None:
    """Mark the blocks in which rows of the runs may lie between start and end.

    times int64[b, 3]: least and greatest timestamp, whether a row adds or removes a member.
    members: such rows are wanted from the beginning on.
    """
    for r in range(len(runs)):
        first = runs[r, FIRST] // BLOCK_ROWS
        last = (runs[r, FIRST] + runs[r, COUNT] - 1) // BLOCK_ROWS
        for b in range(first, last + 1):
            if times[b, 0] < end and (times[b, 1] >= start or (members and times[b, 2] != 0)):
                out[b] = 1


@njit(cache=True, forceinline=True)
def slice_of(slices: Any, partition: int, ordinal: int, last: int) -> Any:
    """Return the slice of a partition in which an ordinal lies; `last` is a guess."""
    low, high = slices.group[partition], slices.group[partition + 1]
    if low <= last < high and slices.first[last] <= ordinal:
        if last + 1 == high or ordinal < slices.first[last + 1]:
            return last
        low = last + 1
        if low + 1 == high or ordinal < slices.first[low + 1]:
            return low
    while high - low > 1:
        middle = (low + high) // 2
        if slices.first[middle] <= ordinal:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def match_runs(
    columns: Any,
    runs: Array,
    accounts: Any,
    slices: Any,
    wanted: Any,
    with_sets: bool,
    state: Array,
    out: Any,
) -> Any:
    """Write the rows of the runs that match into out: (matches int64[n, 7], ordinals int64[n]).

    Returns how many; `state` says where to go on, at the end of the runs when all is done.
    """
    matches, ordinals = out
    edges = wanted.edges
    start, end = edges[0], edges[len(edges) - 1]
    scratch = columns.scratch
    found = 0
    while state[RUN] < len(runs):
        run = runs[state[RUN]]
        m = wanted.local[run[METRIC]]
        not_unique = wanted.metrics[m, KIND] == NOT_UNIQUE
        partition = accounts.partition[run[ACCOUNT]]
        while state[WITHIN] < run[COUNT]:
            row = run[FIRST] + state[WITHIN]
            block = row // BLOCK_ROWS
            i = row - block * BLOCK_ROWS
            stop = min(i + run[COUNT] - state[WITHIN], np.int64(BLOCK_ROWS))
            if columns.wanted[block] == 0:
                state[WITHIN] += stop - i
                continue
            if state[BLOCK] != block:
                decode_block(columns.data, columns.offset[block], with_sets, scratch)
                state[BLOCK] = block
            while i < stop and found < len(matches):
                timestamp, operation = scratch[AT, i], scratch[OPERATION, i]
                if timestamp < end and (timestamp >= start or (operation != 0 and not not_unique)):
                    ordinal = scratch[ORDINAL, i]
                    s = slice_of(slices, partition, ordinal, state[SLICE])
                    state[SLICE] = s
                    match = matches[found]
                    match[gather.TIMESTAMP] = timestamp
                    match[gather.POSITION] = slices.index[s] << POSITION_ROW_BITS | (
                        ordinal - slices.first[s]
                    )
                    match[gather.ROW] = block * BLOCK_ROWS + i
                    match[NUMBER], match[gather.OPERATION] = run[METRIC], operation
                    match[gather.VALUE] = scratch[AMOUNT, i]
                    match[ENTRY] = run[ACCOUNT] << 32
                    if with_sets:
                        match[ENTRY] |= scratch[SET, i]
                    ordinals[found] = ordinal
                    found += 1
                i += 1
            state[WITHIN] = block * BLOCK_ROWS + i - run[FIRST]
            if found == len(matches):
                return found
        state[RUN] += 1
        state[WITHIN] = 0
    return found


@njit(cache=True, nogil=True)
def fold_runs(
    columns: Any,
    runs: Array,
    accounts: Any,
    slices: Any,
    wanted: Any,
    most: int,
    state: Array,
    cells: Array,
) -> None:
    """Count the rows of the runs into cells, of which each metric has one a window.

    For metrics that count no members, and questions to which neither account nor properties
    matter.  cells int64[metrics * windows + 1, 16]; the last one is used here.  At most about
    `most` rows at once; `state` says where to go on, as in `match_runs`.
    """
    edges, scratch = wanted.edges, columns.scratch
    windows = len(edges) - 1
    part = len(cells) - 1
    looked_at = 0
    while state[RUN] < len(runs):
        run = runs[state[RUN]]
        base = wanted.local[run[METRIC]] * windows
        partition = accounts.partition[run[ACCOUNT]]
        while state[WITHIN] < run[COUNT]:
            if looked_at >= most:
                return
            row = run[FIRST] + state[WITHIN]
            block = row // BLOCK_ROWS
            i = row - block * BLOCK_ROWS
            stop = min(i + run[COUNT] - state[WITHIN], np.int64(BLOCK_ROWS))
            state[WITHIN] += stop - i
            if columns.wanted[block] == 0:
                continue
            looked_at += stop - i
            if state[BLOCK] != block:
                decode_block(columns.data, columns.offset[block], False, scratch)
                state[BLOCK] = block
            # Rows of a run rise in time, so those of a window lie together.
            while i < stop and scratch[AT, i] < edges[0]:
                i += 1
            while i < stop and scratch[AT, i] < edges[windows]:
                window = window_of(edges, scratch[AT, i])
                first = i
                i = _fold(scratch, i, stop, edges[window + 1], cells, part)
                for k in (first, i - 1):
                    ordinal = scratch[ORDINAL, k]
                    s = slice_of(slices, partition, ordinal, state[SLICE])
                    state[SLICE] = s
                    position = slices.index[s] << POSITION_ROW_BITS | (ordinal - slices.first[s])
                    if k == first:
                        cells[part, FIRST_POS] = position
                    cells[part, LATEST_POS] = position
                merge_cell(cells, base + window, cells, part)
        state[RUN] += 1
        state[WITHIN] = 0


@njit(cache=True, forceinline=True)
def _fold(scratch: Array, i: int, stop: int, end: int, cells: Array, part: int) -> Any:
    """Make a cell of the rows from i on that lie before `end`, without positions; return where
    they stop."""
    first = i
    low = high = scratch[AMOUNT, i]
    sum_low, sum_high = _U64(0), np.int64(0)
    while i < stop and scratch[AT, i] < end:
        value = scratch[AMOUNT, i]
        after = sum_low + _U64(value)
        sum_high += (value >> 63) + np.int64(after < sum_low)
        sum_low = after
        low, high = min(low, value), max(high, value)
        i += 1
    cells[part, CELL_COUNT] = i - first
    cells[part, SUM_LO], cells[part, SUM_HI] = np.int64(sum_low), sum_high
    cells[part, MIN], cells[part, MAX] = low, high
    cells[part, FIRST_TS], cells[part, FIRST_VALUE] = scratch[AT, first], scratch[AMOUNT, first]
    cells[part, LATEST_TS], cells[part, LATEST_VALUE] = scratch[AT, i - 1], scratch[AMOUNT, i - 1]
    return i


@njit(cache=True, nogil=True)
def find_ordinals(columns: Any, runs: Array, low: int, high: int, out: Array) -> Any:
    """Write (ordinal, row) of the runs' rows with low <= ordinal < high into out int64[n, 2].

    Returns how many; there are at most high - low.
    """
    scratch = columns.scratch
    found = 0
    decoded = np.int64(-1)
    for r in range(len(runs)):
        row, last = runs[r, FIRST], runs[r, FIRST] + runs[r, COUNT]
        while row < last:
            block = row // BLOCK_ROWS
            if decoded != block:
                decode_ordinals(columns.data, columns.offset[block], scratch)
                decoded = block
            i = row - block * BLOCK_ROWS
            stop = min(i + last - row, np.int64(BLOCK_ROWS))
            row += stop - i
            while i < stop:
                ordinal = scratch[ORDINAL, i]
                if low <= ordinal < high:
                    out[found, 0], out[found, 1] = ordinal, block * BLOCK_ROWS + i
                    found += 1
                i += 1
    return found


@njit(cache=True, nogil=True)
def rows_by_ordinal(columns: Any, count: int, begin: int, out: Array) -> None:
    """Write the row of each ordinal from `begin` on that is stored into out u32[n].

    count: rows of the segment.
    """
    scratch = columns.scratch
    for block in range(len(columns.offset)):
        decode_ordinals(columns.data, columns.offset[block], scratch)
        first = block * BLOCK_ROWS
        for i in range(np.int64(min(count - first, BLOCK_ROWS))):
            place = scratch[ORDINAL, i] - begin
            if 0 <= place < len(out):
                out[place] = first + i


@njit(cache=True, nogil=True)
def write_entries(
    matches: Array, accounts: Any, with_sets: bool, sets: Any, recent: Array, heap: Any
) -> Any:
    """Make heap entries of what ENTRY says; return how many matches have theirs.

    sets: (raw blocks u8, where each lies int64[blocks] or -1, how many sets there are).
    heap: (u8, used int64[1]).  An entry's id is one zero byte.  Fewer than all: the heap is full.
    """
    data, used = heap
    raw, places, set_count = sets
    for k in range(len(matches)):
        key = matches[k, ENTRY]
        slot = (key ^ key >> 29 ^ key >> 41) & (RECENT - 1)
        if recent[slot, 0] == key:
            matches[k, ENTRY] = recent[slot, 1]
            continue
        account, number = key >> 32, key & 0xFFFFFFFF
        start = end = np.int64(0)
        if with_sets:
            base = places[number // SET_BLOCK_COUNT]
            within = number % SET_BLOCK_COUNT
            count = min(set_count - (number - within), np.int64(SET_BLOCK_COUNT))
            start = base + 4 * count
            end = start + np.int64(load_u32(raw, base + 4 * within))
            if within:
                start += np.int64(load_u32(raw, base + 4 * within - 4))
        at = used[0]
        if at + ENTRY_FIXED + end - start + 8 > len(data):
            return k
        text_start = accounts.text_end[account - 1] if account else np.int64(0)
        text_end = accounts.text_end[account]
        recent[slot, 0], recent[slot, 1] = key, at
        matches[k, ENTRY] = at
        data[at], data[at + 1] = text_end - text_start, 1
        at = copy_bytes(data, at + 2, accounts.text, text_start, text_end)
        data[at] = 0
        if with_sets:
            at = copy_bytes(data, at + 1, raw, start, end)
        else:
            data[at + 1] = 0
            at += 2
        used[0] = at
    return len(matches)
