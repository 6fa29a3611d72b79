"""Answers with undecided events, joined, against a row-by-row model."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meterd.client.settling import Settling
from meterd.protocol.errors import REJECTED, STATUSES, STORED, UNKNOWN
from meterd.protocol.result import decode_result, encode_result
from tests.support.wire import result_of

rows = st.integers(1, 8)


answers_of = rows.flatmap(
    lambda n: st.lists(
        st.tuples(st.lists(st.integers(0, 4), min_size=n, max_size=n), st.booleans())
    )
)


@given(answers_of)
def test_of_a_later_answer_what_was_undecided_or_rejected_counts(answers):
    settling, known = Settling(), None
    for answer, late in answers:
        status = np.array(answer, np.uint8)
        body = encode_result(result_of(status, np.zeros(len(status), np.uint8)))
        if late:
            status[status == REJECTED] = UNKNOWN
        if known is None:
            known = status.copy()
        else:
            # Of what the newest attempt does not know nothing is known: it may be stored.
            moves = (known == UNKNOWN) | ((known == REJECTED) & (not late or status != UNKNOWN))
            known = np.where(moves, status, known)
        found = settling.take(body, late)
        if (known == UNKNOWN).any():
            assert found is None
            found = settling.so_far()
        wanted = result_of(known, np.zeros(len(known), np.uint8))
        got = decode_result(found)
        assert got[:-1] == wanted[:-1]
        assert [tuple(item) for item in got.items] == list(wanted.items)
        assert got.unknown == sum(STATUSES[s] == "unknown" for s in known.tolist())
        if not got.unknown:
            break


def test_what_was_rejected_and_then_stored_is_stored():
    settling = Settling()
    no_reasons = np.zeros(2, np.uint8)
    first = result_of(np.array([UNKNOWN, REJECTED], np.uint8), no_reasons)
    assert settling.take(encode_result(first)) is None
    second = encode_result(result_of(np.array([STORED, STORED], np.uint8), no_reasons))
    assert settling.take(second) == second


def test_what_was_rejected_and_is_not_known_now_is_undecided():
    settling = Settling()
    no_reasons = np.zeros(2, np.uint8)
    first = result_of(np.array([UNKNOWN, REJECTED], np.uint8), no_reasons)
    assert settling.take(encode_result(first)) is None
    second = result_of(np.array([STORED, UNKNOWN], np.uint8), no_reasons)
    assert settling.take(encode_result(second)) is None
    third = encode_result(result_of(np.array([STORED, STORED], np.uint8), no_reasons))
    assert settling.take(third) == third


def test_an_ordinary_answer_is_passed_on_as_it_is():
    body = encode_result(result_of(np.zeros(5, np.uint8), np.zeros(5, np.uint8)))
    assert Settling().take(body) is body
    assert Settling().so_far() is None
