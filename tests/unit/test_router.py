"""The router: what it does when another actor says that it has started."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from meterd.actors.router import WRITTEN_SIZE_MAX, Router
from meterd.core.cluster.members import first
from meterd.core.kernels.stage import ENTRY_SIZE_MAX
from meterd.core.staging import HEAP_SIZE_MAX
from meterd.protocol.body import pack, unpack_answer
from meterd.protocol.envelope import RequestHeader, decode_answer, encode_request
from meterd.protocol.errors import exception_of
from meterd.protocol.limits import EVENTS_MAX, PROPERTIES_MAX
from tests.support.ports import free_ports
from tests.support.recording import recorded
from tests.support.wire import compress_body

PROTOCOL = Path(__file__).resolve().parent.parent.parent / "docs" / "PROTOCOL.md"


@pytest.fixture
def router(tmp_path):
    made = recorded(Router, tmp_path, node={"data_dir": str(tmp_path), "port": free_ports(1)[0]})
    made.replies = []
    made._reply = lambda frames: made.replies.append(frames) or True
    yield made
    made.close()


def restarting(router: Router) -> list[int]:
    """The requests that were answered with `restarting`."""
    found = []
    for _, *answer in router.replies:
        header, body = decode_answer(answer)
        assert exception_of(unpack_answer(body)).code == "restarting"
        found.append(header.id)
    router.replies.clear()
    return sorted(found)


def wait(router: Router, number: int, kind: str) -> None:
    router._waiting[b"%d" % number] = (b"rid", number, kind, 10, 1e18, 0)


def test_it_asks_ingest_and_serves_when_that_does(router):
    assert ("ingest", [b"hello", b"router"]) in router.take(b"hello")
    assert not router._serving
    router.handle([b"hello", b"ingest", b"100"])
    assert router._serving


def test_only_another_process_makes_what_waits_undecided(router):
    router.handle([b"hello", b"ingest", b"100"])
    for number, kind in enumerate(("ingest", "usage", "rejected")):
        wait(router, number, kind)
    router.handle([b"hello", b"ingest", b"100"])  # the answer to our hello, and its own
    assert restarting(router) == []
    router.handle([b"hello", b"ingest", b"101"])
    assert restarting(router) == [0, 1]
    assert list(router._waiting) == [b"2"]


def test_questions_are_asked_again_when_the_query_actor_starts(router):
    router.handle([b"hello", b"ingest", b"100"])
    for number, kind in enumerate(("ingest", "usage")):
        wait(router, number, kind)
    router.handle([b"hello", b"query"])
    assert restarting(router) == [1]


@pytest.mark.parametrize(("actor", "lost"), [("retention_sweeper", [2, 3]), ("metrics", [4])])
def test_who_starts_alone_makes_only_what_he_was_asked_undecided(router, actor, lost):
    router.handle([b"hello", b"ingest", b"100"])
    for number, kind in enumerate(("ingest", "usage", "rejected", "job_list", "metrics")):
        wait(router, number, kind)
    router.handle([b"hello", actor.encode()])
    assert restarting(router) == lost


def test_what_is_undecided_at_its_deadline_is_answered(router):
    """Else who has no timeout of his own would wait for ever."""
    router.handle([b"hello", b"ingest", b"100"])
    now = time.monotonic()
    router._waiting[b"0"] = (b"rid", 7, "ingest", 10, now - 0.1, 0)
    wait(router, 1, "usage")
    router.tick(now)
    ((rid, *answer),) = router.replies
    header, body = decode_answer(answer)
    assert (rid, header.id) == (b"rid", 7)
    assert exception_of(unpack_answer(body)).code == "deadline_exceeded"
    assert list(router._waiting) == [b"1"]


@pytest.mark.parametrize("kind", ["hello", "map"])
@pytest.mark.parametrize(
    ("body", "lz4", "code"),
    [
        (pack({}), None, None),
        (b"\xde\x00\x00", None, None),
        (compress_body(pack({})), 1, None),
        (pack({"x": 1}), None, "bad_request"),
        (pack({}), 1, "malformed"),
        (b"", None, "malformed"),
        (b"\xc1", None, "malformed"),
        (pack([]), None, "malformed"),
        (pack({"x": "y" * 1_000}), None, "bad_request"),
    ],
)
def test_what_it_answers_itself_has_an_empty_body(router, kind, body, lz4, code):
    router._on_client([b"rid", *encode_request(RequestHeader(7, kind, lz4_size=lz4), body)])
    (_, *answer) = router.replies.pop()
    header, answered = decode_answer(answer)
    assert (header.id, header.kind, header.status) == (7, kind, "error" if code else "ok")
    if code:
        assert exception_of(unpack_answer(answered)).code == code


def test_hello_says_every_limit_that_the_document_names(router):
    """Also how much the texts of a request may take when they are written out for each event."""
    router._on_client([b"rid", *encode_request(RequestHeader(7, "hello"), pack({}))])
    (_, *answer) = router.replies.pop()
    limits = unpack_answer(decode_answer(answer)[1])["limits"]
    section = PROTOCOL.read_text().partition("## Limits")[2].partition("## Kinds")[0]
    documented = re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.MULTILINE)
    assert {name: int(limit) for name, limit in documented} == limits


def test_texts_of_the_written_size_fit_into_a_stage():
    """Of a request whose lengths take the most room."""
    lengths = EVENTS_MAX * 2 * (1 + PROPERTIES_MAX) + EVENTS_MAX
    assert WRITTEN_SIZE_MAX + lengths + ENTRY_SIZE_MAX < HEAP_SIZE_MAX


def test_the_map_names_addresses_that_are_known(tmp_path):
    """One that was made alone has none before it has said so."""
    port = free_ports(1)[0]
    node = {"data_dir": str(tmp_path), "port": port, "id": 1, "peers": "2:two:8001,3:three:8001"}
    router = recorded(Router, tmp_path, node=node)
    members = first([(1, "", ""), (2, "", ""), (3, "three:8001", "three:7001")])
    router.handle([b"members", members.to_bytes()])
    assert router._map()["nodes"] == {"1": f"127.0.0.1:{port}", "3": "three:7001"}
    router.close()
