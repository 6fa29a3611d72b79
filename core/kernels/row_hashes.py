"""Hashes what identifies and fills the rows of a block, all rows side by side.

A SipHash waits for itself in every step, and rows have short messages, so most of its time goes
into the end of each.  Here the words of all rows are laid out first, one array for each word, and a
loop without branches goes over the rows: LLVM makes it vectors of what the processor has.  Words
that a row does not have are absorbed and dropped again.  A message with more words than there are
arrays is hashed alone, by the functions of `kernels/entries.py`, whose hashes these are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from meterd.core.kernels.entries import (
    ACCOUNT,
    CONTENT,
    DIGEST_SHIFT,
    IDENTITY,
    normalise,
)
from meterd.core.kernels.hashing import load_u64, sip_finish, sip_start, sip_word, tail_word

Array = Any
_U64 = np.uint64

# Rows of a block, between asking for a cache line and reading it: few enough for all lines to be
# there still.
BLOCK_ROWS = 256
# Words of an account or an id that have arrays, and of properties.
TEXT_WORDS = 4
# Arrays of words (u64[WORD_ARRAYS * BLOCK_ROWS]); of a text its head, how many words, and these.
ACCOUNT_AT = 0
ID_AT = ACCOUNT_AT + 2 + TEXT_WORDS
CONTENT_AT = ID_AT + 2 + TEXT_WORDS
CONTENT_WORDS = 4
WORD_ARRAYS = CONTENT_AT + CONTENT_WORDS
# Arrays of hashes (u64[HASH_ARRAYS * BLOCK_ROWS]): of account and identity two words, the digest.
HASH_ARRAYS = 5


@njit(cache=True, forceinline=True, _nrt=False)
def has_room(size: int) -> Any:
    """Are there arrays for a text of so many bytes?"""
    return size <= 8 * TEXT_WORDS


@njit(cache=True, forceinline=True, _nrt=False)
def words_of(size: int) -> Any:
    """Return how many words a text of so many bytes has."""
    return (size + 7) >> 3


@njit(cache=True, forceinline=True, _nrt=False)
def is_short(size: int) -> Any:
    """Are properties of so many bytes one word?  (None are: their number, a byte.)"""
    return 0 < size < 8


@njit(cache=True, forceinline=True, _nrt=False)
def _put_text(words: Array, to: int, head: Any, data: Array, start: int, end: int) -> Any:
    """Lay out a text; return whether it has room."""
    words[to] = head
    words[to + BLOCK_ROWS] = _U64(words_of(end - start))
    if not has_room(end - start):
        return False
    to += 2 * BLOCK_ROWS
    while start + 8 <= end:
        words[to] = load_u64(data, start)
        start += 8
        to += BLOCK_ROWS
    if start < end:
        words[to] = tail_word(data, start, end)
    return True


@njit(cache=True, forceinline=True, _nrt=False)
def put_identity(
    words: Array, j: int, data: Array, start: int, account_end: int, id_end: int
) -> Any:
    """Lay out account and id of the heap entry at `start` as row j; return whether both fit."""
    account = _U64(ACCOUNT) | _U64(account_end - start - 2) << _U64(8)
    name = _U64(IDENTITY) | _U64(data[start + 1]) << _U64(8)
    place = ACCOUNT_AT * BLOCK_ROWS + j
    fits = _put_text(words, place, account, data, start + 2, account_end)
    place = ID_AT * BLOCK_ROWS + j
    return _put_text(words, place, name, data, account_end, id_end) and fits


@njit(cache=True, forceinline=True, _nrt=False)
def put_content(
    words: Array,
    j: int,
    code_hash: Any,
    value: int,
    decimals: int,
    timestamp: int,
    operation: int,
    data: Array,
    start: int,
    end: int,
) -> Any:
    """Lay out what `entries.content_digest` hashes as row j; return whether it has room."""
    value, decimals = normalise(value, decimals)
    kind = _U64(CONTENT) | _U64(operation) << _U64(8) | _U64(decimals) << _U64(16)
    kind |= _U64(end - start) << _U64(32)
    place = CONTENT_AT * BLOCK_ROWS + j
    words[place] = code_hash ^ kind
    words[place + BLOCK_ROWS] = _U64(value)
    words[place + 2 * BLOCK_ROWS] = _U64(timestamp)
    if not is_short(end - start):
        return False
    words[place + 3 * BLOCK_ROWS] = tail_word(data, start, end)
    return True


@njit(cache=True, forceinline=True, _nrt=False)
def _absorb_text(v0: Any, v1: Any, v2: Any, v3: Any, words: Array, at: int, most: int) -> Any:
    """Absorb a text: its head, and as many words as it has, of which there are at most `most`."""
    v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, words[at])
    count = words[at + BLOCK_ROWS]
    for k in range(most):
        w0, w1, w2, w3 = sip_word(v0, v1, v2, v3, words[at + (2 + k) * BLOCK_ROWS])
        there = _U64(k) < count
        v0 = w0 if there else v0
        v1 = w1 if there else v1
        v2 = w2 if there else v2
        v3 = w3 if there else v3
    return v0, v1, v2, v3


@njit(cache=True, forceinline=True, _nrt=False)
def _hash_names(k0: Any, k1: Any, words: Array, n: int, hashes: Array, most: int) -> None:
    for j in range(n):
        v0, v1, v2, v3 = sip_start(k0, k1)
        v0, v1, v2, v3 = _absorb_text(v0, v1, v2, v3, words, ACCOUNT_AT * BLOCK_ROWS + j, most)
        hashes[j], hashes[BLOCK_ROWS + j] = sip_finish(v0, v1, v2, v3)
        v0, v1, v2, v3 = _absorb_text(v0, v1, v2, v3, words, ID_AT * BLOCK_ROWS + j, most)
        hashes[2 * BLOCK_ROWS + j], hashes[3 * BLOCK_ROWS + j] = sip_finish(v0, v1, v2, v3)


@njit(cache=True, _nrt=False)
def hash_identities(k0: Any, k1: Any, words: Array, n: int, hashes: Array, most: int) -> None:
    """Hash accounts and identities of n rows, as `account_hash` and `identity_hash` do.

    most: how many words the longest text among them has.
    """
    # Loops of a fixed length become part of the one over the rows.
    if most <= 2:
        _hash_names(k0, k1, words, n, hashes, 2)
    else:
        _hash_names(k0, k1, words, n, hashes, TEXT_WORDS)


@njit(cache=True, _nrt=False)
def hash_contents(k0: Any, k1: Any, words: Array, n: int, hashes: Array) -> None:
    """Hash the contents of n rows, as `content_digest` does."""
    for j in range(n):
        v0, v1, v2, v3 = sip_start(k0, k1)
        for k in range(CONTENT_WORDS):
            word = words[(CONTENT_AT + k) * BLOCK_ROWS + j]
            v0, v1, v2, v3 = sip_word(v0, v1, v2, v3, word)
        digest, _ = sip_finish(v0, v1, v2, v3)
        hashes[4 * BLOCK_ROWS + j] = (digest >> _U64(32)) << _U64(DIGEST_SHIFT)
