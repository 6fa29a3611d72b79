"""What is bundled comes out as it went in, over a real socket and passed on by a second actor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from meterd.actors.frames import sockets
from meterd.actors.frames.bundle import bundle, unbundle
from meterd.actors.frames.sockets import VIEW_SIZE

SIZES = (0, 1, VIEW_SIZE - 1, VIEW_SIZE, 3 * VIEW_SIZE)
PARTS = [(b"rid %d" % size, b"header", bytes([size % 251]) * size) for size in SIZES]


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    with zmq.Context() as context, context.socket(zmq.PULL) as inbox:
        inbox.bind("inproc://inbox")
        with context.socket(zmq.PUSH) as outbox:
            outbox.connect("inproc://inbox")
            yield outbox, inbox


def test_requests_cross_and_are_passed_on_unchanged(pair):
    outbox, inbox = pair
    sockets.send_packed(outbox, [b"requests", *bundle([part for one in PARTS for part in one])])
    for _ in range(2):
        kind, *frames = sockets.receive_packed(inbox)
        found = list(unbundle(frames))
        assert kind == b"requests" and [tuple(map(bytes, one)) for one in found] == PARTS
        assert not sockets.waits(inbox)
        sockets.send_packed(outbox, [kind, *bundle([part for one in found for part in one])])
    assert sockets.waits(inbox)


def test_a_part_of_a_received_frame_is_sent_as_that_part(pair):
    outbox, inbox = pair
    sockets.send(outbox, [bytes(range(256)) * (VIEW_SIZE // 128)])
    (view,) = sockets.receive(inbox)
    assert type(view) is memoryview and view.readonly
    sockets.send(outbox, [view[3:VIEW_SIZE], view])
    part, whole = sockets.receive(inbox)
    assert bytes(part) == bytes(view[3:VIEW_SIZE]) and whole == view


@pytest.mark.parametrize("size", [0, 1, VIEW_SIZE // 8 - 1, VIEW_SIZE // 8, VIEW_SIZE])
def test_frames_of_any_kind_cross_as_bytes(pair, size):
    outbox, inbox = pair
    words = np.arange(size, dtype=np.uint64)
    frames = [b"kind", words, words.data, bytearray(words.tobytes()), words.tobytes(), words[::1]]
    sockets.send_packed(outbox, frames)
    kind, *found = sockets.receive_packed(inbox)
    assert kind == b"kind" and {bytes(one) for one in found} == {words.tobytes()}
    assert all(type(one) is bytes or one.readonly for one in found)
    assert not sockets.waits(inbox)


def test_nothing_to_take_is_said_by_an_exception(pair):
    for receive in (sockets.receive, sockets.receive_packed):
        with pytest.raises(zmq.Again):
            receive(pair[1])
