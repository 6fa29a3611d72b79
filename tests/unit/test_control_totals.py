"""Counts and sums of rows against plain Python."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.housekeeping.control_totals import ControlTotals, differences
from meterd.core.log.scan import FileScan
from meterd.protocol.limits import I64_MAX, I64_MIN
from tests.support.log_builder import LogBuilder, LoggedEvent, partition

values = st.one_of(st.sampled_from([I64_MIN, I64_MAX, -1, 0, 1]), st.integers(I64_MIN, I64_MAX))
rows = st.lists(st.tuples(st.integers(0, 256), st.integers(0, 65_535), values), max_size=60)


def model(given_rows):
    totals = {}
    for number, metric, value in given_rows:
        count, total = totals.get((number, metric), (0, 0))
        totals[number, metric] = (count + 1, total + value)
    return totals


def counted(given_rows):
    totals = ControlTotals()
    if given_rows:
        columns = zip(*given_rows, strict=True)
        totals.add(*(np.array(c, t) for c, t in zip(columns, ("u2", "u2", "i8"), strict=True)))
    return totals


@given(rows)
def test_totals_are_exact(given_rows):
    assert counted(given_rows).totals == model(given_rows)


@given(rows, rows)
def test_totals_of_parts_add_up(one, other):
    totals = counted(one)
    totals.merge(counted(other).totals)
    assert totals.totals == model(one + other)
    assert list(differences(totals.totals, model(one + other))) == []


@given(rows, rows)
def test_every_difference_is_named(one, other):
    found, expected = model(one), model(other)
    wrong = {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)}
    assert len(list(differences(found, expected))) == len(wrong)


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.integers(1, 3), values, st.booleans()),
            min_size=1,
            max_size=8,
        ),
        max_size=5,
    )
)
def test_rows_of_records_count_unless_they_were_refused(records):
    builder = LogBuilder()
    expected, refused = {}, []
    for number, record in enumerate(records):
        events = [
            LoggedEvent(account, f"{number}-{n}", metric, value, 1)
            for n, (account, metric, value, _) in enumerate(record)
        ]
        marks = {f"{number}-{n}": mark for n, (*_, mark) in enumerate(record)}
        bits = [False] * len(events)
        for first, placed in enumerate(builder.block([events])):
            bits[first] = marks[placed.event.id]
            if not bits[first]:
                key = (partition(placed.event.account), placed.event.metric)
                count, total = expected.get(key, (0, 0))
                expected[key] = (count + 1, total + placed.event.value)
        refused.append(bits)
    totals = ControlTotals()
    scan = FileScan("log", memoryview(bytes(builder.data)))
    found = [record for block in scan for record in block.records if record.row_count]
    for record, bits in zip(found, refused, strict=True):
        totals.add_record(record, np.array(bits))
    assert totals.totals == expected
