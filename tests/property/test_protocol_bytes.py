"""Whatever bytes arrive, decoding gives a value or one of the errors that a client is answered.

Random bytes seldom get past the first check, so most examples here are valid messages with
something changed: bytes flipped, cut out or repeated, or values of the wrong type put in.
"""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.protocol.body import pack, unpack
from meterd.protocol.columns import decode_events
from meterd.protocol.envelope import (
    decode_answer_header,
    decode_request,
    decode_request_header,
)
from meterd.protocol.errors import (
    CODES,
    MeterdError,
    Rejected,
    RemoteProtocolError,
    error_body,
    exception_of,
)
from meterd.protocol.messages import KINDS, check_request
from meterd.protocol.metric import MetricDefinition
from meterd.protocol.result import decode_result
from tests.support.wire import MESSAGES, check_columns

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


def decode_whole_request(header, body):
    """Do to a message what a node does before it acts on it; only promised errors may leave."""
    try:
        request, body = decode_request([header, body])
    except RemoteProtocolError as error:
        assert error.code in CODES
        assert error.request_id is None or 0 <= error.request_id < 2**64
        answer = exception_of(unpack(pack(error_body(error))))
        assert answer.code == error.code
        return None
    return decode_request_body(request.kind, body, request.lz4_size)


def decode_request_body(kind, body, lz4_size):
    try:
        if kind == "ingest":
            columns = decode_events(body, lz4_size)
            check_columns(columns)
            return columns
        return check_request(kind, body, lz4_size)
    except (RemoteProtocolError, Rejected) as error:
        assert error.code in CODES
        assert error.retry == "never"
        assert exception_of(unpack(pack(error_body(error)))).code == error.code
        if kind == "ingest":
            assert type(error) is RemoteProtocolError
        return None


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
    assert decode_whole_request(*frames) is not None


@given(st.binary(max_size=600), st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(header, body):
    decode_whole_request(header, body)


@given(mutated([frames[0] for frames in REQUESTS]), st.sampled_from([f[1] for f in REQUESTS]))
def test_any_changed_header_is_a_request_or_an_error(header, body):
    decode_whole_request(header, body)


@given(
    mutated([frames[1] for frames in REQUESTS]),
    st.sampled_from(sorted(KINDS)) | st.just("ingest"),
    st.none() | st.integers(0, 2000),
)
def test_any_changed_body_is_a_request_or_an_error(body, kind, lz4_size):
    decode_request_body(kind, body, lz4_size)


@given(VALUES, st.sampled_from(sorted(KINDS)))
def test_any_value_is_a_body_or_an_error(value, kind):
    decode_request_body(kind, msgpack.packb(value), None)


@given(st.data())
def test_a_body_with_one_field_replaced_is_a_body_or_an_error(data):
    header, body = decode_request(data.draw(st.sampled_from(REQUESTS)))
    if header.lz4_size is None:
        fields = unpack(body)
        if fields:
            fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(VALUES)
        decode_request_body(header.kind, pack(fields), None)


@given(VALUES)
def test_any_value_is_an_event_or_an_error(value):
    decode_request_body("ingest", msgpack.packb({"events": [value, value]}), None)


@given(VALUES)
def test_any_value_is_a_definition_or_refused(value):
    try:
        definition = MetricDefinition.from_map(value)
    except Rejected as error:
        assert error.retry == "never"
    else:
        assert MetricDefinition.from_map(definition.to_map()) == definition


@given(st.binary(max_size=600) | mutated([frames[0] for frames in ANSWERS]))
def test_any_bytes_are_an_answer_or_an_error(frame):
    for decode in (decode_answer_header, decode_request_header):
        with suppress(RemoteProtocolError):
            decode(frame)


@given(st.binary(max_size=200) | mutated([frames[1] for frames in ANSWERS]))
def test_any_bytes_are_a_result_or_an_error(body):
    try:
        result = decode_result(body)
    except RemoteProtocolError:
        pass
    else:
        assert result.received == sum(result[1:-1])


@given(VALUES)
def test_any_value_is_an_error_answer(value):
    assert isinstance(exception_of(value), MeterdError)
