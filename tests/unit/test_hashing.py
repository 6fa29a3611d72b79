"""The hash kernels against plain Python and published values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from meterd.client import partitions
from meterd.core.kernels.entries import account_state, content_digest, identity_hash
from meterd.core.kernels.hashing import CHAIN_KEY_0, CHAIN_KEY_1, partition_of, text_hash, xxh64
from meterd.core.kernels.stage import content_of_bytes
from tests.support.siphash import siphash_words, words_of

words = st.integers(0, 2**64 - 1)


@njit
def call_partition_of(data, start, end):
    return partition_of(data, start, end)


@njit
def call_identity_hash(k0, k1, data, middle):
    v0, v1, v2, v3 = account_state(k0, k1, data, 0, middle)
    return identity_hash(v0, v1, v2, v3, data, middle, len(data), len(data) - middle)


@njit
def call_content_digest(k0, k1, code, numbers, operation, data):
    value, decimals, timestamp = numbers
    end = len(data)
    return content_digest(k0, k1, code, value, decimals, timestamp, operation, data, 0, end)


def array(data: bytes) -> np.ndarray:
    found = np.frombuffer(data, np.uint8)
    found.flags.writeable = False
    return found


@settings(max_examples=300)
@given(st.tuples(words, words), st.binary(max_size=300))
def test_a_text_is_its_length_and_its_words(key, data):
    found = text_hash(np.uint64(key[0]), np.uint64(key[1]), array(data))
    assert tuple(map(int, found)) == siphash_words(key, [len(data), *words_of(data)])


@settings(max_examples=300)
@given(st.tuples(words, words), st.binary(max_size=40), st.binary(max_size=40))
def test_an_identity_is_its_account_and_then_its_id(key, account, identifier):
    found = call_identity_hash(
        np.uint64(key[0]), np.uint64(key[1]), array(account + identifier), len(account)
    )
    message = [1 | len(account) << 8, *words_of(account)]
    message += [2 | len(identifier) << 8, *words_of(identifier)]
    assert tuple(map(int, found)) == siphash_words(key, message)


@settings(max_examples=300)
@given(
    st.tuples(words, words),
    words,
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 9)),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2),
    st.binary(max_size=40),
)
def test_a_digest_is_that_of_the_content_in_one_way_of_saying_it(
    key, code, number, timestamp, operation, properties
):
    value, decimals = number
    found = call_content_digest(
        np.uint64(key[0]),
        np.uint64(key[1]),
        np.uint64(code),
        (value, decimals, timestamp),
        operation,
        array(properties),
    )
    while decimals and value % 10 == 0:
        value, decimals = value // 10, decimals - 1
    kind = 4 | operation << 8 | decimals << 16 | len(properties) << 32
    said = [code ^ kind, value % 2**64, timestamp % 2**64, *words_of(properties)]
    assert int(found) == siphash_words(key, said)[0] >> 32 << 16


@given(st.binary(max_size=100))
def test_the_chain_has_a_public_key(data):
    assert int(CHAIN_KEY_0).to_bytes(8, "little") == b"meterd h"
    assert int(CHAIN_KEY_1).to_bytes(8, "little") == b"ash chai"
    key = (int(CHAIN_KEY_0), int(CHAIN_KEY_1))
    assert tuple(map(int, content_of_bytes(array(data)))) == siphash_words(key, words_of(data))


def test_texts_that_differ_in_zeros_at_the_end_differ():
    hashes = {text_hash(np.uint64(1), np.uint64(2), array(bytes(n))) for n in range(40)}
    assert len(hashes) == 40


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"xxhash", 0x32DD38952C4BC720),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_xxh64_gives_the_published_values(text, digest):
    assert int(xxh64(array(text), 0, len(text))) == digest
    assert partitions.xxh64(text) == digest


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 9))
def test_xxh64_is_what_plain_python_says_wherever_the_bytes_lie(data, before):
    held = array(bytes(before) + data + b"behind")
    assert int(xxh64(held, before, before + len(data))) == partitions.xxh64(data)


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from("ab/é0.ð"), max_size=60), st.integers(0, 9))
def test_the_partition_is_that_of_the_root(account, before):
    raw = account.encode()
    held = array(bytes(before) + raw + b"/behind")
    found = int(call_partition_of(held, before, before + len(raw)))
    assert found == partitions.partition_of(account)
    root = account.partition("/")[0]
    assert found == partitions.partition_of(root) == partitions.xxh64(root.encode()) % 256
