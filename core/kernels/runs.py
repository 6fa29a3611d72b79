"""Identities that memory no longer holds: sorted, immutable runs, each with its filter.

A run holds identities in the order of their keys' first words.  Such words are uniform, so the
place of a key among a run's *lines* follows from it without a search (`home_line`).  A line is 64
bytes, one cache line: the tags (16 bits of the key's second word) of up to 31 entries and their
number.  It is the filter: a look-up of an identity that a run does not hold reads one line, and
with probability 24 x 2^-16 an entry for nothing.  A full line's entries go on in the next one.

  lines    u16[lines + SPILL_MAX, 32]  tags in the order of the entries; the last word: how many
  starts   u32[lines + SPILL_MAX]      the entry of a line's first tag
  entries  u8[...]                     one after another: the low bytes of the key's first word, as
                                       many as tell apart the keys of SPILL_MAX + 1 lines · digest
                                       of the content, 4 bytes · day of the event since the first
                                       day of the run, 1 or 2 bytes

Runs are made from sorted entries (`fill_lines`), and from older runs read in step (`take_entries`).
The sorted form, u64[n, 2]: word 0 the key's first word, word 1 the tag (bits 48..63), the digest
(16..47), the day since 1970 (0..15).

Space: 2.7 + 0.2 + 11 bytes an identity in a run of 50 million.  (A Bloom filter of 10 bits a key
lets 25 times as many through; here each would read a page of the disk.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from meterd.core.kernels.hashing import load_u16, load_u32, load_u64, prefetch, store_u64
from meterd.core.kernels.memory import column_at

Array = Any
_U64 = np.uint64

LINE_WORDS = 32
LINE_SLOTS = LINE_WORDS - 1  # the last word says how many are in use
SLOTS_USED = 24  # on average
# A line is sorted in so many parts, three entries each: putting those in order takes few moves.
LINE_PARTS = 8
# How far behind its home line an entry may lie; with a quarter of the slots free none ever does.
SPILL_MAX = 8
# Bytes behind the last entry that may be read with it.
ENTRIES_MARGIN = 8
DIGEST_BYTES = 4

# Facts of a run (int64[8]).
LINES, KEY_BYTES, DAY_BYTES, FIRST_DAY, NEWEST_DAY, COUNT = range(6)
FACT_WORDS = 8
# Arrays of a run in a handle: lines, starts, entries.
ARRAYS = 3
# A payload that was found; payloads have 48 bits.
FOUND = np.uint64(1 << 63)
NOT_FOUND = np.uint64(0)

# State of a run being made (int64[3]): the next entry's number, the line of the last, its home's
# greatest distance so far.
RANK, LINE, SPILLED = range(3)
# State of a run being read (int64[3]): the next entry's number, its line, its place in the line.
READ_RANK, READ_LINE, READ_SLOT = range(3)


@intrinsic
def equal_words(typing_context: Any, words: Any, index: Any, wanted: Any) -> Any:
    """Return bit by bit which of the 32 words of a u16 array from an index on equal one."""
    signature = types.uint32(words, types.int64, types.uint16)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(16), LINE_WORDS)
        data = make_array(sig.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())
        held = builder.load(pointer)
        held.align = 2
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), args[2], ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LINE_WORDS), [0] * LINE_WORDS)
        every = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)
        return builder.bitcast(builder.icmp_unsigned("==", held, every), ir.IntType(32))

    return signature, generate


@njit(cache=True, forceinline=True, _nrt=False)
def home_line(k0: Any, lines: int) -> Any:
    """Return the line of a key, rising with it: k0 / 2^64 * lines."""
    return np.int64((k0 >> _U64(32)) * _U64(lines) >> _U64(32))


@njit(cache=True, forceinline=True, _nrt=False)
def first_key(line: int, lines: int) -> Any:
    """Return the least first word whose home is a line (0, the sum of all, behind the last)."""
    return ((_U64(line) << _U64(32)) + _U64(lines - 1)) // _U64(lines) << _U64(32)


@njit(cache=True, forceinline=True, _nrt=False)
def end_of_block(last: int, lines: int) -> Any:
    """Return the first word behind all whose home is before line `last`; 0 for all there are."""
    return _U64(0) if last >= lines else first_key(last, lines)


@njit(cache=True, forceinline=True, _nrt=False)
def _low_mask(key_bytes: int) -> Any:
    """Return the mask of the bytes of a key's first word that an entry holds (1 to 8)."""
    return ~_U64(0) >> _U64(64 - 8 * key_bytes)


