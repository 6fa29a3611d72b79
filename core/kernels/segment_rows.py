"""Takes the stored rows out of a full log file and puts them in the order of a segment.

A row is six words (int64[n, 6]), so that one line of the cache holds it; accounts and property sets
are interned while the log is read from front to back, then whole rows are ordered by (partition,
account, metric number, timestamp, ordinal).  The ordinal is the row's number in the log, so rows of
one series and moment keep the order in which they were stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from meterd.core.kernels.entries import account_hash, entry_parts, same_bytes
from meterd.core.kernels.hashing import load_u32, load_u64, prefetch, sip_text, tail_word
from meterd.core.kernels.index import MISSING, Index, find, insert, payload_at
from meterd.core.kernels.scan import (
    AT,
    BLOCK_AT,
    EVENTS,
    HEADER_SIZE,
    ROW,
    SLICE_SIZE,
    columns_at,
    is_refused,
    next_record,
)
from meterd.core.kernels.text import copy_bytes

Array = Any
_U64 = np.uint64

# Words of a row.  KEY: account << 32 | metric number << 16 | operation << 8 | id is text.
# PLACE: property set << 32 | ordinal.  A text id is (start, end) in the heap of texts.
TIMESTAMP, VALUE, ID_0, ID_1, KEY, PLACE = range(6)
ROW_WORDS = 6
TEXT_ID = 1
LOW = (1 << 32) - 1
# So few rows are sorted by insertion.
SHORT = 8
# So many by distribution, in digits of so many bits.
LONG = 1024
DIGIT_BITS = 11
DIGITS = 1 << DIGIT_BITS
# Rows asked for ahead of their use, when they are visited in order.
AHEAD = 12
# Slots of the tables of texts seen last (int64: 32 bits of a text's mix | number + 1), a power of
# two.  A text stands in one of the slots of its group, side by side.
SEEN = 1 << 15
GROUP = 4
# Rows whose accounts are looked for together; a power of two.
TOGETHER = 32
# What has been taken (int64[7]).
ROWS, ACCOUNTS, TEXT, SETS, SET_BYTES, ID_TEXT, SLICES = range(7)


class Intake(NamedTuple):
    """Everything taken from log files; see the module."""

    rows: Array  # int64[n, 6]
    account_index: Index
    text: Array  # u8: accounts' texts
    text_end: Array  # int64[a]
    partition: Array  # int64[a]
    set_index: Index
    sets: Array  # u8: property sets, as in heap entries
    set_end: Array  # int64[s]
    id_text: Array  # u8
    slices: Array  # int64[k, 4]: group, first ordinal, index, term
    digests: Array  # u64[k, 2]
    metric_rows: Array  # int64[65536]: rows of each metric number
    counters: Array  # int64[7]
    seen_accounts: Array  # int64[SEEN]
    seen_sets: Array  # int64[SEEN]
    ahead: Array  # int64[TOGETHER]: the mixes of the next accounts


@njit(cache=True, nogil=True, _nrt=False)
def take_records(
    data: Array, end: int, state: Array, refused: Array, key: Array, base: int, intake: Any
) -> None:
    """Take all records up to `end`, which `list_records` has found and the caller has checked.

    `base` is the ordinal of the file's first row.  There is room: the caller knows how many rows,
    slices and bytes the file holds.
    """
    k0, k1 = key[0], key[1]
    while True:
        first_row = state[ROW]
        record = next_record(data, end, state)
        if record < 0:
            return
        _take_slices(data, record, base + first_row, intake)
        if data[record + 5] == EVENTS:
            _take_rows(data, record, first_row, refused, k0, k1, base, intake)


@njit(cache=True, nogil=True, _nrt=False)
def list_records(data: Array, end: int, state: Array, out: Array) -> Any:
    """Write (offset, size, offset of its block) of all records up to `end` into out int64[r, 3].

    Returns how many, or -1 where the bytes are no log.
    """
    found = np.int64(0)
    while True:
        record = next_record(data, end, state)
        if record == -2:
            return np.int64(-1)
        if record < 0:
            return found
        out[found, 0], out[found, 1], out[found, 2] = record, state[AT] - record, state[BLOCK_AT]
        found += 1


@njit(cache=True, _nrt=False)
def _take_slices(data: Array, record: int, ordinal: int, intake: Any) -> None:
    """Take the slice table of a record."""
    counters = intake.counters
    at = record + HEADER_SIZE
    for _ in range(np.int64(load_u32(data, record + 12))):
        k = counters[SLICES]
        intake.slices[k, 0] = np.int64(data[at]) | np.int64(data[at + 1]) << 8
        intake.slices[k, 1] = ordinal
        intake.slices[k, 2] = np.int64(load_u64(data, at + 8))
        intake.slices[k, 3] = np.int64(load_u32(data, at + 32))
        intake.digests[k, 0], intake.digests[k, 1] = (
            load_u64(data, at + 16),
            load_u64(data, at + 24),
        )
        if data[record + 5] == EVENTS:  # other kinds have no rows, whatever their slices count
            ordinal += np.int64(load_u32(data, at + 4))
        counters[SLICES] = k + 1
        at += SLICE_SIZE


@njit(cache=True, _nrt=False)
def _take_rows(
    data: Array,
    record: int,
    first_row: int,
    refused: Array,
    k0: Any,
    k1: Any,
    base: int,
    intake: Any,
) -> None:
    """Take the stored rows of a record of events."""
    counters, rows = intake.counters, intake.rows
    n, heap_end, metric_at, operation_at, heap = columns_at(data, record)
    entry = heap
    s, slice_end, partition = -1, np.int64(0), np.int64(0)
    for i in range(n):
        if i & (TOGETHER - 1) == 0:
            _ask_ahead(data, heap, heap_end, i, n, intake)
        entry_end = heap + np.int64(load_u32(data, heap_end + 4 * i))
        while i >= slice_end:
            s += 1
            at = record + HEADER_SIZE + SLICE_SIZE * s
            partition = np.int64(data[at]) | np.int64(data[at + 1]) << 8
            slice_end += np.int64(load_u32(data, at + 4))
        if is_refused(refused, first_row + i):
            entry = entry_end
            continue
        account_end, id_end = entry_parts(data, entry)
        number = np.int64(data[metric_at + 2 * i]) | np.int64(data[metric_at + 2 * i + 1]) << 8
        mix = intake.ahead[i & (TOGETHER - 1)]
        account = _account(data, entry + 2, account_end, mix, partition, k0, k1, intake)
        properties = _set(data, id_end, entry_end, k0, k1, intake)
        row = rows[counters[ROWS]]
        row[TIMESTAMP] = np.int64(load_u64(data, heap_end - 16 * n + 8 * i))
        row[VALUE] = np.int64(load_u64(data, heap_end - 8 * n + 8 * i))
        is_text = np.int64(0)
        if data[entry + 1]:
            is_text = np.int64(TEXT_ID)
            start = counters[ID_TEXT]
            counters[ID_TEXT] = copy_bytes(intake.id_text, start, data, account_end, id_end)
            row[ID_0], row[ID_1] = start, counters[ID_TEXT]
        else:
            row[ID_0] = np.int64(load_u64(data, account_end))
            row[ID_1] = np.int64(load_u64(data, account_end + 8))
        operation = np.int64(data[operation_at + i])
        row[KEY] = account << 32 | number << 16 | operation << 8 | is_text
        row[PLACE] = properties << 32 | (base + first_row + i)
        intake.metric_rows[number] += 1
        counters[ROWS] += 1
        entry = entry_end


@njit(cache=True, forceinline=True, _nrt=False)
def text_mix(data: Array, start: int, end: int) -> Any:
    """Return 63 bits of a text, by which it is looked for among those seen last.

    No hash that resists an enemy: texts that meet here cost time, and are then told apart.
    """
    mixed = _U64(end - start)
    at = start
    while at + 8 <= end:
        mixed = (mixed ^ load_u64(data, at)) * _U64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> _U64(29)
        at += 8
    mixed ^= tail_word(data, at, end)
    # Digits differ in few bits of the upper bytes, and a product carries upwards alone.
    mixed = (mixed ^ mixed >> _U64(32)) * _U64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> _U64(29)) * _U64(0xC2B2AE3D27D4EB4F)
    return np.int64((mixed ^ mixed >> _U64(32)) >> _U64(1))


@njit(cache=True, forceinline=True, _nrt=False)
def number_seen(seen: Array, mix: int) -> Any:
    """Return the number of the text that a mix probably belongs to, or -1."""
    group = mix & (SEEN - GROUP)
    found = np.int64(0)  # without a jump, for nobody could foretell in which slot it is
    for slot in range(group, group + GROUP):
        found |= seen[slot] if (seen[slot] ^ mix) >> 32 == 0 else 0
    return (found & LOW) - 1


@njit(cache=True, forceinline=True, _nrt=False)
def remember_text(seen: Array, mix: int, number: int) -> None:
    """Enter a text that was not seen lately, in a free slot or instead of another one."""
    group = mix & (SEEN - GROUP)
    slot = group | (mix >> 16 & (GROUP - 1))
    for free in range(group, group + GROUP):
        if seen[free] == 0:
            slot = free
    seen[slot] = (mix & ~LOW) | (number + 1)


@njit(cache=True, forceinline=True, _nrt=False)
def _ask_ahead(data: Array, heap: int, heap_end: int, first: int, n: int, intake: Any) -> None:
    """Note the mixes of the next rows' accounts; have the bytes to compare brought."""
    last = min(first + TOGETHER, n)
    entry = heap
    if first:
        entry += np.int64(load_u32(data, heap_end + 4 * first - 4))
    for i in range(first, last):
        intake.ahead[i - first] = text_mix(data, entry + 2, entry + 2 + np.int64(data[entry]))
        entry = heap + np.int64(load_u32(data, heap_end + 4 * i))
    for i in range(last - first):
        known = number_seen(intake.seen_accounts, intake.ahead[i]) - 1
        if known >= 0:
            prefetch(intake.text, intake.text_end[known])


