"""Ingest bodies of generated events: both forms say the same, and nothing is lost on the way.

`expected_row` is the model: what the protocol document says an event becomes, one event at a time.
Events are partly wrong on purpose, so reasons are compared as well as values.
"""

from decimal import Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meterd.protocol.columns import ColumnInput, decode_events, encode_columns
from meterd.protocol.errors import REASONS
from tests.support.wire import compress_body, encode_plain, rows_of

I64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=20)
CODES = st.sampled_from(["a", "b.c", "seats", "x" * 63])
BAD_CODES = st.sampled_from(["", "A", "x" * 64, "ü"])
KEYS = st.sampled_from(["region", "plan", "ü", "k" * 63, "a"])
VALUES = st.one_of(st.text(max_size=10), st.just("v" * 255))
BAD_VALUES = st.just("v" * 256)
DECIMALS = st.builds(lambda value, exponent: Decimal(value).scaleb(-exponent), I64, st.just(6))

EVENTS = st.fixed_dictionaries(
    {
        "account": TEXT,
        "metric": CODES | BAD_CODES,
        "timestamp": I64,
        "id": TEXT,
        "value": I64 | st.sampled_from(["1.50", "x", "", "-0.000000000000000001"]),
        "operation": st.sampled_from(["none", "add", "remove"]),
        "properties": st.dictionaries(KEYS, VALUES | BAD_VALUES, max_size=4),
    }
)


def expected_row(event):
    reason = ""
    metric = event["metric"].encode()
    value = {"1.50": (15, 1), "-0.000000000000000001": (-1, 18)}.get(
        event["value"], (event["value"], 0)
    )
    properties = event["properties"]
    if "v" * 256 in properties.values():
        reason = "bad_properties"
    if event["value"] in ("x", ""):
        reason, value = "bad_value", None
    if metric not in (b"a", b"b.c", b"seats", b"x" * 63):
        reason, metric = "bad_metric", b""
    return {
        "account": event["account"].encode(),
        "metric": metric,
        "value": value,
        "timestamp": event["timestamp"],
        "id": event["id"].encode(),
        "operation": ["none", "add", "remove"].index(event["operation"]),
        "properties": {key.encode(): text.encode() for key, text in properties.items()},
        "reason": reason,
    }


def comparable(row):
    """Leave out what the protocol does not promise of a row with a fault in that field."""
    row = dict(row)
    if isinstance(row["reason"], int):
        row["reason"] = REASONS[row["reason"]]
    if row["reason"]:
        del row["value"], row["properties"]
        row["reason"] = "some"
    return row


def as_columns(events):
    keys = {key for event in events for key in event["properties"]}
    return encode_columns(
        ColumnInput(
            timestamp=[event["timestamp"] for event in events],
            account=[event["account"] for event in events],
            metric=[event["metric"] for event in events],
            id=[event["id"] for event in events],
            value=[event["value"] for event in events],
            operation=[event["operation"] for event in events],
            properties={key: [event["properties"].get(key) for event in events] for key in keys},
        )
    )


@given(st.lists(EVENTS, min_size=1, max_size=8))
def test_both_forms_become_the_events_that_were_sent(events):
    expected = [comparable(expected_row(event)) for event in events]
    plain = rows_of(decode_events(encode_plain(events), None))
    columnar = rows_of(decode_events(as_columns(events), None))
    assert list(map(comparable, plain)) == expected
    assert list(map(comparable, columnar)) == expected


@given(st.lists(EVENTS, min_size=1, max_size=8))
def test_compression_changes_nothing(events):
    body = as_columns(events)
    compressed = decode_events(compress_body(body), len(body))
    assert rows_of(compressed) == rows_of(decode_events(body, None))


@given(st.lists(st.tuples(I64, I64), min_size=1, max_size=50), st.integers(0, 18))
def test_integer_arrays_cross_unchanged(rows, exponent):
    timestamp, value = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    ids = np.arange(len(rows) * 16, dtype=np.uint64).astype(np.uint8).reshape(-1, 16)
    columns = decode_events(
        encode_columns(ColumnInput(timestamp, "a", "m", ids, value, exponent)), None
    )
    assert np.array_equal(columns.timestamp, timestamp)
    assert np.array_equal(columns.value, value)
    assert np.array_equal(columns.uuid, ids)
    assert set(columns.exponent.tolist()) == {exponent}


@given(st.lists(DECIMALS, min_size=1, max_size=10))
def test_decimals_cross_exactly_or_are_refused(values):
    n = len(values)
    columns = ColumnInput(range(n), "a", "m", list(map(str, range(n))), values)
    for row, value in zip(
        rows_of(decode_events(encode_columns(columns), None)), values, strict=True
    ):
        assert row["reason"] == 0
        number, exponent = row["value"]
        assert Decimal(number).scaleb(-exponent) == value


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9), min_size=1)
)
def test_numpy_texts_and_lists_of_texts_are_the_same_bytes(texts):
    n = len(texts)
    as_list = encode_columns(ColumnInput(range(n), texts, "m", texts))
    array = np.array(texts)
    assert encode_columns(ColumnInput(range(n), array, "m", array)) == as_list
    encoded = np.array([text.encode() for text in texts])
    assert encode_columns(ColumnInput(range(n), encoded, "m", encoded)) == as_list
