"""Ingest bodies in the plain form: a wrong field costs its event, a wrong list the request."""

import msgpack
import pytest

from meterd.protocol.columns import decode_events
from meterd.protocol.errors import REASONS, RemoteProtocolError
from tests.support.wire import MOMENT, plain_event, rows_of


def decode(*events, **fields):
    body = msgpack.packb({"events": list(events)} | fields, unicode_errors="surrogateescape")
    return decode_events(body, None)


def row_of(**changed):
    """Decode an event with these fields between two good ones, which must not notice."""
    before, row, after = rows_of(
        decode(plain_event(id="before"), plain_event(**changed), plain_event(id="after"))
    )
    assert before["reason"] == after["reason"] == 0
    assert (before["id"], after["id"]) == (b"before", b"after")
    return row


def reason_of(**changed):
    return REASONS[row_of(**changed)["reason"]]


def test_only_four_fields_are_needed():
    assert row_of() == {
        "account": b"acme",
        "metric": b"api_calls",
        "value": (1, 0),
        "timestamp": MOMENT,
        "id": b"evt-1",
        "operation": 0,
        "properties": {},
        "reason": 0,
    }


def test_optional_fields_may_be_nil():
    event = plain_event() | {"value": None, "operation": None, "properties": None}
    assert rows_of(decode(event)) == [row_of()]


def test_an_integer_account_is_its_decimal_text():
    assert row_of(account=42)["account"] == b"42"
    assert row_of(account=-1)["account"] == b"-1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, (0, 0)),
        (-(2**63), (-(2**63), 0)),
        ("2.50", (25, 1)),
        ("+7", (7, 0)),
        ("-0.000000000000000001", (-1, 18)),
    ],
)
def test_values_are_exact(value, expected):
    assert row_of(value=value)["value"] == expected


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"account": 1.5}, "bad_account"),
        ({"account": True}, "bad_account"),
        ({"account": b"acme"}, "bad_account"),
        ({"account": None}, "bad_account"),
        ({"metric": 5}, "bad_metric"),
        ({"metric": "Upper"}, "bad_metric"),
        ({"metric": ""}, "bad_metric"),
        ({"metric": "m" * 64}, "bad_metric"),
        ({"metric": "\udcff"}, "bad_metric"),
        ({"metric": None}, "bad_metric"),
        ({"value": 1.5}, "bad_value"),
        ({"value": True}, "bad_value"),
        ({"value": "1e3"}, "bad_value"),
        ({"value": " 1"}, "bad_value"),
        ({"value": ""}, "bad_value"),
        ({"value": "0.0000000000000000001"}, "bad_value"),
        ({"value": 2**63}, "bad_value"),
        ({"timestamp": None}, "bad_timestamp"),
        ({"timestamp": "2026"}, "bad_timestamp"),
        ({"timestamp": True}, "bad_timestamp"),
        ({"timestamp": 2**63}, "bad_timestamp"),
        ({"id": None}, "bad_id"),
        ({"id": 5}, "bad_id"),
        ({"id": b"0123456789abcdef"}, "bad_id"),
        ({"operation": "ADD"}, "bad_operation"),
        ({"operation": 1}, "bad_operation"),
        ({"operation": []}, "bad_operation"),
        ({"properties": []}, "bad_properties"),
        ({"properties": {"": "v"}}, "bad_properties"),
        ({"properties": {"k": 5}}, "bad_properties"),
        ({"properties": {"k": None}}, "bad_properties"),
        ({"properties": {"k": "v" * 256}}, "bad_properties"),
        ({"properties": {"k" * 64: "v"}}, "bad_properties"),
        ({"properties": {b"k": "v"}}, "bad_properties"),
        ({"properties": {"k": "\udcff"}}, "bad_properties"),
        ({"properties": {f"k{number}": "" for number in range(33)}}, "bad_properties"),
    ],
)
def test_a_wrong_field_costs_its_event_only(changed, reason):
    assert reason_of(**changed) == reason


def test_a_bad_metric_never_hides_behind_a_known_one():
    metrics = [5, "a", 6, "b", "B", "a"]
    rows = rows_of(decode(*[plain_event(metric=metric) for metric in metrics]))
    assert [row["metric"] for row in rows] == [b"", b"a", b"", b"b", b"", b"a"]
    assert [REASONS[row["reason"]] for row in rows] == [
        "bad_metric",
        "",
        "bad_metric",
        "",
        "bad_metric",
        "",
    ]


def test_the_first_of_several_faults_is_the_reason_and_the_identity_is_kept():
    row = row_of(value=1.5, operation="x", timestamp="x")
    assert REASONS[row["reason"]] == "bad_value"
    assert (row["account"], row["id"]) == (b"acme", b"evt-1")


def test_properties_of_a_refused_row_make_no_columns():
    columns = decode(plain_event(properties={"good": "v", "bad": 5}))
    assert columns.properties == []


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({"events": []}, "malformed", "at least one"),
        ({"events": {}}, "malformed", "list"),
        ({"events": [5]}, "malformed", "event 0"),
        ({"events": [plain_event(), []]}, "malformed", "event 1"),
        ({"events": [plain_event(), {"acount": 1}]}, "bad_request", "'account'"),
        ({"events": [plain_event()], "n": 1}, "bad_request", "'n'"),
        ({"events": [plain_event()], "durability": 1}, "bad_request", "durability"),
    ],
)
def test_a_wrong_list_fails_the_request(body, code, named):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_events(msgpack.packb(body), None)
    assert caught.value.code == code
    assert named in caught.value.message


def test_more_than_ten_thousand_events_are_refused():
    body = b"\x81" + msgpack.packb("events") + b"\xdc\x27\x11" + b"\x80" * 10_001
    with pytest.raises(RemoteProtocolError):
        decode_events(body, None)


def test_too_many_property_keys_in_one_request_are_too_large():
    events = [plain_event(properties={f"k{number}": "v"}) for number in range(257)]
    decode(*events[:256])
    with pytest.raises(RemoteProtocolError) as caught:
        decode(*events)
    assert caught.value.code == "too_large"


def test_a_list_of_events_says_how_durable_they_must_be():
    assert decode(plain_event()).durability == "sync"
    assert decode(plain_event(), durability="async").durability == "async"
