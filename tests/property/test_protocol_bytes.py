"""Whatever bytes arrive, decoding gives a value or one of the errors that a client is answered.

Random bytes seldom get past the first check, so most examples here are valid messages with
something changed: bytes flipped, cut out or repeated, or values of the wrong type put in.
"""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.protocol.body import pack, unpack
from meterd.protocol.envelope import RequestHeader, decode_request
from meterd.protocol.messages import KINDS
from tests.support.wire import MESSAGES
from tests.support.wire_oracle import (
    try_answer,
    try_answer_body,
    try_body,
    try_definition,
    try_request,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.binary(max_size=40)
)
NAMES = st.sampled_from(
    sorted({"n", "offsets", "text", "values", "index", "uuid", "key", "events", "region"})
    + sorted({key for kind in KINDS.values() for key in kind.fields})
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)
REQUESTS = [frames for name, (_, frames) in MESSAGES.items() if name.startswith("request")]
ANSWERS = [frames for name, (_, frames) in MESSAGES.items() if name.startswith("answer")]


@st.composite
def mutated(draw, frames):
    """Return bytes that differ from one of these frames by a few edits."""
    raw = bytearray(draw(st.sampled_from(frames)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        size = draw(st.integers(0, 8))
        edit = draw(st.sampled_from(["flip", "cut", "put", "repeat", "end"]))
        if edit == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif edit == "cut":
            del raw[at : at + size]
        elif edit == "put":
            raw[at : at + size] = draw(st.binary(max_size=8))
        elif edit == "repeat":
            raw[at:at] = raw[at : at + size]
        else:
            del raw[at:]
    return bytes(raw)


@pytest.mark.parametrize("frames", REQUESTS)
def test_golden_requests_are_values(frames):
    assert try_request(frames) is not None


@given(st.binary(max_size=600), st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(header, body):
    try_request([header, body])


@given(mutated([frames[0] for frames in REQUESTS]), st.sampled_from([f[1] for f in REQUESTS]))
def test_any_changed_header_is_a_request_or_an_error(header, body):
    try_request([header, body])


@given(
    mutated([frames[1] for frames in REQUESTS]),
    st.sampled_from(sorted(KINDS)) | st.just("ingest"),
    st.none() | st.integers(0, 2000),
)
def test_any_changed_body_is_a_request_or_an_error(body, kind, lz4_size):
    try_body(RequestHeader(1, kind, lz4_size=lz4_size), body)


@given(VALUES, st.sampled_from(sorted(KINDS)))
def test_any_value_is_a_body_or_an_error(value, kind):
    try_body(RequestHeader(1, kind), msgpack.packb(value))


@given(st.data())
def test_a_body_with_one_field_replaced_is_a_body_or_an_error(data):
    header, body = decode_request(data.draw(st.sampled_from(REQUESTS)))
    if header.lz4_size is None:
        fields = unpack(body)
        if fields:
            fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(VALUES)
        try_body(header, pack(fields))


@given(VALUES)
def test_any_value_is_an_event_or_an_error(value):
    try_body(RequestHeader(1, "ingest"), msgpack.packb({"events": [value, value]}))


@given(VALUES)
def test_any_value_is_a_definition_or_refused(value):
    try_definition(value)


@given(st.binary(max_size=600) | mutated([frames[0] for frames in ANSWERS]), st.data())
def test_any_bytes_are_an_answer_or_an_error(header, data):
    try_answer([header, data.draw(st.sampled_from(ANSWERS))[1]])


@given(st.binary(max_size=200) | mutated([frames[1] for frames in ANSWERS]))
def test_any_bytes_are_the_body_of_an_answer_or_an_error(body):
    try_answer_body(body)


@given(VALUES)
def test_any_value_is_the_body_of_an_answer_or_an_error(value):
    try_answer_body(msgpack.packb(value))