@njit(cache=True, forceinline=True, _nrt=False)
def _payload(entries: Array, at: int, facts: Array) -> Any:
    """Return the payload of the entry at an offset: digest << 16 | day since 1970."""
    at += facts[KEY_BYTES]
    digest = _U64(load_u32(entries, at))
    day = np.int64(load_u16(entries, at + DIGEST_BYTES))
    if facts[DAY_BYTES] == 1:
        day &= 0xFF
    return digest << _U64(16) | _U64(day + facts[FIRST_DAY])


@njit(cache=True, _nrt=False)
def _find(run: Any, facts: Array, k0: Any, k1: Any, horizon_day: int) -> Any:
    """Return the payload of a key that has not expired | FOUND, or NOT_FOUND.

    Only called when a tag may match.
    """
    lines, starts, entries = run
    tag = np.uint16(k1 >> _U64(48))
    mask = _low_mask(facts[KEY_BYTES])
    size = facts[KEY_BYTES] + DIGEST_BYTES + facts[DAY_BYTES]
    line = home_line(k0, facts[LINES])
    while True:
        base = line * LINE_WORDS
        used = np.int64(lines[base + LINE_SLOTS])
        hits = equal_words(lines, base, tag)
        for slot in range(used):
            if (hits >> np.uint32(slot)) & np.uint32(1):
                at = (np.int64(starts[line]) + slot) * size
                if (load_u64(entries, at) ^ k0) & mask == _U64(0):
                    payload = _payload(entries, at, facts)
                    if np.int64(payload & _U64(0xFFFF)) >= horizon_day:
                        return payload | FOUND
        if used < LINE_SLOTS:
            return NOT_FOUND
        line += 1


@njit(cache=True, forceinline=True, _nrt=False)
def _ask(lines: Array, count: int, hashes: Array, wanted: Array) -> None:
    """Ask for the line of each wanted row's identity in one run."""
    cache_lines = lines.reshape(-1, LINE_WORDS)
    for i in range(len(wanted)):
        prefetch(cache_lines, home_line(hashes[wanted[i], 2], count))


@njit(cache=True, _nrt=False)
def _match_lines(lines: Array, count: int, hashes: Array, wanted: Array, matches: Array) -> Any:
    """Write which wanted rows' lines have their tag, or are full; return how many."""
    found = np.int64(0)
    for i in range(len(wanted)):
        j = wanted[i]
        base = home_line(hashes[j, 2], count) * LINE_WORDS
        hits = equal_words(lines, base, np.uint16(hashes[j, 3] >> _U64(48)))
        full = np.int64(lines[base + LINE_SLOTS] == LINE_SLOTS)
        matches[found] = j
        found += np.int64(hits != np.uint32(0)) | full
    return found


@njit(cache=True, _nrt=False)
def find_in_runs(
    runs: Any, hashes: Array, wanted: Array, horizon_day: int, found: Array, matches: Array
) -> None:
    """Write the payload | FOUND of wanted rows' identities that a run holds, unless they expired.

    runs (handle of their arrays, facts int64[r, 8]); hashes u64[b, >= 4], columns 2 and 3 the key;
    wanted int64[n] rows; found u64[b] is left alone where nothing is found; matches int64[b] is
    worked in.  Run by run: the lines of the next are on their way while one is looked at.
    """
    handle, facts = runs
    count = len(facts)
    if count:
        _ask(column_at(handle, 0, np.uint16), facts[0, LINES], hashes, wanted)
    for r in range(count):
        if r + 1 < count:
            following = column_at(handle, ARRAYS * (r + 1), np.uint16)
            _ask(following, facts[r + 1, LINES], hashes, wanted)
        fact = facts[r]
        lines = column_at(handle, ARRAYS * r, np.uint16)
        starts = column_at(handle, ARRAYS * r + 1, np.uint32)
        entries = column_at(handle, ARRAYS * r + 2, np.uint8)
        for i in range(_match_lines(lines, fact[LINES], hashes, wanted, matches)):
            j = matches[i]
            k0, k1 = hashes[j, 2], hashes[j, 3]
            payload = _find((lines, starts, entries), fact, k0, k1, horizon_day)
            if payload != NOT_FOUND:
                found[j] = payload


# Making runs


@njit(cache=True, forceinline=True, _nrt=False)
def seek(run: Any, facts: Array, low: Any, state: Array) -> None:
    """Set the state of a run being read so that nothing from a first word on is passed over.

    Some entries before it may be read again: those that went on in a line behind their home.
    """
    line = home_line(low, facts[LINES])
    state[READ_RANK], state[READ_LINE], state[READ_SLOT] = run[1][line], line, 0


