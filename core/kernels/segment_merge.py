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

from meterd.core.kernels.hashing import load_u32, load_u64, sip_text
from meterd.core.kernels.index import MISSING, find, insert, payload_at
from meterd.core.kernels.segment_blocks import AMOUNT, AT, OPERATION, ORDINAL, SET
from meterd.core.kernels.segment_match import ACCOUNT, COUNT, METRIC
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
# Where a window is (int64[k, 3]): its next row, where its rows end, whether blocks follow.
NEXT, END, MORE = range(3)
# What leaves (int64[4]): rows and bytes of text ids in the batch, distinct sets in it, batches.
OUT_ROWS, OUT_TEXT, OUT_SETS, OUT_BATCH = range(4)
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
def take_block(
    columns: Array, runs: Array, ranks: Array, ids: Any, sets: Any, rules: Any, window: Any
) -> Any:
    """Put the rows of a block that are not erased into a window; return how many.

    columns int64[6, n] and runs int64[r, 4] (segment_match) of the block.  ranks int64: of the
    accounts that the runs name.  ids: (bytes u8, 1 if some are text).  sets: (numbers int64 of
    the segment's sets, hashes u64 of all).  rules: (key u64[2], hashes of accounts by rank
    u64[a, 2], offset of ordinals, first ordinal left of the accounts that the runs name int64).
    window: (rows int64[n, 6], text u8, where it begins in the text of all windows,
    facts int64[8]).
    """
    raw, has_text = ids
    set_numbers, set_hashes = sets
    key, accounts, offset, first_left = rules
    rows, text, text_base, facts = window
    n = columns.shape[1]
    id_at = np.int64(n if has_text else 0)
    kept, text_at, i = np.int64(0), np.int64(0), np.int64(0)
    digest = _U64(facts[DIGEST])
    for r in range(len(runs)):
        rank, metric = ranks[runs[r, ACCOUNT]], runs[r, METRIC]
        of_account, left = accounts[rank, 0], first_left[runs[r, ACCOUNT]]
        for _ in range(runs[r, COUNT]):
            timestamp, operation = columns[AT, i], columns[OPERATION, i]
            row = rows[kept]
            size = np.int64(raw[i]) if has_text else np.int64(0)
            id_start = id_at
            id_at += size if size else np.int64(16)
            number = set_numbers[columns[SET, i]]
            ordinal = columns[ORDINAL, i]
            value = columns[AMOUNT, i]
            i += 1
            if ordinal < left:
                facts[ERASED] += 1
                continue
            ordinal += offset
            row[KEY] = rank << 32 | metric << 16 | operation << 8
            row[TIMESTAMP], row[VALUE] = timestamp, value
            row[PLACE] = number << 32 | ordinal
            if size:
                row[KEY] |= TEXT_ID
                end = copy_bytes(text, text_base + text_at, raw, id_start, id_at)
                row[ID_0], row[ID_1] = text_base + text_at, end
                text_at = end - text_base
                i0, i1 = sip_text(key[0], key[1], raw, id_start, id_at)
            else:
                i0, i1 = load_u64(raw, id_start), load_u64(raw, id_start + 8)
                row[ID_0], row[ID_1] = np.int64(i0), np.int64(i1)
            hashed = _mixed(of_account, _U64(row[KEY] & 0xFFFFFFFF))
            hashed = _mixed(_mixed(hashed, _U64(timestamp)), _U64(value))
            hashed = _mixed(_mixed(_mixed(hashed, _U64(ordinal)), i0), i1)
            digest += _mixed(hashed, set_hashes[number])
            _note_order(facts, row[KEY] >> 16, timestamp, ordinal)
            kept += 1
    facts[TAKEN] += kept
    facts[DIGEST] = np.int64(digest)
    return kept


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