@njit(cache=True, forceinline=True, _nrt=False)
def _is(texts: Array, ends: Array, number: int, data: Array, start: int, end: int) -> Any:
    """Return whether a text is the one of a number."""
    first = ends[number - 1] if number else np.int64(0)
    return ends[number] - first == end - start and same_bytes(
        texts, first, data, start, end - start
    )


@njit(cache=True, forceinline=True, _nrt=False)
def _account(
    data: Array, start: int, end: int, mix: int, partition: int, k0: Any, k1: Any, intake: Any
) -> Any:
    """Return the number of an account, giving it one if it is new."""
    known = number_seen(intake.seen_accounts, mix)
    if known >= 0 and _is(intake.text, intake.text_end, known, data, start, end):
        return known
    number = _account_in_full(data, start, end, partition, k0, k1, intake)
    if known < 0:
        remember_text(intake.seen_accounts, mix, number)
    return number


@njit(cache=True, forceinline=True, _nrt=False)
def _account_in_full(
    data: Array, start: int, end: int, partition: int, k0: Any, k1: Any, intake: Any
) -> Any:
    a0, a1 = account_hash(k0, k1, data, start, end)
    slot = find(intake.account_index, a0, a1)
    if slot != MISSING:
        return np.int64(payload_at(intake.account_index, slot))
    counters = intake.counters
    number = counters[ACCOUNTS]
    counters[TEXT] = copy_bytes(intake.text, counters[TEXT], data, start, end)
    intake.text_end[number] = counters[TEXT]
    intake.partition[number] = partition
    counters[ACCOUNTS] = number + 1
    insert(intake.account_index, a0, a1, _U64(number))
    return number