@njit(cache=True, nogil=True, _nrt=False)
def fill_lines(sorted_entries: Array, facts: Array, block: Any, out: Any, state: Array) -> Any:
    """Put sorted entries into the lines first..last of a run; return how many were taken.

    sorted_entries u64[n, 2], rising; facts int64[8] of the new run; block (first, last);
    out (lines u16[last - first, 32] of zeros, starts u32[last - first], entries u8[...]);
    state int64[3], whose LINE is the first line or behind it.  What belongs behind the last line
    stays.  Entries begin at the start of their buffer at each call, and 8 bytes behind the last are
    written too.
    """
    first, last = block
    lines, starts, entries = out
    key_bytes = facts[KEY_BYTES]
    size = key_bytes + DIGEST_BYTES + facts[DAY_BYTES]
    line, rank = max(state[LINE], first), state[RANK]
    starts[line - first] = rank
    at = taken = np.int64(0)
    for i in range(len(sorted_entries)):
        w0, w1 = sorted_entries[i, 0], sorted_entries[i, 1]
        home = home_line(w0, facts[LINES])
        to = max(home, line)
        if to < last and lines[to - first, LINE_SLOTS] == LINE_SLOTS:
            to += 1
        if to >= last:
            break
        while line < to:
            line += 1
            starts[line - first] = rank
        state[SPILLED] = max(state[SPILLED], to - home)
        used = np.int64(lines[to - first, LINE_SLOTS])
        lines[to - first, used] = np.uint16(w1 >> _U64(48))
        lines[to - first, LINE_SLOTS] = used + 1
        # Each store writes 8 bytes; the next one, or the next entry, covers what is too much.
        store_u64(entries, at, w0)
        day = (w1 & _U64(0xFFFF)) - _U64(facts[FIRST_DAY])
        digest = (w1 >> _U64(16)) & _U64(0xFFFFFFFF)
        store_u64(entries, at + key_bytes, day << _U64(8 * DIGEST_BYTES) | digest)
        at += size
        rank += 1
        taken += 1
    while line < last - 1:
        line += 1
        starts[line - first] = rank
    state[RANK], state[LINE] = rank, last
    return taken, at


@njit(cache=True, nogil=True, _nrt=False)
def take_entries(
    run: Any, facts: Array, state: Array, end: Any, horizon_day: int, out: Array
) -> Any:
    """Copy entries of a run, from where the last call ended, whose first word is below `end`.

    run (lines u16, starts u32, entries u8); end 0: all that are left; out u64[n, 2] from its
    beginning on.  Expired ones are left out.  Returns how many, or -1 when they do not fit.
    """
    lines, _, entries = run
    total = facts[COUNT]
    key_bytes = facts[KEY_BYTES]
    size = key_bytes + DIGEST_BYTES + facts[DAY_BYTES]
    mask = _low_mask(key_bytes)
    rank, line, slot = state[READ_RANK], state[READ_LINE], state[READ_SLOT]
    taken = np.int64(0)
    lowest = first_key(max(line - SPILL_MAX, 0), facts[LINES])
    while rank < total:
        while slot == np.int64(lines[line * LINE_WORDS + LINE_SLOTS]):
            line, slot = line + 1, np.int64(0)
            lowest = first_key(max(line - SPILL_MAX, 0), facts[LINES])
        at = rank * size
        w0 = lowest + ((load_u64(entries, at) - lowest) & mask)
        if end != _U64(0) and w0 >= end:
            break
        payload = _payload(entries, at, facts)
        if np.int64(payload & _U64(0xFFFF)) >= horizon_day:
            if taken == len(out):
                return np.int64(-1)
            out[taken, 0] = w0
            out[taken, 1] = _U64(lines[line * LINE_WORDS + slot]) << _U64(48) | payload
            taken += 1
        rank, slot = rank + 1, slot + 1
    state[READ_RANK], state[READ_LINE], state[READ_SLOT] = rank, line, slot
    return taken


