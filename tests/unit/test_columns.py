"""Ingest bodies in the columnar form: what breaks the body, and what costs one row only.

Each test starts from a valid body of three rows and changes one thing, so the fault is the cause.
"""

import msgpack
import numpy as np
import pytest

from meterd.protocol import limits
from meterd.protocol.body import pack
from meterd.protocol.columns import decode_events
from meterd.protocol.errors import REASONS, RemoteProtocolError
from tests.support.wire import check_columns, compress_body, rows_of

ABSENT = "absent"


def texts(*rows):
    encoded = [row if isinstance(row, bytes) else row.encode() for row in rows]
    offsets = np.cumsum([0] + [len(row) for row in encoded]).astype("<u4")
    return {"offsets": offsets.tobytes(), "text": b"".join(encoded)}


def u16(*numbers):
    return np.array(numbers, "<u2").tobytes()


def u32(*numbers):
    return np.array(numbers, "<u4").tobytes()


def i64(*numbers):
    return np.array(numbers, "<i8").tobytes()


def fields(**changed):
    body = {
        "n": 3,
        "timestamp": i64(1, 2, 3),
        "value": i64(-5, 0, 2**63 - 1),
        "metric": {"values": ["a", "b"], "index": u16(0, 1, 0)},
        "account": texts("x", "", "zzz"),
        "id": texts("1", "2", "3"),
    } | changed
    return {key: value for key, value in body.items() if value is not ABSENT}


def decode(**changed):
    return decode_events(pack(fields(**changed)), None)


def reasons(**changed):
    return [REASONS[row["reason"]] for row in rows_of(decode(**changed))]


def error_of(**changed):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(**changed)
    return caught.value


def test_a_valid_body_is_taken_as_it_is():
    rows = rows_of(decode())
    assert [row["account"] for row in rows] == [b"x", b"", b"zzz"]
    assert [row["metric"] for row in rows] == [b"a", b"b", b"a"]
    assert [row["value"] for row in rows] == [(-5, 0), (0, 0), (2**63 - 1, 0)]
    assert [row["id"] for row in rows] == [b"1", b"2", b"3"]
    assert [row["reason"] for row in rows] == [0, 0, 0]


def test_arrays_are_views_of_the_body_and_not_copies():
    columns = decode()
    for array in (columns.timestamp, columns.value, columns.account.text, columns.account.offsets):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_left_out_columns_have_their_defaults():
    columns = decode(value=ABSENT)
    assert columns.value.tolist() == [1, 1, 1]
    assert columns.operation.tolist() == [0, 0, 0]
    assert columns.properties == []
    assert columns.durability == "sync"
    with pytest.raises(ValueError, match="read-only"):
        columns.value[0] = 2


def test_durability_is_sync_or_async():
    assert decode(durability="async").durability == "async"
    assert error_of(durability="fast").code == "bad_request"


