"""The bytes in tests/data/frames/ are the protocol: they decode as described, for ever.

A failing test here means that clients already written would break, not that files want rewriting.
"""

import re
from pathlib import Path

import pytest

from meterd.protocol.body import unpack_answer
from meterd.protocol.columns import decode_events
from meterd.protocol.envelope import decode_answer, decode_request
from meterd.protocol.errors import CODES, Overloaded, exception_of
from meterd.protocol.limits import wire_limits
from meterd.protocol.messages import KINDS, check_request
from meterd.protocol.result import IngestResult, decode_result
from tests.support.wire import FRAMES, MESSAGES, MOMENT, UUIDS, read_frames, rows_of

PROTOCOL = (Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md").read_text()


def test_every_message_has_its_file_and_every_file_its_message():
    assert {path.stem for path in FRAMES.iterdir()} == set(MESSAGES)


@pytest.mark.parametrize("name", sorted(set(MESSAGES) - {"request_ingest_lz4"}))
def test_encoders_still_write_the_same_bytes(name):
    assert read_frames(name) == (MESSAGES[name][0], MESSAGES[name][1])


def test_every_kind_has_a_golden_request():
    kinds = {
        decode_request(read_frames(name)[1])[0].kind
        for name in MESSAGES
        if name.startswith("request")
    }
    assert kinds == set(KINDS)


@pytest.mark.parametrize(
    "name", [name for name in sorted(MESSAGES) if re.match("request_(?!ingest)", name)]
)
def test_golden_questions_are_valid(name):
    header, body = decode_request(read_frames(name)[1])
    assert (header.id, header.deadline_ms) == (7, 5_000)
    check_request(header.kind, body, header.lz4_size)


def _events(name):
    header, body = decode_request(read_frames(name)[1])
    return rows_of(decode_events(body, header.lz4_size))


def _row(**changed):
    row = {
        "account": b"acme",
        "metric": b"api_calls",
        "value": (1, 0),
        "timestamp": MOMENT,
        "id": b"evt-1",
        "operation": 0,
        "properties": {},
        "reason": 0,
    }
    return row | changed


def test_plain_events_decode():
    assert _events("request_ingest_plain") == [
        _row(value=(125, 2), properties={b"region": b"eu"}),
        _row(metric=b"storage", id=b"evt-2", value=(3, 0)),
    ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("request_ingest_columns", [(1, 0), (1, 0)]),
        ("request_ingest_exponent", [(150, 2), (2, 2)]),
    ],
)
def test_columns_decode(name, values):
    assert _events(name) == [
        _row(id=UUIDS[0].tobytes(), value=values[0]),
        _row(
            account=b"acme/team",
            id=UUIDS[1].tobytes(),
            timestamp=MOMENT + 1,
            value=values[1],
        ),
    ]


@pytest.mark.parametrize("name", ["request_ingest_full", "request_ingest_lz4"])
def test_every_kind_of_column_decodes_compressed_or_not(name):
    assert _events(name) == [
        _row(metric=b"seats", value=(-5, 1), operation=1, properties={b"region": b"eu"}),
        _row(id=b"evt-2", value=(12_000_001, 6), timestamp=MOMENT + 1),
    ]


def test_answers_decode():
    header, body = decode_answer(read_frames("answer_ingest_items")[1])
    assert header == (7, "ingest", "ok", 3)
    assert decode_result(body) == IngestResult(
        3, 1, duplicate=1, rejected=1, items=[(1, "duplicate", ""), (2, "rejected", "bad_value")]
    )
    header, body = decode_answer(read_frames("answer_error_later")[1])
    error = exception_of(unpack_answer(body))
    assert header.status == "error"
    assert type(error) is Overloaded
    assert error.retry_after_ms == 250
    assert decode_answer(read_frames("answer_error_no_id")[1])[0].id is None


def test_the_document_shows_every_golden_message():
    for name in MESSAGES:
        _, (header, body) = read_frames(name)
        shown = re.search(rf"`{name}`[^\n]*\n+```\n(.*?)```", PROTOCOL, re.DOTALL)
        assert shown is not None, name
        assert "".join(shown.group(1).split()) == f"header{header.hex()}body{body.hex()}"


def test_the_document_names_every_code_kind_and_limit():
    for code, row in CODES.items():
        assert re.search(rf"^\| `{code}` \| {row.retry} \|", PROTOCOL, re.MULTILINE), code
    for name, kind in KINDS.items():
        assert re.search(rf"^\| `{name}` \|", PROTOCOL, re.MULTILINE), name
        for key in kind.fields:
            assert f"`{key}`" in PROTOCOL, key
    for name, limit in wire_limits().items():
        assert re.search(rf"^\| `{name}` \| {limit} \|", PROTOCOL, re.MULTILINE), name