@njit(cache=True, forceinline=True, _nrt=False)
def _set(data: Array, start: int, end: int, k0: Any, k1: Any, intake: Any) -> Any:
    """Return the number of a property set, giving it one if it is new."""
    mix = text_mix(data, start, end)
    known = number_seen(intake.seen_sets, mix)
    if known >= 0 and _is(intake.sets, intake.set_end, known, data, start, end):
        return known
    number = _set_in_full(data, start, end, k0, k1, intake)
    if known < 0:
        remember_text(intake.seen_sets, mix, number)
    return number


@njit(cache=True, forceinline=True, _nrt=False)
def _set_in_full(data: Array, start: int, end: int, k0: Any, k1: Any, intake: Any) -> Any:
    s0, s1 = sip_text(k0, k1, data, start, end)
    slot = find(intake.set_index, s0, s1)
    if slot != MISSING:
        return np.int64(payload_at(intake.set_index, slot))
    counters = intake.counters
    number = counters[SETS]
    counters[SET_BYTES] = copy_bytes(intake.sets, counters[SET_BYTES], data, start, end)
    intake.set_end[number] = counters[SET_BYTES]
    counters[SETS] = number + 1
    insert(intake.set_index, s0, s1, _U64(number))
    return number


@njit(cache=True, forceinline=True, _nrt=False)
def _swapped(word: Any) -> Any:
    """Return a word whose bytes stand the other way round: then texts compare as numbers."""
    m1, m2 = _U64(0x00FF00FF00FF00FF), _U64(0x0000FFFF0000FFFF)
    word = ((word >> _U64(8)) & m1) | ((word & m1) << _U64(8))
    word = ((word >> _U64(16)) & m2) | ((word & m2) << _U64(16))
    return (word >> _U64(32)) | (word << _U64(32))