@pytest.mark.parametrize("exponent", range(19))
def test_an_exponent_is_for_all_rows(exponent):
    assert decode(exponent=exponent).exponent.tolist() == [exponent] * 3


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": True}, "n"),
        ({"n": 3.0}, "n"),
        ({"n": ABSENT}, "n"),
        ({"n": 2}, "timestamp"),
        ({"timestamp": ABSENT}, "timestamp"),
        ({"timestamp": i64(1, 2)}, "timestamp"),
        ({"timestamp": [1, 2, 3]}, "timestamp"),
        ({"value": i64(1)}, "value"),
        ({"value": 1}, "value"),
        ({"exponent": 19}, "exponent"),
        ({"exponent": -1}, "exponent"),
        ({"exponent": True}, "exponent"),
        ({"exponent": 1, "value": ABSENT}, "exponent"),
        ({"exponent": 1, "value": texts("1", "2", "3")}, "exponent"),
        ({"value": texts("1", "2")}, "value"),
        ({"metric": ABSENT}, "metric"),
        ({"metric": "a"}, "metric"),
        ({"metric": {"values": []}}, "metric"),
        ({"metric": {"values": ["a", "b"]}}, "index"),
        ({"metric": {"values": ["a", 5], "index": u16(0, 1, 0)}}, "metric"),
        ({"metric": {"values": ["a", "b"], "index": u16(0, 1, 2)}}, "index"),
        ({"metric": {"values": ["a"], "index": u16(0, 0)}}, "index"),
        ({"metric": {"values": ["a"], "extra": 1}}, "metric"),
        ({"account": ABSENT}, "account"),
        ({"account": "acme"}, "account"),
        ({"account": {"offsets": u32(0, 1, 2, 3)}}, "account"),
        ({"account": {"offsets": u32(0, 1, 2, 3), "text": "abc"}}, "account"),
        ({"account": {"offsets": u32(0, 1, 2), "text": b"ab"}}, "account"),
        ({"account": {"offsets": u32(0, 2, 1, 3), "text": b"abc"}}, "fall"),
        ({"account": {"offsets": u32(1, 1, 2, 3), "text": b"abc"}}, "0 to the end"),
        ({"account": {"offsets": u32(0, 1, 2, 4), "text": b"abc"}}, "0 to the end"),
        ({"account": {"offsets": u32(0, 1, 2, 2), "text": b"abc"}}, "0 to the end"),
        ({"account": {"offsets": u32(0, 2**32 - 1, 2, 3), "text": b"abc"}}, "fall"),
        ({"account": {"values": ["a"], "index": u32(0, 0, 1)}}, "index"),
        ({"account": {"values": ["a"], "index": u16(0, 0, 0)}}, "index"),
        ({"account": {"values": ["a"]}}, "account"),
        ({"account": {"values": [b"a"], "index": u32(0, 0, 0)}}, "account"),
        ({"id": ABSENT}, "id"),
        ({"id": ["1", "2", "3"]}, "id"),
        ({"id": {"uuid": bytes(47)}}, "uuid"),
        ({"id": {"uuid": bytes(48), "text": b""}}, "id"),
        ({"operation": b"\0\0"}, "operation"),
        ({"operation": [0, 0, 0]}, "operation"),
        ({"properties": {}}, "properties"),
        ({"properties": [{"key": "k", "values": ["v"]}]}, "property"),
        ({"properties": [{"key": 5, "values": ["v"], "index": u32(0, 0, 0)}]}, "property"),
        ({"properties": [{"key": "k", "values": ["v"], "index": u32(0, 0, 1)}]}, "index"),
        ({"properties": [{"key": "k", "values": [], "index": u32(0, 0, 0)}]}, "values"),
        ({"properties": [{"key": "k", "values": ["v"], "index": u32(0, 0, 0)}] * 2}, "twice"),
    ],
)
def test_a_broken_structure_fails_the_body(changed, named):
    error = error_of(**changed)
    assert error.code == "malformed"
    assert named in error.message


@pytest.mark.parametrize("ends", [(0, 4, 3), (0, 2**32 - 1, 3)])
def test_offsets_must_not_fall_in_two_rows_either(ends):
    two = {"n": 2, "timestamp": i64(1, 2), "value": ABSENT, "metric": {"values": ["a"]}}
    assert decode(**two, account=texts("a", "b"), id=texts("1", "2")).count == 2
    error = error_of(**two, account={"offsets": u32(*ends), "text": b"abc"}, id=texts("1", "2"))
    assert "fall" in error.message


def test_an_unknown_key_is_named_with_the_nearest():
    error = error_of(acount=1)
    assert error.code == "bad_request"
    assert "'acount'" in error.message and "'account'" in error.message
    assert error_of(**{"\udcff": 1}).code == "bad_request"


def test_limits_of_a_body():
    assert error_of(n=limits.EVENTS_MAX + 1).code == "too_large"
    column = {"values": ["v"], "index": u32(0, 0, 0)}
    keys = [{"key": f"k{number}"} | column for number in range(257)]
    assert error_of(properties=keys).code == "too_large"


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", b"\x93\x01\x02\x03", b"\x80\x80", b"\xa1n", b"\x80"]
)
def test_what_is_no_map_is_malformed(body):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_events(body, None)
    assert caught.value.code == "malformed"


def test_decimal_text_is_exact_and_a_bad_one_costs_its_row():
    columns = decode(value=texts("-0.10", "1e3", "9223372036854775807"))
    assert [row["value"] for row in rows_of(columns)] == [(-1, 1), (0, 0), (2**63 - 1, 0)]
    assert columns.reason.tolist() == [0, REASONS.index("bad_value"), 0]


def test_a_metric_code_that_cannot_be_one_costs_its_rows():
    codes = {"values": ["A", "b", "c" * 64], "index": u16(0, 1, 2)}
    assert reasons(metric=codes) == ["bad_metric", "", "bad_metric"]
    assert decode(metric=codes).metric_codes == [b"", b"b", b""]


def test_a_dictionary_of_accounts_is_expanded():
    accounts = {"values": ["unused", "ü", "a" * 129], "index": u32(1, 2, 1)}
    rows = rows_of(decode(account=accounts))
    assert [row["account"] for row in rows] == ["ü".encode(), b"", "ü".encode()]
    assert reasons(account=accounts) == ["", "bad_account", ""]


