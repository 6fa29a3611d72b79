"""Bodies as msgpack: what is refused whatever it would have meant, and text that is not UTF-8."""

import tracemalloc

import msgpack
import pytest

from meterd.protocol.body import (
    open_body,
    pack,
    text_bytes,
    unknown_name,
    unpack,
    unpack_answer,
)
from meterd.protocol.errors import LocalProtocolError, RemoteProtocolError
from tests.support.wire import compress_body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        b"\x92\x01",
        b"\x81\x01\x02",
        b"\xd4\x01\x00",
        msgpack.packb(msgpack.Timestamp(5)),
        b"\xc7\x00\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 5_000 + b"\xc0",
    ],
    ids=lambda body: body[:8].hex() or "empty",
)
def test_what_is_not_one_value_within_the_limits_is_malformed(body):
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(body)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdc\x27\x11" + b"\x01" * 10_001,
        msgpack.packb({"events": [{}] * 10_001}),
    ],
    ids=lambda body: body[:8].hex(),
)
def test_too_long_a_list_is_too_large_as_its_sender_can_split_it(body):
    with pytest.raises(RemoteProtocolError, match="exceeds") as caught:
        unpack(body)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("ending", [b"", b"\xc1", b"\xd4\x01\x00", b"\x81\x01\x01"])
def test_broken_bodies_leave_nothing_in_memory(ending):
    """Until version 1.2.1 msgpack kept what it had decoded of a broken body, for ever.

    Anybody who can connect could then fill the memory of a node.
    """
    body = b"\x92\x92" + msgpack.packb(bytes(1_000_000)) + ending
    tracemalloc.start()
    try:
        for _ in range(20):
            with pytest.raises(RemoteProtocolError):
                unpack(body)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


def test_text_that_is_not_utf8_keeps_its_bytes():
    for raw in (b"\xff", b"a\xc3", b"\xed\xa0\x80"):
        value = unpack(bytes([0xA0 + len(raw)]) + raw)
        assert text_bytes(value) == raw
        assert pack(value)[1:] == raw


def test_answers_may_have_longer_lists_than_requests():
    body = pack(list(range(20_000)))
    assert len(unpack_answer(body)) == 20_000
    with pytest.raises(RemoteProtocolError):
        unpack(body)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x81\x90\x01", b"\xd4\x01\x00", b"\x81\x80\x01"])
def test_a_broken_answer_is_malformed(body):
    with pytest.raises(RemoteProtocolError):
        unpack_answer(body)


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800", {1: {2, 3}}])
def test_what_msgpack_cannot_say_is_not_sent(value):
    with pytest.raises(LocalProtocolError):
        pack(value)


def test_compression_is_undone():
    body = pack({"n": bytes(1_000)})
    assert open_body(compress_body(body), len(body)) == body
    assert open_body(body, None) is body


def test_the_nearest_known_name_is_offered_and_no_far_one():
    known = ("account", "metric")
    assert unknown_name(["acount"], known, "usage: key") == (
        "usage: key 'acount' is unknown; did you mean 'account'?"
    )
    assert unknown_name([b"x", "account"], known, "key") == "key \"b'x'\" is unknown"
    assert len(unknown_name(["k" * 10_000], known, "key")) < 200
