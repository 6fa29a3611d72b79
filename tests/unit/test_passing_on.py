"""The router passes a question on once, to a real socket, and gives the answer to who asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import zmq

from meterd.actors.frames import sockets
from meterd.actors.frames.bundle import bundle
from meterd.actors.router import Router
from meterd.core.cluster.members import Members
from meterd.protocol.body import unpack_answer
from meterd.protocol.envelope import (
    AnswerHeader,
    RequestHeader,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from meterd.protocol.errors import exception_of
from meterd.protocol.log_format import GROUP_COUNT
from tests.support.ports import free_ports
from tests.support.recording import recorded
from tests.support.waiting import eventually


@pytest.fixture
def other() -> Iterator[tuple[zmq.Socket[bytes], int]]:
    """The front door of another node."""
    socket = sockets.context().socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    yield socket, port
    socket.close(linger=0)


@pytest.fixture
def router(tmp_path: Any, other: tuple[zmq.Socket[bytes], int]) -> Iterator[Any]:
    node = {"data_dir": str(tmp_path), "port": free_ports(1)[0], "id": 1}
    made = recorded(Router, tmp_path, node=node)
    made._leaders.alone = False
    made.replies = []
    made._reply = lambda frames: made.replies.append(frames) or True
    made._nodes = lambda: {1: "here:1", 2: f"127.0.0.1:{other[1]}"}
    made.handle([b"leaders", (9).to_bytes(8, "little"), bytes([2] * GROUP_COUNT)])
    yield made
    made.close()


def ask(router: Any, number: int = 7, **header: Any) -> None:
    """A question that usage says another node has to answer."""
    ticket = b"ticket%d" % number
    expires = time.monotonic() + 10.0
    router._waiting[ticket] = (b"rid%d" % number, number, "usage", 10, expires, 0)
    raw = encode_request(RequestHeader(number, "usage", **header), msgpack.packb({"account": "a"}))
    router.handle([b"elsewhere", bytes([2]), *bundle([ticket, *raw])])


def taken(socket: zmq.Socket[bytes]) -> list[bytes]:
    assert socket.poll(10_000)
    return socket.recv_multipart()


def answered(router: Any) -> list[Any]:
    def turn() -> bool:
        router.turn(10)
        return bool(router.replies)

    eventually(turn, "there is an answer", 10.0)
    return router.replies.pop()


def code_of(reply: list[bytes]) -> str:
    header, body = decode_answer(reply[1:])
    assert header.status == "error"
    return exception_of(unpack_answer(body)).code


def test_the_answer_of_the_leader_goes_to_who_asked(router: Any, other: Any) -> None:
    for number in (7, 8):
        ask(router, number)
        rid, *frames = taken(other[0])
        header, body = decode_request(frames)
        assert (header.kind, header.hops) == ("usage", 1) and header.deadline_ms <= 10_000
        assert msgpack.unpackb(body) == {"account": "a"}
        answer = encode_answer(AnswerHeader(header.id, "usage", "ok", 12), msgpack.packb({"n": 1}))
        other[0].send_multipart([rid, *answer])
        reply = answered(router)
        found, body = decode_answer(reply[1:])
        assert (reply[0], found.id, found.status) == (b"rid%d" % number, number, "ok")
        assert unpack_answer(body) == {"n": 1}
        other[0].send_multipart([rid, *answer])  # once more: nobody waits for it
    router.turn(50)
    assert not router.replies and not len(router._passing_on)


def test_what_was_passed_on_is_not_passed_on_again(router: Any, other: Any) -> None:
    ask(router, hops=1)
    assert code_of(router.replies.pop()) == "not_leader"
    assert not other[0].poll(50)


def test_nothing_is_expected_of_a_node_that_leads_no_more(router: Any, other: Any) -> None:
    ask(router)
    taken(other[0])
    router.handle([b"leaders", (10).to_bytes(8, "little"), bytes([1] * GROUP_COUNT)])
    assert code_of(router.replies.pop()) == "not_leader"
    assert not len(router._passing_on)


def test_who_is_forgotten_is_not_waited_for(router: Any, other: Any) -> None:
    ask(router)
    taken(other[0])
    router._waiting.clear()
    router._expiry_due = 0.0
    router.tick(time.monotonic())
    assert not len(router._passing_on)


def test_a_node_without_an_address_is_not_reached(router: Any) -> None:
    router._nodes = dict
    ask(router)
    assert code_of(router.replies.pop()) == "not_leader"


def test_the_map_names_leaders_and_has_the_version_of_what_is_known(router: Any) -> None:
    assert router._map()["leaders"] == [2] * 256
    version = router._map()["version"]
    assert version == 9 + router._members.version
    assert isinstance(router._members, Members)


def test_a_question_for_who_has_just_lost_the_lead_is_not_passed_on(
    router: Any, other: tuple[zmq.Socket[bytes], int]
) -> None:
    """Usage and router hear of it in any order; that node may be gone, and would never answer."""
    router.handle([b"leaders", (10).to_bytes(8, "little"), bytes([3] * GROUP_COUNT)])
    ask(router)
    ((rid, *answer),) = router.replies
    header, body = decode_answer(answer)
    assert (rid, header.id) == (b"rid7", 7)
    assert exception_of(unpack_answer(body)).code == "not_leader"
    assert not other[0].poll(0)