@njit(cache=True, nogil=True, _nrt=False)
def sort_block(entries: Array, facts: Array, block: Any, room: Array, places: Array) -> None:
    """Sort entries (u64[n, 2]) whose homes lie in the lines first..last of a run, in place.

    room u64[n, 2] and places int64[(last - first) * LINE_PARTS + 1] are worked in.  First words
    are uniform, so one pass puts each entry beside the few others of its part of a line.
    """
    parts = facts[LINES] * LINE_PARTS
    first, last = block[0] * LINE_PARTS, block[1] * LINE_PARTS
    n = len(entries)
    places[:] = 0
    for i in range(n):
        places[home_line(entries[i, 0], parts) - first + 1] += 1
    for part in range(1, last - first + 1):
        places[part] += places[part - 1]
    for i in range(n):
        part = home_line(entries[i, 0], parts) - first
        to = places[part]
        places[part] = to + 1
        room[to, 0], room[to, 1] = entries[i, 0], entries[i, 1]
    for i in range(n):
        w0, w1 = room[i, 0], room[i, 1]
        j = i
        while j > 0 and entries[j - 1, 0] > w0:
            entries[j, 0], entries[j, 1] = entries[j - 1, 0], entries[j - 1, 1]
            j -= 1
        entries[j, 0], entries[j, 1] = w0, w1


@njit(cache=True, nogil=True, _nrt=False)
def make_blocks(source: Any, facts: Array, span: Any, work: Any, out: Any, state: Array) -> Any:
    """Make the lines first..last of a run, block by block: (entries left over, bytes of entries).

    source (handle of older runs, their facts int64[r, 8], states int64[r, 3], first day that has
    not expired, entries of memory as `split_blocks` leaves them, their ends); facts of the new
    run; span (first, last, lines of a block, entries left over from the lines before);
    work (u64[n, 2] that begins with those left over, u64[m, 2] and what `sort_block` works in);
    out as of `fill_lines`, behind the run's last line with room for SPILL_MAX more.
    Returns (-1, 0) when a block has more than m entries.

    In one call, because a thread that comes back from one waits for the interpreter.
    """
    handle, run_facts, states, horizon_day, memory, ends = source
    first, last, step, left = span
    entries, room, places = work
    lines, starts, out_entries = out
    size = np.int64(0)
    for begin in range(first, last, step):
        end = min(begin + step, last)
        key = end_of_block(end, facts[LINES])
        limit, count = left + len(room), np.int64(left)
        for r in range(len(run_facts)):
            run = (
                column_at(handle, ARRAYS * r, np.uint16),
                column_at(handle, ARRAYS * r + 1, np.uint32),
                column_at(handle, ARRAYS * r + 2, np.uint8),
            )
            free = entries[count:limit]
            taken = take_entries(run, run_facts[r], states[r], key, horizon_day, free)
            if taken < 0:
                return np.int64(-1), size
            count += taken
        if len(ends):
            block = begin // step
            start = ends[block - 1] if block else np.int64(0)
            if ends[block] - start > len(room):
                return np.int64(-1), size
            for i in range(start, ends[block]):
                entries[count, 0], entries[count, 1] = memory[i, 0], memory[i, 1]
                count += 1
        part_count = (end - begin) * LINE_PARTS
        sort_block(entries[left:count], facts, (begin, end), room, places[: part_count + 1])
        stop = end + SPILL_MAX if end == facts[LINES] else end
        piece = (
            lines[begin - first : stop - first],
            starts[begin - first : stop - first],
            out_entries[size:],
        )
        taken, written = fill_lines(entries[:count], facts, (begin, stop), piece, state)
        left = count - taken
        for i in range(left):
            entries[i, 0], entries[i, 1] = entries[taken + i, 0], entries[taken + i, 1]
        size += written
    return np.int64(left), size


@njit(cache=True, nogil=True, _nrt=False)
def split_blocks(entries: Array, facts: Array, lines: int, out: Array, ends: Array) -> None:
    """Copy entries (u64[n, 2]) so that those whose homes lie in one block of lines lie together.

    out u64[n, 2]; ends int64[blocks]: behind the entries of each block of so many lines.
    """
    ends[:] = 0
    for i in range(len(entries)):
        ends[home_line(entries[i, 0], facts[LINES]) // lines] += 1
    total = np.int64(0)
    for b in range(len(ends)):
        ends[b], total = total, total + ends[b]
    for i in range(len(entries)):
        b = home_line(entries[i, 0], facts[LINES]) // lines
        to = ends[b]
        ends[b] = to + 1
        out[to, 0], out[to, 1] = entries[i, 0], entries[i, 1]


@njit(cache=True, nogil=True, _nrt=False)
def days_of(entries: Array) -> Any:
    """Return the first and the last day of some entries (u64[n, 2]; n > 0)."""
    first = newest = np.int64(entries[0, 1] & _U64(0xFFFF))
    for i in range(len(entries)):
        day = np.int64(entries[i, 1] & _U64(0xFFFF))
        first, newest = min(first, day), max(newest, day)
    return first, newest
