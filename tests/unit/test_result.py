"""Results of ingest requests: counts that add up, and the events that were not simply stored."""

import numpy as np
import pytest

from meterd.protocol.body import pack, unpack
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.result import IngestResult, decode_result, encode_result
from tests.support.wire import result_of


def result(statuses, reasons):
    return result_of(np.array(statuses, np.uint8), np.array(reasons, np.uint8))


def test_a_request_that_was_stored_is_counts_only():
    stored = result([0, 0], [0, 0])
    assert stored == IngestResult(2, 2)
    assert unpack(encode_result(stored)) == {
        "received": 2,
        "stored": 2,
        "duplicate": 0,
        "conflict": 0,
        "rejected": 0,
        "unknown": 0,
        "accepted": 0,
        "items": [],
    }


def test_all_others_are_named_with_row_status_and_reason():
    mixed = result([0, 1, 2, 3, 4], [0, 0, 0, 4, 0])
    assert mixed == IngestResult(
        5,
        1,
        1,
        1,
        1,
        1,
        items=[
            (1, "duplicate", ""),
            (2, "conflict", ""),
            (3, "rejected", "bad_value"),
            (4, "unknown", ""),
        ],
    )
    assert decode_result(encode_result(mixed)) == mixed


def test_async_results_count_what_was_accepted():
    accepted = IngestResult(2, accepted=1, rejected=1, items=[(0, "rejected", "bad_id")])
    assert decode_result(encode_result(accepted)) == accepted


@pytest.mark.parametrize(
    "changed",
    [
        {"received": 3},
        {"duplicate": 2},
        {"stored": -1, "received": 0},
        {"stored": True},
        {"stored": "1"},
        {"stored": 10_000, "received": 10_001},
        {"items": []},
        {"items": None},
        {"items": [[2, "duplicate", ""]]},
        {"items": [[-1, "duplicate", ""]]},
        {"items": [[1, "stored", ""]]},
        {"items": [[1, [], ""]]},
        {"items": [[1, "duplicate", None]]},
        {"items": [[1, "duplicate"]]},
        {"items": [5]},
    ],
)
def test_a_result_that_does_not_add_up_is_a_protocol_error(changed):
    body = IngestResult(2, 1, 1, items=[(1, "duplicate", "")])._asdict()
    decode_result(pack(body))
    with pytest.raises(RemoteProtocolError):
        decode_result(pack(body | changed))


@pytest.mark.parametrize("body", [b"", b"\x90", b"\x80", b"\xff\xff"])
def test_what_is_no_result_is_a_protocol_error(body):
    with pytest.raises(RemoteProtocolError):
        decode_result(body)