@njit(cache=True, _nrt=False)
def text_before(text: Array, a: int, a_end: int, b: int, b_end: int) -> Any:
    """Return whether the text at a..a_end comes before the one at b..b_end."""
    while a + 8 <= a_end and b + 8 <= b_end:
        left, right = load_u64(text, a), load_u64(text, b)
        if left != right:
            return _swapped(left) < _swapped(right)
        a += 8
        b += 8
    while a < a_end and b < b_end:
        if text[a] != text[b]:
            return text[a] < text[b]
        a += 1
        b += 1
    return a_end - a < b_end - b


@njit(cache=True, forceinline=True, _nrt=False)
def _account_before(text: Array, text_end: Array, partition: Array, a: int, b: int) -> Any:
    """Return whether account a comes before account b."""
    if partition[a] != partition[b]:
        return partition[a] < partition[b]
    a_start = text_end[a - 1] if a else np.int64(0)
    b_start = text_end[b - 1] if b else np.int64(0)
    return text_before(text, a_start, text_end[a], b_start, text_end[b])


@njit(cache=True, nogil=True, _nrt=False)
def order_accounts(
    text: Array, text_end: Array, partition: Array, order: Array, spare: Array
) -> None:
    """Sort account numbers (order: int64, 0, 1, 2 …) by (partition, text): a merge sort."""
    n = len(order)
    width = 1
    is_spare = False  # where the last pass has left them
    source, target = order, spare
    while width < n:
        for low in range(0, n, 2 * width):
            middle, high = min(low + width, n), min(low + 2 * width, n)
            i, j = low, middle
            if middle == high or not _account_before(
                text, text_end, partition, source[middle], source[middle - 1]
            ):
                i, j = high, high  # nothing to do but copy: parts that are merged are sorted
                for k in range(low, high):
                    target[k] = source[k]
            for k in range(low, high if j < high else low):
                take_right = i == middle
                if not take_right and j < high:
                    take_right = _account_before(text, text_end, partition, source[j], source[i])
                if take_right:
                    target[k] = source[j]
                    j += 1
                else:
                    target[k] = source[i]
                    i += 1
        source, target = target, source
        is_spare = not is_spare
        width *= 2
    if is_spare:
        for k in range(n):
            order[k] = spare[k]


@njit(cache=True, nogil=True, _nrt=False)
def order_rows(
    rows: Array, metric_rows: Array, rank: Array, starts: Array, spare: Any, order: Array
) -> None:
    """Write the rows' numbers in order into `order` (int64[n]).

    rank int64[a]: where each account stands among all.  metric_rows and starts (int64[a + 1]) are
    used up.  spare: two int64[n, 2], int64[DIGITS].  Two stable distributions, by metric and by
    account, then each series by time, which many have already.  What a comparison needs moves
    along, so that rows, which lie far apart, are looked at once.
    """
    by_metric, by_account, counts = spare
    n = len(rows)
    at = np.int64(0)
    for number in range(len(metric_rows)):
        count = metric_rows[number]
        metric_rows[number] = at
        at += count
    for i in range(n):
        key = rows[i, KEY]
        number, place = (key >> 16) & 0xFFFF, rank[key >> 32]
        at = metric_rows[number]
        metric_rows[number] = at + 1
        by_metric[at, 0], by_metric[at, 1] = place << 32 | i, rows[i, TIMESTAMP]
        starts[place + 1] += 1
    for account in range(1, len(starts)):
        starts[account] += starts[account - 1]
    at = np.int64(0)
    for number in range(len(metric_rows)):
        while at < metric_rows[number]:
            prefetch(by_account, starts[by_metric[min(at + AHEAD, n - 1), 0] >> 32])
            place = by_metric[at, 0] >> 32
            k = starts[place]
            starts[place] = k + 1
            by_account[k, 0] = number << 32 | (by_metric[at, 0] & LOW)
            by_account[k, 1] = by_metric[at, 1]
            at += 1
    first = np.int64(0)
    for place in range(len(starts) - 1):
        end = starts[place]
        while first < end:
            last = _end_of_series(by_account, by_metric, counts, first, end)
            for k in range(first, last):
                order[k] = by_account[k, 0] & LOW
            first = last


