"""Looks at sectors of log blocks and at slice tables: what reading and writing the log repeat.

A sector of a preallocated file that was never written is all zero; counting such sectors is how a
torn block is told from a damaged one (docs/STORAGE.md, "The end of the log, and damage").
"""

from __future__ import annotations

from typing import Any

from numba import njit

Array = Any

SECTOR_WORDS = 64

# What `check_slices` and `follow_slices` find.
GOOD, BAD_ORDER, BAD_COUNT, BAD_HEAP, BAD_INDEX, BAD_TERM = range(6)
# What `take_slices` says besides: nothing was moved.
FLAGGED = 6


@njit(cache=True)
def count_zero_sectors(words: Array) -> int:
    """Return how many 64-word sectors of a u64 array hold nothing but zeros."""
    count = 0
    for start in range(0, len(words), SECTOR_WORDS):
        at = start
        end = start + SECTOR_WORDS
        while at < end and words[at] == 0:
            at += 1
        if at == end:
            count += 1
    return count


@njit(cache=True)
def first_nonzero(words: Array) -> int:
    """Return the position of the first word of a u64 array that is not zero, or its length."""
    size = len(words)
    start = 0
    while start + SECTOR_WORDS <= size:
        together = words[start]
        for at in range(start + 1, start + SECTOR_WORDS):
            together |= words[at]
        if together != 0:
            break
        start += SECTOR_WORDS
    while start < size and words[start] == 0:
        start += 1
    return start


@njit(cache=True)
def check_slices(slices: Array, group_count: int, row_count: int, heap_size: int) -> int:
    """Check a slice table against the counts in its record's header."""
    last = -1
    rows = heap = 0
    for i in range(len(slices)):
        partition = int(slices[i].partition)
        if partition <= last or partition >= group_count or slices[i].flags > 2:
            return BAD_ORDER
        last = partition
        rows += int(slices[i].count)
        heap += int(slices[i].heap_size)
    if rows != row_count:
        return BAD_COUNT
    if heap != heap_size:
        return BAD_HEAP
    return GOOD


@njit(cache=True)
def _move_on(slices: Array, i: int, term: Array, index: Array, digest: Array) -> int:
    """Move the group of one slice on by it, if it follows."""
    group = int(slices[i].partition)
    if slices[i].index != index[group] + 1:
        return BAD_INDEX
    if slices[i].term < term[group]:
        return BAD_TERM
    term[group] = slices[i].term
    index[group] = slices[i].index
    digest[group, 0] = slices[i].digest[0]
    digest[group, 1] = slices[i].digest[1]
    return GOOD


@njit(cache=True)
def follow_slices(slices: Array, term: Array, index: Array, digest: Array) -> int:
    """Move each group's last (term, index, digest) on by its slice; stop at the first gap.

    Slices with a flag move nothing.
    """
    for i in range(len(slices)):
        if slices[i].flags != 0:
            continue
        fault = _move_on(slices, i, term, index, digest)
        if fault:
            return fault
    return GOOD


@njit(cache=True)
def take_slices(slices: Array, plain: bool, groups: Any, timed: bool, leader_time: int) -> int:
    """Move each group on by its slice, whatever its flags, or (`plain`) if none has one.

    groups  last term, index, digest, and time of each group; the time of `timed` records counts
    """
    term, index, digest, time = groups
    if plain:
        for i in range(len(slices)):
            if slices[i].flags != 0:
                return FLAGGED
    for i in range(len(slices)):
        if timed:
            time[slices[i].partition] = leader_time
        fault = _move_on(slices, i, term, index, digest)
        if fault:
            return fault
    return GOOD
