"""Merges the rows of segments that follow each other: blocks in, rows in one order out.

Each segment that is read has a window: the rows of one of its blocks (int64[n, 6], see
`segment_rows`), with the rank of its account among all accounts that are merged, the number of its
property set among all sets, and its ordinal moved to where it will be.  Rows leave the windows in
order; a window that is used up is filled with the next block.

What enters a window is also added to a digest that does not depend on the order of the rows: the
sum of a keyed hash of everything that a row says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.cells import POSITION_ROW_BITS
from meterd.core.kernels.hashing import load_u32, load_u64, partition_of, sip_text
from meterd.core.kernels.index import MISSING, find, insert, payload_at
from meterd.core.kernels.segment_blocks import (
    AMOUNT,
    AT,
    OPERATION,
    ORDINAL,
    SET,
    decode_block,
    read_varint,
)
from meterd.core.kernels.segment_match import slice_of
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
from meterd.core.kernels.text import copy_bytes

Array = Any
_U64 = np.uint64

# What has entered from one segment (int64[8]): rows, rows left out because they are erased, the
# digest of the former, whether all rows came in order, and the last of them: key, time, ordinal.
TAKEN, ERASED, DIGEST, IN_ORDER, LAST_KEY, LAST_AT, LAST_ORDINAL, FACT_WORDS = range(8)
# Where the runs of a segment are read on (int64[5]): behind what was read of the pages, account and
# metric of the run, runs of the account and rows of the run that are left.
PAGE_AT, ACCOUNT, METRIC, RUNS_LEFT, ROWS_LEFT, CURSOR_WORDS = range(6)
PAGE_ACCOUNTS = 64
# Where a window is (int64[k, 3]): its next row, where its rows end, whether blocks follow.
NEXT, END, MORE = range(3)
# What leaves (int64[4]): rows and bytes of text ids in the batch, distinct sets in it, batches.
OUT_ROWS, OUT_TEXT, OUT_SETS, OUT_BATCH = range(4)
# The floor of accounts none of whose rows is taken.
EVERYTHING_GONE = 2**63 - 1
# What `merge` returns instead of the number of a window that is used up.
FULL, DONE = -1, -2


@njit(cache=True, forceinline=True, _nrt=False)
def _mixed(hashed: Any, word: Any) -> Any:
    """Return a hash with one more word in it."""
    hashed = (hashed ^ word) * _U64(0x9E3779B97F4A7C15)
    return hashed ^ (hashed >> _U64(32))


@njit(cache=True, nogil=True, _nrt=False)
def hash_texts(key: Array, text: Array, text_end: Array, out: Array) -> None:
    """Write the keyed hash of each text (text_end int64[n]) to out u64[n, 2]."""
    start = np.int64(0)
    for number in range(len(text_end)):
        out[number, 0], out[number, 1] = sip_text(key[0], key[1], text, start, text_end[number])
        start = text_end[number]


@njit(cache=True, nogil=True, _nrt=False)
def copy_texts(text: Array, text_end: Array, chosen: Array, out: Array, out_end: Array) -> None:
    """Copy the chosen texts (numbers int64) to `out` one after another, and say where each ends."""
    at = np.int64(0)
    for k in range(len(chosen)):
        number = chosen[k]
        start = text_end[number - 1] if number else np.int64(0)
        at = copy_bytes(out, at, text, start, text_end[number])
        out_end[k] = at


@njit(cache=True, nogil=True, _nrt=False)
def number_sets(key: Array, raw: Array, count: int, index: Any, out: Any) -> Any:
    """Give each set of a block (ends u32[count], then bytes) a number among all sets.

    out: (numbers int64[count], written here; hashes u64[all], of each number; how many int64[1]).
    Returns how many of them are new; those have the last numbers, in their order.
    """
    numbers, hashes, known = out
    before = known[0]
    base = 4 * count
    start = np.int64(base)
    for place in range(count):
        end = base + np.int64(load_u32(raw, 4 * place))
        s0, s1 = sip_text(key[0], key[1], raw, start, end)
        slot = find(index, s0, s1)
        if slot == MISSING:
            number = known[0]
            insert(index, s0, s1, _U64(number))
            hashes[number] = s0 ^ s1
            known[0] = number + 1
            numbers[place] = number
        else:
            numbers[place] = np.int64(payload_at(index, slot))
        start = end
    return known[0] - before


@njit(cache=True, nogil=True, _nrt=False)
def take_blocks(
    seg: Array,
    places: Array,
    ids: Array,
    pages: Any,
    sets: Any,
    rules: Any,
    columns: Array,
    window: Any,
) -> Any:
    """Put the rows of blocks that are not erased into a window; return how many.

    places int64[b, 3]: of each block where its columns lie in seg u8 and its ids in ids u8, whether
    some of these are text.  pages: (bytes u8, where each begins int64[p], cursor int64[5]) of the
    index.  sets: (numbers int64 of the segment's sets, hashes u64 of all).  rules: (key u64[2],
    ranks int64[a] of the segment's accounts, hashes of accounts by rank u64[r, 2], offset of
    ordinals, erased).  erased: (of each account the position before which it is erased int64[a] or
    0, partition of each int64[a], slices of those that have one).  columns: int64[6, rows of a
    block].
    window: (rows int64[n, 6], text u8, where it begins in the text of all windows, facts int64[8]).
    """
    _, _, _, facts = window
    kept = text_at = np.int64(0)
    for b in range(len(places)):
        n = decode_block(seg, places[b, 0], True, columns)
        id_at, has_text = places[b, 1], places[b, 2] != 0
        sizes_at = id_at
        if has_text:
            id_at += n
        i = np.int64(0)
        while i < n:
            if pages[2][ROWS_LEFT] == 0:
                _next_run(pages)
            stop = min(n, i + pages[2][ROWS_LEFT])
            pages[2][ROWS_LEFT] -= stop - i
            account, metric = pages[2][ACCOUNT], pages[2][METRIC]
            span = (i, stop, id_at, sizes_at, has_text)
            kept, text_at, id_at = _take_run(
                columns, span, account, metric, ids, sets, rules, kept, text_at, window
            )
            i = stop
    facts[TAKEN] += kept
    return kept


@njit(cache=True, forceinline=True, _nrt=False)
def _next_run(pages: Any) -> None:
    """Move the cursor to the next run of the index; there is one."""
    data, starts, cursor = pages
    at = cursor[PAGE_AT]
    if cursor[RUNS_LEFT] == 0:
        cursor[ACCOUNT] += 1
        if cursor[ACCOUNT] % PAGE_ACCOUNTS == 0:
            at = starts[cursor[ACCOUNT] // PAGE_ACCOUNTS]
        cursor[RUNS_LEFT], at = read_varint(data, at + 2 + np.int64(data[at + 1]))
        cursor[METRIC] = 0
    more, at = read_varint(data, at)
    cursor[METRIC] += more
    cursor[ROWS_LEFT], at = read_varint(data, at)
    cursor[RUNS_LEFT] -= 1
    cursor[PAGE_AT] = at


@njit(cache=True, forceinline=True, _nrt=False)
def _take_run(
    columns: Array,
    span: Any,
    account: int,
    metric: int,
    ids: Array,
    sets: Any,
    rules: Any,
    kept: int,
    text_at: int,
    window: Any,
) -> Any:
    """Take the rows of one run; return where the window's rows, their text and the ids end."""
    first, last, id_at, sizes_at, has_text = span
    set_numbers, set_hashes = sets
    key, ranks, accounts, offset, (floors, partitions, slices) = rules
    rows, text, text_base, facts = window
    rank, floor, at = ranks[account], floors[account], np.int64(-1)
    of_account = accounts[rank, 0]
    digest = _U64(facts[DIGEST])
    for i in range(first, last):
        size = np.int64(ids[sizes_at + i]) if has_text else np.int64(0)
        id_start = id_at
        id_at += size if size else np.int64(16)
        ordinal = columns[ORDINAL, i]
        if floor == EVERYTHING_GONE:
            facts[ERASED] += 1
            continue
        if floor != 0:
            # By its position: a slice that was taken for no group has no index, and a repair stands
            # behind ops that are newer, so neither ordinals nor indices alone tell.
            at = slice_of(slices, partitions[account], ordinal, at)
            if slices.index[at] << POSITION_ROW_BITS | (ordinal - slices.first[at]) < floor:
                facts[ERASED] += 1
                continue
        ordinal += offset
        row = rows[kept]
        timestamp, value = columns[AT, i], columns[AMOUNT, i]
        number = set_numbers[columns[SET, i]]
        word = rank << 32 | metric << 16 | columns[OPERATION, i] << 8
        if size:
            word |= TEXT_ID
            end = copy_bytes(text, text_base + text_at, ids, id_start, id_at)
            row[ID_0], row[ID_1] = text_base + text_at, end
            text_at = end - text_base
            i0, i1 = sip_text(key[0], key[1], ids, id_start, id_at)
        else:
            i0, i1 = load_u64(ids, id_start), load_u64(ids, id_start + 8)
            row[ID_0], row[ID_1] = np.int64(i0), np.int64(i1)
        row[KEY] = word
        row[TIMESTAMP], row[VALUE] = timestamp, value
        row[PLACE] = number << 32 | ordinal
        hashed = _mixed(of_account, _U64(word & 0xFFFFFFFF))
        hashed = _mixed(_mixed(hashed, _U64(timestamp)), _U64(value))
        hashed = _mixed(_mixed(_mixed(hashed, _U64(ordinal)), i0), i1)
        digest += _mixed(hashed, set_hashes[number])
        _note_order(facts, word >> 16, timestamp, ordinal)
        kept += 1
    facts[DIGEST] = np.int64(digest)
    return kept, text_at, id_at


