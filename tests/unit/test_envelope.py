"""Headers: what a valid one says, and that everything else is an error that can be answered."""

import msgpack
import pytest

from meterd.protocol import limits
from meterd.protocol.envelope import (
    AnswerHeader,
    RequestHeader,
    decode_answer,
    decode_answer_header,
    decode_request,
    decode_request_header,
    encode_answer,
    encode_request,
)
from meterd.protocol.errors import LocalProtocolError, RemoteProtocolError


def header(**changed):
    fields = {"v": 1, "id": 7, "kind": "usage", "deadline": 100} | changed
    return msgpack.packb({key: value for key, value in fields.items() if value != "absent"})


def error_of(frame):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_request_header(frame)
    return caught.value


@pytest.mark.parametrize(
    "sent",
    [
        RequestHeader(0, "hello", 0),
        RequestHeader(limits.REQUEST_ID_MAX, "k" * limits.KIND_SIZE_MAX, limits.DEADLINE_MS_MAX),
        RequestHeader(1, "ingest", 5, map_version=2**63 - 1, lz4_size=2**40),
    ],
)
def test_request_headers_come_back(sent):
    frames = encode_request(sent, b"body")
    assert decode_request(frames) == (sent, b"body")
    assert len(frames[0]) <= limits.HEADER_SIZE_MAX


def test_a_header_without_a_deadline_has_the_default():
    frame = header(deadline="absent")
    assert decode_request_header(frame).deadline_ms == limits.DEADLINE_MS_DEFAULT


def test_keys_of_later_versions_are_ignored():
    assert (
        decode_request_header(header(trace=b"1234", more={"a": [1], "b": "t" * 100})).kind
        == "usage"
    )


@pytest.mark.parametrize("version", [2, 0, None, "1", True, 1.0, "absent"])
def test_another_version_is_refused_by_name_and_keeps_the_id(version):
    error = error_of(header(v=version))
    assert (error.code, error.request_id) == ("unsupported_version", 7)


@pytest.mark.parametrize("request_id", [-1, "7", None, True, 1.5, "absent"])
def test_without_an_id_nobody_can_be_answered_by_id(request_id):
    error = error_of(header(id=request_id))
    assert (error.code, error.request_id) == ("malformed", None)


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": 5},
        {"kind": "k" * 33},
        {"kind": "absent"},
        {"deadline": -1},
        {"deadline": limits.DEADLINE_MS_MAX + 1},
        {"deadline": "1"},
        {"map": -1},
        {"map": 2**63},
        {"lz4": "1"},
        {"lz4": True},
    ],
)
def test_a_wrong_key_is_malformed_and_keeps_the_id(changed):
    error = error_of(header(**changed))
    assert (error.code, error.request_id) == ("malformed", 7)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x80" * 2, b"\x93\x01\x02\x03", b"\x81\x01\x02", b"\xa1\xff", header()[:-1]],
)
def test_what_is_no_map_of_text_keys_is_malformed(frame):
    assert error_of(frame).code == "malformed"


def test_sizes_are_checked_before_anything_is_decoded():
    assert error_of(b"\xc1" * 513).code == "too_large"
    with pytest.raises(RemoteProtocolError) as caught:
        decode_request([header(), bytes(limits.BODY_SIZE_MAX + 1)])
    assert (caught.value.code, caught.value.request_id) == ("too_large", 7)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_message_has_two_frames(count):
    for decode in (decode_request, decode_answer):
        with pytest.raises(RemoteProtocolError, match="frames"):
            decode([header()] * count)


@pytest.mark.parametrize(
    "wrong",
    [
        RequestHeader(-1, "usage"),
        RequestHeader(2**64, "usage"),
        RequestHeader(1, "k" * 33),
        RequestHeader(1, "usage", deadline_ms=-1),
        RequestHeader(1, "\ud800"),
        RequestHeader(1, object()),
    ],
)
def test_what_a_node_would_refuse_is_not_sent(wrong):
    with pytest.raises(LocalProtocolError):
        encode_request(wrong, b"")


def test_a_body_over_the_limit_is_not_sent():
    with pytest.raises(LocalProtocolError, match="limit"):
        encode_request(RequestHeader(1, "ingest"), bytes(limits.BODY_SIZE_MAX + 1))


@pytest.mark.parametrize("request_id", [0, 7, 2**32, 2**64 - 1, None])
@pytest.mark.parametrize("status", ["ok", "error"])
def test_answer_headers_come_back(request_id, status):
    sent = AnswerHeader(request_id, "usage", status, 3)
    assert decode_answer(encode_answer(sent, b"body")) == (sent, b"body")


@pytest.mark.parametrize(
    "changed",
    [
        {"id": -1},
        {"id": "7"},
        {"v": 2},
        {"kind": 1},
        {"status": "fine"},
        {"status": []},
        {"map": -1},
    ],
)
def test_a_wrong_answer_is_a_protocol_error(changed):
    fields = {"v": 1, "id": 7, "kind": "usage", "status": "ok", "map": 0} | changed
    with pytest.raises(RemoteProtocolError):
        decode_answer_header(msgpack.packb(fields))


def test_an_answer_over_the_limit_is_refused():
    ok = encode_answer(AnswerHeader(7, "usage", "ok", 3), b"")[0]
    with pytest.raises(RemoteProtocolError, match="limit"):
        decode_answer([ok, bytes(limits.ANSWER_SIZE_MAX + 1)])
