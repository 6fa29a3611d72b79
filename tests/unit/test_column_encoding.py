"""What a client may hand over as columns, and that nothing inexact gets through."""

from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest

from meterd.protocol.columns import ColumnInput, TextColumn, decode_events, encode_columns
from meterd.protocol.errors import LocalProtocolError
from meterd.protocol.event_columns import text_column
from tests.support.wire import rows_of

UUIDS = [UUID(int=1), UUID(int=2), UUID(int=3)]


def columns(**changed):
    given = {"timestamp": [1, 2, 3], "account": "a", "metric": "m", "id": ["1", "2", "3"]}
    return ColumnInput(**(given | changed))


def sent(name, **changed):
    return [row[name] for row in rows_of(decode_events(encode_columns(columns(**changed)), None))]


@pytest.mark.parametrize(
    "accounts",
    [
        ["a", "", "üü"],
        ("a", "", "üü"),
        np.array(["a", "", "üü"]),
        np.array(["a", "", "üü"], dtype=object),
        np.array([b"a", b"", "üü".encode()]),
        text_column([b"a", b"", "üü".encode()]),
    ],
    ids=["list", "tuple", "U", "object", "S", "column"],
)
def test_texts_come_in_any_usual_form(accounts):
    assert sent("account", account=accounts) == [b"a", b"", "üü".encode()]
    assert sent("id", id=accounts) == [b"a", b"", "üü".encode()]


def test_ascii_texts_of_fixed_width_are_laid_out_without_a_loop():
    texts = np.array(["a", "", "ccc", "dd"])[::2]
    assert sent("account", timestamp=[1, 2], id=["1", "2"], account=texts) == [b"a", b"ccc"]


def test_integer_accounts_mean_their_decimal_text():
    assert sent("account", account=7) == [b"7"] * 3
    assert sent("account", account=[7, "x", np.int64(9)]) == [b"7", b"x", b"9"]
    assert sent("account", account=np.array([7, 8, 9])) == [b"7", b"8", b"9"]


@pytest.mark.parametrize(
    "ids",
    [UUIDS, tuple(UUIDS), np.frombuffer(b"".join(u.bytes for u in UUIDS), "u1").reshape(3, 16)],
)
def test_uuids_travel_in_16_bytes(ids):
    assert sent("id", id=ids) == [one.bytes for one in UUIDS]


def test_a_single_id_is_one_row():
    assert sent("id", id="x", timestamp=[1]) == [b"x"]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [("m", [b"m"] * 3), (["m"] * 3, [b"m"] * 3), (np.array(["a", "b", "a"]), [b"a", b"b", b"a"])],
)
def test_metrics_become_a_dictionary(metrics, expected):
    assert sent("metric", metric=metrics) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, [(1, 0)] * 3),
        (5, [(5, 0)] * 3),
        ("1.5", [(15, 1)] * 3),
        (Decimal("1E+3"), [(1000, 0)] * 3),
        ([1, -2, 2**63 - 1], [(1, 0), (-2, 0), (2**63 - 1, 0)]),
        ([1, Decimal("0.50"), "-3"], [(1, 0), (5, 1), (-3, 0)]),
        (np.array([1, 2, 3], np.uint8), [(1, 0), (2, 0), (3, 0)]),
        (np.array([1, 2, 3], ">i4"), [(1, 0), (2, 0), (3, 0)]),
        (np.array([Decimal("0.1"), 2, "3"], dtype=object), [(1, 1), (2, 0), (3, 0)]),
    ],
)
def test_values_stay_exact(values, expected):
    assert sent("value", value=values) == expected


def test_an_exponent_goes_with_integers():
    assert sent("value", value=[1, 2, 3], exponent=2) == [(1, 2), (2, 2), (3, 2)]


def test_a_value_that_fits_no_64_bits_is_the_nodes_to_refuse():
    assert sent("reason", value=[1, 2**63, 3]) == [0, 4, 0]


@pytest.mark.parametrize("operations", [["add", "none", "remove"], np.array([1, 0, 2], "u1")])
def test_operations_are_words_or_numbers(operations):
    assert sent("operation", operation=operations) == [1, 0, 2]
    assert sent("operation", operation="add") == [1, 1, 1]


def test_properties_are_for_all_rows_or_for_each():
    properties = {"b": "x", "a": ["1", None, "1"], "never": [None, None, None]}
    assert sent("properties", properties=properties) == [
        {b"a": b"1", b"b": b"x"},
        {b"b": b"x"},
        {b"a": b"1", b"b": b"x"},
    ]


def test_durability_is_said_in_the_body():
    assert decode_events(encode_columns(columns(), "async"), None).durability == "async"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"timestamp": []}, "0 events"),
        ({"timestamp": range(10_001)}, "10001 events"),
        ({"timestamp": [1, 2]}, "id has 3 rows instead of 2"),
        ({"timestamp": [1.0, 2, 3]}, "timestamp"),
        ({"timestamp": [1, 2, True]}, "timestamp"),
        ({"timestamp": [1, 2, 2**63]}, "timestamp"),
        ({"timestamp": np.array([1.0, 2, 3])}, "timestamp"),
        ({"timestamp": np.array([1, 2, 2**63], np.uint64)}, "timestamp"),
        ({"account": ["a", "b"]}, "account"),
        ({"account": ["a", "b", 1.5]}, "account"),
        ({"account": ["a", "b", None]}, "account"),
        ({"account": ["a", "b", "\ud800"]}, "Unicode"),
        ({"account": TextColumn(np.zeros(3, "<u4"), np.zeros(0, "u1"))}, "account"),
        ({"id": np.zeros((3, 8), "u1")}, "id"),
        ({"id": np.zeros((2, 16), "u1")}, "id"),
        ({"id": UUIDS[:2]}, "id"),
        ({"metric": ["m"]}, "metric"),
        ({"metric": ["m", 5, "m"]}, "metric"),
        ({"metric": "\ud800"}, "encoded"),
        ({"value": [1, 2]}, "value"),
        ({"value": [1, 2, 0.5]}, "float"),
        ({"value": [1, 2, True]}, "bool"),
        ({"value": np.array([0.5, 1, 2])}, "value"),
        ({"value": [1, 2, "3"], "exponent": 1}, "exponent"),
        ({"value": [1, 2, 3], "exponent": 19}, "exponent"),
        ({"value": [1, 2, 3], "exponent": -1}, "exponent"),
        ({"operation": ["add", "none", "delete"]}, "operation"),
        ({"operation": ["add"]}, "operation"),
        ({"properties": {"k": ["v"]}}, "'k'"),
        ({"properties": {"k": ["v", "v", 5]}}, "'k'"),
    ],
)
def test_what_can_be_no_column_is_not_sent(changed, named):
    with pytest.raises(LocalProtocolError, match=named):
        encode_columns(columns(**changed))