@njit(cache=True, forceinline=True, _nrt=False)
def _end_of_series(pairs: Array, spare: Array, counts: Array, first: int, end: int) -> Any:
    """Sort the series that begins at `first` by time; return where it ends."""
    number, before = pairs[first, 0] >> 32, pairs[first, 1]
    last = first + 1
    rising = True
    while last < end and pairs[last, 0] >> 32 == number:
        at = pairs[last, 1]
        rising = rising and at >= before
        before = at
        last += 1
    if not rising:
        if last - first < LONG:
            _order_by_time(pairs, spare, first, last)
        else:
            _distribute_by_time(pairs, spare, counts, first, last)
    return last


@njit(cache=True, _nrt=False)
def _order_by_time(pairs: Array, spare: Array, first: int, last: int) -> None:
    """Sort pairs[first:last] by their second word, stably: a merge sort."""
    for low in range(first, last, SHORT):
        for k in range(low + 1, min(low + SHORT, last)):
            row, at = pairs[k, 0], pairs[k, 1]
            j = k
            while j > low and pairs[j - 1, 1] > at:
                pairs[j, 0], pairs[j, 1] = pairs[j - 1, 0], pairs[j - 1, 1]
                j -= 1
            pairs[j, 0], pairs[j, 1] = row, at
    width = SHORT
    while width < last - first:
        for low in range(first, last, 2 * width):
            middle, high = min(low + width, last), min(low + 2 * width, last)
            if middle == high or pairs[middle - 1, 1] <= pairs[middle, 1]:
                continue
            for k in range(low, middle):
                spare[k, 0], spare[k, 1] = pairs[k, 0], pairs[k, 1]
            i, j, k = low, middle, low
            while i < middle and j < high:
                # Without a jump, for nobody could foretell it.
                left, left_at, right, right_at = spare[i, 0], spare[i, 1], pairs[j, 0], pairs[j, 1]
                is_right = right_at < left_at
                pairs[k, 0] = right if is_right else left
                pairs[k, 1] = right_at if is_right else left_at
                step = np.int64(is_right)
                j += step
                i += 1 - step
                k += 1
            while i < middle:
                pairs[k, 0], pairs[k, 1] = spare[i, 0], spare[i, 1]
                i += 1
                k += 1
        width *= 2


@njit(cache=True, _nrt=False)
def _distribute_by_time(pairs: Array, spare: Array, counts: Array, first: int, last: int) -> None:
    """Sort as `_order_by_time` does, digit by digit from the least significant on."""
    low = high = pairs[first, 1]
    for k in range(first, last):
        low, high = min(low, pairs[k, 1]), max(high, pairs[k, 1])
    span = _U64(high) - _U64(low)
    shift = _U64(0)
    source, target = pairs, spare
    is_spare = False
    while shift < _U64(64) and span >> shift:
        for digit in range(DIGITS):
            counts[digit] = 0
        for k in range(first, last):
            counts[np.int64((_U64(source[k, 1]) - _U64(low)) >> shift & _U64(DIGITS - 1))] += 1
        at = first
        for digit in range(DIGITS):
            at, counts[digit] = at + counts[digit], at
        for k in range(first, last):
            digit = np.int64((_U64(source[k, 1]) - _U64(low)) >> shift & _U64(DIGITS - 1))
            at = counts[digit]
            counts[digit] = at + 1
            target[at, 0], target[at, 1] = source[k, 0], source[k, 1]
        source, target = target, source
        is_spare = not is_spare
        shift += _U64(DIGIT_BITS)
    if is_spare:
        for k in range(first, last):
            pairs[k, 0], pairs[k, 1] = spare[k, 0], spare[k, 1]
