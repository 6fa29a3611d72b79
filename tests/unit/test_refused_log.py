"""The log of refused events: its bytes, its bounds, its pages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.housekeeping import refused_log
from meterd.actors.housekeeping.refused_log import NAMES, RefusedLog
from meterd.protocol.errors import BadRequest
from meterd.protocol.refused_format import (
    HEADER_SIZE,
    Walk,
    decode_entry,
    encode_entry,
    encode_header,
)


def event(number: int) -> dict[str, object]:
    return {"account": f"a{number}", "reason": "bad_value", "timestamp": number}


def listed(log: RefusedLog, limit: int = 3) -> list[int]:
    """All entries, page by page, newest first."""
    found, after = [], None
    while True:
        page = log.page(limit, after)
        found += [entry["timestamp"] for entry in page["events"]]
        after = page["next"]
        if after is None:
            return found
        assert len(page["events"]) == limit


@pytest.fixture
def log(tmp_path):
    made = RefusedLog(str(tmp_path))
    yield made
    made.close()


def test_entries_are_listed_newest_first(log):
    log.write([event(1), event(2)], 0)
    log.write([event(3)], 0)
    assert listed(log) == [3, 2, 1]
    assert log.page(10, "r.2")["events"] == [event(1)]


def test_an_empty_log_has_an_empty_page(log):
    assert log.page(10, None) == {"events": [], "next": None}


def test_entries_are_there_after_a_restart_and_a_torn_end_is_cut(tmp_path, log):
    log.write([event(number) for number in range(5)], 0)
    log.close()
    path = tmp_path / NAMES[0]
    path.write_bytes(path.read_bytes()[:-3])
    again = RefusedLog(str(tmp_path))
    assert listed(again) == [3, 2, 1, 0]
    again.write([event(9)], 0)
    assert listed(again) == [9, 3, 2, 1, 0]
    again.close()


def test_two_files_bound_the_size(tmp_path, log, monkeypatch):
    size = len(encode_entry(1, event(10)))
    monkeypatch.setattr(refused_log, "FILE_SIZE_MAX", HEADER_SIZE + 4 * size)
    for number in range(10, 21):
        log.write([event(number)], 0)
    assert listed(log) == [20, 19, 18, 17, 16, 15, 14]
    log.close()
    again = RefusedLog(str(tmp_path))
    assert listed(again) == [20, 19, 18, 17, 16, 15, 14]
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_one_burst_larger_than_a_file_keeps_its_end(log, monkeypatch):
    size = len(encode_entry(1, event(10)))
    monkeypatch.setattr(refused_log, "FILE_SIZE_MAX", HEADER_SIZE + 4 * size)
    log.write([event(number) for number in range(10, 30)], 0)
    assert listed(log) == [29, 28, 27, 26, 25, 24, 23, 22]


def test_the_rate_is_bounded_each_second(log, monkeypatch):
    monkeypatch.setattr(refused_log, "RATE_MAX", 3)
    assert log.write([event(1), event(2)], 7) == 0
    assert log.write([event(3), event(4), event(5)], 7) == 2
    assert log.write([event(6)], 8) == 0
    assert listed(log) == [6, 3, 2, 1]


@pytest.mark.parametrize("cursor", ["", "x", "e.1", "r.", "r.-1", "r.1.2"])
def test_a_cursor_of_something_else_is_refused(log, cursor):
    with pytest.raises(BadRequest, match="after"):
        log.page(1, cursor)


def test_a_cursor_from_the_future_lists_from_the_newest(log):
    log.write([event(1)], 0)
    assert log.page(1, "r.99999999999999999999999")["events"] == [event(1)]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_entries_or_an_end(raw):
    whole = encode_header() + encode_entry(1, event(1)) + raw
    walk = Walk(whole)
    assert (HEADER_SIZE, 1) in list(walk)
    assert list(Walk(raw)) == []
    assert decode_entry(raw, 0) is None