def test_operations_above_two_cost_their_rows():
    assert reasons(operation=b"\x02\x03\x01") == ["", "bad_operation", ""]
    assert decode(operation=b"\x02\xff\x01").operation.tolist() == [2, 0, 1]


def test_the_first_fault_of_a_row_is_its_reason():
    assert reasons(operation=b"\x09\x09\x00", value=texts("x", "1", "1")) == [
        "bad_value",
        "bad_operation",
        "",
    ]


def test_what_may_be_left_out_may_be_nil():
    nil = {"operation": None, "properties": None, "exponent": None, "durability": None}
    metric = {"values": ["a"], "index": None}
    columns = decode(value=None, metric=metric, **nil)
    assert rows_of(columns) == rows_of(decode(value=ABSENT, metric={"values": ["a"]}))
    assert columns.durability == "sync"


def test_properties_are_sorted_by_key_and_absent_where_they_are():
    absent = 0xFFFFFFFF
    rows = rows_of(
        decode(
            properties=[
                {"key": "z", "values": ["1", "2"], "index": u32(1, absent, 0)},
                {"key": "a", "values": [""], "index": u32(absent, absent, 0)},
            ]
        )
    )
    assert [row["properties"] for row in rows] == [{b"z": b"2"}, {}, {b"a": b"", b"z": b"1"}]


@pytest.mark.parametrize(
    ("key", "value"),
    [("", "v"), ("k" * 64, "v"), ("\udcff", "v"), ("k", "v" * 256), ("k", "\udcff")],
)
def test_a_bad_key_or_value_costs_the_rows_that_have_it(key, value):
    body = fields(
        properties=[{"key": key, "values": ["good", value], "index": u32(1, 0xFFFFFFFF, 1)}]
    )
    columns = decode_events(msgpack.packb(body, unicode_errors="surrogateescape"), None)
    check_columns(columns)
    assert [REASONS[reason] for reason in columns.reason] == [
        "bad_properties",
        "",
        "bad_properties",
    ]


def test_more_than_32_properties_cost_their_row():
    absent = 0xFFFFFFFF
    keys = [
        {"key": f"k{number}", "values": ["v"], "index": u32(0, 0 if number < 32 else absent, 0)}
        for number in range(33)
    ]
    assert reasons(properties=keys) == ["bad_properties", "", "bad_properties"]


def test_faulty_rows_keep_their_identity():
    """A refused event may be a duplicate of one that was stored: its id must still be read."""
    row = rows_of(decode(value=texts("x", "x", "x")))[0]
    assert (row["account"], row["id"]) == (b"x", b"1")


def test_lz4_bodies_decode_and_lies_about_their_size_do_not():
    body = msgpack.packb(fields())
    packed = compress_body(body)
    assert rows_of(decode_events(packed, len(body))) == rows_of(decode())
    for size in (len(body) - 1, len(body) + 1, 0):
        with pytest.raises(RemoteProtocolError) as caught:
            decode_events(packed, size)
        assert caught.value.code == "malformed"


def test_a_claimed_size_over_the_limit_is_refused_before_decompression():
    for body, size, code, named in (
        (b"\xff" * 100, limits.DECOMPRESSED_SIZE_MAX + 1, "too_large", "limit"),
        (b"\xff" * 100, 25_501, "malformed", "holds that much"),
        (b"\xff" * 100, 25_500, "malformed", "not an LZ4 block"),
        (b"", 0, "malformed", "not an LZ4 block"),
        (bytes(limits.BODY_SIZE_MAX + 1), None, "too_large", "limit"),
    ):
        with pytest.raises(RemoteProtocolError, match=named) as caught:
            decode_events(body, size)
        assert caught.value.code == code


def test_a_body_that_grows_in_memory_is_stopped_while_it_is_decoded():
    """Ten thousand lists of a hundred empty maps: 1 MB on the wire, 70 MB as objects."""
    body = b"\xdc\x27\x10" + (b"\xdc\x00\x70" + b"\x80" * 0x70) * 10_000
    with pytest.raises(RemoteProtocolError) as caught:
        decode_events(body, None)
    assert caught.value.code == "too_large"


def test_the_largest_plain_body_is_within_the_count_of_elements():
    properties = {f"k{number:02}": "v" for number in range(limits.PROPERTIES_MAX)}
    event = {
        "account": "a",
        "metric": "m",
        "timestamp": 1,
        "id": "i",
        "value": 1,
        "operation": "none",
        "properties": properties,
    }
    body = msgpack.packb({"events": [event] * limits.EVENTS_MAX})
    columns = decode_events(compress_body(body), len(body))
    assert not columns.reason.any()
    assert len(columns.properties) == 32