@njit(cache=True, nogil=True, _nrt=False)
def list_accounts(data: Array, starts: Array, out: Any) -> None:
    """List all accounts of an index whose pages begin at `starts` int64[p].

    out: (text u8, text_end int64[a], partition int64[a]).
    """
    text, text_end, partition = out
    at = begin = text_at = np.int64(0)
    for number in range(len(text_end)):
        if number % PAGE_ACCOUNTS == 0:
            at = starts[number // PAGE_ACCOUNTS]
        shared, rest = np.int64(data[at]), np.int64(data[at + 1])
        at += 2
        # What is shared with the one before stands there.
        here = text_at
        text_at = copy_bytes(
            text, copy_bytes(text, here, text, begin, begin + shared), data, at, at + rest
        )
        begin = here
        text_end[number] = text_at
        partition[number] = partition_of(text, here, text_at)
        runs, at = read_varint(data, at + rest)
        for _ in range(2 * runs):
            _, at = read_varint(data, at)


@njit(cache=True, forceinline=True, _nrt=False)
def _note_order(facts: Array, key: int, timestamp: int, ordinal: int) -> None:
    """Note whether a row comes behind the one before it."""
    if key < facts[LAST_KEY] or (
        key == facts[LAST_KEY]
        and (
            timestamp < facts[LAST_AT]
            or (timestamp == facts[LAST_AT] and ordinal <= facts[LAST_ORDINAL])
        )
    ):
        facts[IN_ORDER] = 0
    facts[LAST_KEY], facts[LAST_AT], facts[LAST_ORDINAL] = key, timestamp, ordinal


@njit(cache=True, nogil=True, _nrt=False)
def merge(rows: Array, text: Array, windows: Array, sets: Any, out: Any) -> Any:
    """Move rows from the windows to the batch, the least first, the first window's before equals.

    sets: (batch that a set was in last int64[all], its number there int64[all], the sets of the
    batch in order int64[rows]).  out: (rows int64[n, 6], text u8, state int64[4]).
    Returns a window that must be filled, FULL or DONE.
    """
    target, target_text, state = out
    last_batch, within, listed = sets
    batch = state[OUT_BATCH]
    count, text_at = state[OUT_ROWS], state[OUT_TEXT]
    answer = np.int64(FULL)
    while count < len(target):
        best, second = np.int64(-1), np.int64(-1)
        for k in range(len(windows)):
            if windows[k, NEXT] == windows[k, END]:
                if windows[k, MORE]:
                    state[OUT_ROWS], state[OUT_TEXT] = count, text_at
                    return np.int64(k)
                continue
            if best < 0 or _is_less(rows, windows[k, NEXT], windows[best, NEXT]):
                second, best = best, np.int64(k)
            elif second < 0 or _is_less(rows, windows[k, NEXT], windows[second, NEXT]):
                second = np.int64(k)
        if best < 0:
            answer = np.int64(DONE)
            break
        at, end = windows[best, NEXT], windows[best, END]
        end = min(end, at + len(target) - count)
        while True:
            row, copy = rows[at], target[count]
            for word in range(ROW_WORDS):
                copy[word] = row[word]
            if row[KEY] & TEXT_ID:
                copy[ID_0] = text_at
                text_at = copy_bytes(target_text, text_at, text, row[ID_0], row[ID_1])
                copy[ID_1] = text_at
            number = row[PLACE] >> 32
            if last_batch[number] != batch:
                last_batch[number] = batch
                within[number] = state[OUT_SETS]
                listed[state[OUT_SETS]] = number
                state[OUT_SETS] += 1
            copy[PLACE] = within[number] << 32 | (row[PLACE] & 0xFFFFFFFF)
            at += 1
            count += 1
            if at == end or not (second < 0 or _goes_on(rows, at, best, windows, second)):
                break
        windows[best, NEXT] = at
    state[OUT_ROWS], state[OUT_TEXT] = count, text_at
    return answer


@njit(cache=True, forceinline=True, _nrt=False)
def _is_less(rows: Array, a: int, b: int) -> Any:
    """Return whether row a comes before row b, which lies in an earlier window."""
    left, right = rows[a, KEY] >> 16, rows[b, KEY] >> 16
    return left < right or (left == right and rows[a, TIMESTAMP] < rows[b, TIMESTAMP])


@njit(cache=True, forceinline=True, _nrt=False)
def _goes_on(rows: Array, at: int, window: int, windows: Array, other: int) -> Any:
    """Return whether the row `at` of a window comes before the next one of another."""
    if window < other:
        return not _is_less(rows, windows[other, NEXT], at)
    return _is_less(rows, at, windows[other, NEXT])
