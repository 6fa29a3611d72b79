"""Lines of files: access logs and JSON, understood exactly or refused with a reason."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.commands import line_identity
from meterd.commands.access_log import ACCOUNT_SIZE_MAX, AccessLog, BadLine
from meterd.commands.event_lines import FIELDS, EventLines
from meterd.commands.line_identity import LineIdentity, id_of

LOG_REASONS = {"bad_line", "bad_value", "bad_account", "bad_timestamp"}
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\[]'))
QUOTED = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'))
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(
    lambda time: time.replace(microsecond=0, tzinfo=timezone(timedelta(hours=-5)))
)
LINE = (
    b'198.51.100.7 - alice [31/Jan/2026:12:00:00 +0100] "GET /a/b?token=x HTTP/1.1" 200 512 '
    b'"https://example.org/" "Agent \\"quoted\\" 1.0"'
)


@given(
    WORDS.filter(bool),
    WORDS.filter(lambda w: w not in ("", "-")),
    TIMES,
    WORDS,
    st.integers(100, 599),
    st.integers(0, 10**15),
    st.booleans(),
    QUOTED,
)
def test_what_was_written_in_either_format_is_read(
    address, user, time, path, status, size, combined, agent
):
    user = user[:ACCOUNT_SIZE_MAX]
    moment = f"{time:%d/%b/%Y:%H:%M:%S %z}"
    line = f'{address} - {user} [{moment}] "POST /{path} HTTP/2.0" {status} {size}'
    line += f' "-" "{agent}"' if combined else ""
    request, transfer = AccessLog().events(line.encode())
    timestamp = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) * 10**9
    assert request[:4] == (user, "requests", 1, timestamp)
    assert transfer[:4] == (user, "bytes", size, timestamp)
    assert request[5]["method"] == "POST" and request[5]["status"] == str(status)
    assert request[5]["path"] == ("/" + path).split("?")[0].split("#")[0][:255]


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: LINE[:90] + tail))
def test_any_bytes_are_events_or_a_bad_line(line):
    try:
        events = AccessLog().events(line)
    except BadLine as error:
        assert error.reason in LOG_REASONS
    else:
        assert [event[1] for event in events] == ["requests", "bytes"]


def test_the_query_of_a_path_is_not_kept():
    (request, transfer) = AccessLog().events(LINE)
    assert request[5] == {"method": "GET", "path": "/a/b", "status": "200"}
    assert transfer[2] == 512


def test_without_a_user_the_address_is_the_account_and_a_dash_is_no_bytes():
    line = b'2001:db8::1 - - [31/Jan/2026:12:00:00 +0000] "\\x16\\x03" 400 -'
    (request, transfer) = AccessLog().events(line)
    assert request[0] == "2001:db8::1" and transfer[2] == 0
    assert request[5] == {"method": "-", "status": "400"}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Jan", b"Foo", "bad_timestamp"),
        (b"31/Jan", b"31/Feb", "bad_timestamp"),
        (b"12:00:00", b"12:00:61", "bad_timestamp"),
        (b" 512 ", b" " + b"9" * 30 + b" ", "bad_value"),
        (b"alice", b"a" * 129, "bad_account"),
        (b"alice", b"\xff", "bad_account"),
        (b'"GET', b"GET", "bad_line"),
    ],
)
def test_a_bad_part_is_named(old, new, reason):
    assert old in LINE
    with pytest.raises(BadLine) as caught:
        AccessLog().events(LINE.replace(old, new))
    assert caught.value.reason == reason


def test_a_leap_second_is_the_next_second():
    late = AccessLog().events(LINE.replace(b"12:00:00", b"12:00:60"))[0][3]
    assert late == AccessLog().events(LINE.replace(b"12:00:00", b"12:01:00"))[0][3]


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=30), st.integers(0, 30))
def test_equal_lines_are_different_events_and_a_grown_file_keeps_its_ids(lines, seen):
    whole, part = LineIdentity(), LineIdentity()
    digests = [whole.digest(line) for line in lines]
    assert len(set(digests)) == len(lines)
    assert [part.digest(line) for line in lines[:seen]] == digests[:seen]


@given(st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=30), st.integers(0, 30))
def test_a_file_cut_at_its_front_makes_no_id_that_the_whole_one_had_not(lines, cut):
    whole, tail = LineIdentity(), LineIdentity()
    digests = {whole.digest(line) for line in lines}
    assert {tail.digest(line) for line in lines[cut:]} <= digests


def test_a_source_of_its_own_makes_ids_of_its_own():
    assert LineIdentity("web1").digest(b"x") != LineIdentity("web2").digest(b"x")


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(line_identity, "DISTINCT_LINES", 10)
    identity = LineIdentity()
    first = identity.digest(b"same")
    for number in range(1000):
        identity.digest(str(number).encode())
        assert len(identity._recent) + len(identity._older) <= 20
    assert identity.digest(b"same") == first


@given(st.binary(min_size=16, max_size=16))
def test_a_derived_id_is_a_uuid_of_version_8(half):
    derived = UUID(id_of(half))
    assert derived.version == 8 and derived.variant == "specified in RFC 4122"


def read(**fields):
    return EventLines().event(json.dumps(fields).encode())


def test_a_line_holds_the_fields_of_an_event():
    line = b'{"account":7,"metric":"m","value":0.10,"timestamp":5,"id":"x","properties":{"k":"v"}}'
    event = EventLines().event(line)
    assert event == ("7", "m", Decimal("0.10"), 5, "x", "none", {"k": "v"})
    assert str(event[2]) == "0.10"


def test_what_a_line_leaves_out_is_made_once():
    first, second = read(account="a", metric="m"), read(account="a", metric="m")
    assert first[2] == 1 and first[3] > 10**18
    assert UUID(first[4]).version == 7 and first[4] != second[4]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metric": "m"}, "bad_account"),
        ({"account": "a"}, "bad_metric"),
        ({"account": True, "metric": "m"}, "bad_account"),
        ({"account": "a", "metric": "m", "vaule": 3}, "unknown_field"),
        ({"account": "a", "metric": "m", "value": True}, "bad_value"),
        ({"account": "a", "metric": "m", "value": None}, "bad_value"),
        ({"account": "a", "metric": "m", "timestamp": "soon"}, "bad_timestamp"),
        ({"account": "a", "metric": "m", "timestamp": 2**63}, "bad_timestamp"),
        ({"account": "a", "metric": "m", "id": 7}, "bad_id"),
        ({"account": "a", "metric": "m", "operation": "toggle"}, "bad_operation"),
        ({"account": "a", "metric": "m", "properties": {"k": 1}}, "bad_properties"),
        ({"account": "a", "metric": "m", "properties": [1]}, "bad_properties"),
        ({"account": "\ud800", "metric": "m"}, "bad_account"),
    ],
)
def test_a_wrong_field_is_refused_with_its_reason(fields, reason):
    with pytest.raises(BadLine) as caught:
        read(**fields)
    assert caught.value.reason == reason


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b"{", b"\xff", b'{"value": NaN}', b"[" * 9999])
def test_what_is_no_object_is_bad_json(line):
    with pytest.raises(BadLine) as caught:
        EventLines().event(line)
    assert caught.value.reason == "bad_json"


@pytest.mark.parametrize("value", ["many", "", "1e3", 2**63, "9" * 500])
def test_a_value_that_no_metric_takes_is_for_the_node_to_judge(value):
    """Its event may be known already, and is a conflict then: identity comes before every rule."""
    assert read(account="a", metric="m", value=value)[2] == value


def test_so_are_more_properties_than_a_request_can_hold():
    properties = {f"k{n}": "v" for n in range(257)}
    assert read(account="a", metric="m", properties=properties)[6] == properties


def test_a_derived_id_needs_the_time_in_the_line():
    lines = EventLines(id_from_line=True)
    with pytest.raises(BadLine) as caught:
        lines.event(b'{"account":"a","metric":"m"}')
    assert caught.value.reason == "no_timestamp"
    timed = b'{"account":"a","metric":"m","timestamp":1}'
    assert lines.event(timed)[4] == EventLines(id_from_line=True).event(timed)[4]


SHORT = st.text("ab1-\u00e9\ud800\U0001f600", max_size=3)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | SHORT


@given(
    st.dictionaries(
        st.sampled_from(FIELDS), SCALARS | st.dictionaries(SHORT, SHORT | SCALARS, max_size=2)
    )
)
def test_any_object_is_an_event_or_a_bad_line(fields):
    try:
        event = read(**fields)
    except BadLine as error:
        assert error.reason
    else:
        assert len(event) == 7 and all(isinstance(event[i], str) for i in (0, 1, 4, 5))
