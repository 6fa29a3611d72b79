"""What the state machine owes to single rules: identity, content, batches, capacity, order."""

from __future__ import annotations

from random import Random
from typing import Any
from uuid import UUID

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.kernels.tables import Capacity
from meterd.core.questions.memory_cells import collect
from meterd.core.questions.question import Question
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from meterd.protocol.errors import InvariantViolation
from tests.support.identities import flush
from tests.support.periods import DAY
from tests.support.pipeline import CAPACITY, KEY, Pipeline

NOW = 20_000 * DAY + 1
EVENT: dict[str, Any] = {
    "account": "a",
    "id": "1",
    "metric": "m",
    "timestamp": NOW,
    "value": "1.5",
    "properties": {"a": "1", "b": "2"},
}


def new_pipeline(capacity: Capacity = CAPACITY) -> Pipeline:
    pipeline = Pipeline(KEY, capacity)
    pipeline.put(NOW, {"code": "m", "aggregation": "sum", "decimals": 2, "period": "day"})
    return pipeline


def statuses(pipeline: Pipeline, *events: dict[str, Any], now: int = NOW) -> list[str]:
    (result,) = pipeline.events(now, events)
    found = ["stored"] * len(events)
    for row, status, reason in result.items:
        found[row] = reason or status
    return found


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "duplicate"),
        ({"value": "1.50"}, "duplicate"),
        ({"value": "+01.5"}, "duplicate"),
        ({"properties": {"b": "2", "a": "1"}}, "duplicate"),
        ({"operation": "none"}, "duplicate"),
        ({"account": "b"}, "stored"),
        ({"account": "a/"}, "stored"),
        ({"id": "2"}, "stored"),
        ({"value": "1.51"}, "conflict"),
        ({"value": "-1.5"}, "conflict"),
        ({"value": "15"}, "conflict"),
        ({"value": "0.001"}, "conflict"),
        ({"value": "many"}, "conflict"),
        ({"timestamp": NOW + 1}, "conflict"),
        ({"timestamp": NOW - 1000 * DAY}, "conflict"),
        ({"timestamp": NOW + 9 * DAY}, "conflict"),
        ({"metric": "other"}, "conflict"),
        ({"operation": "add"}, "conflict"),
        ({"operation": "steal"}, "conflict"),
        ({"properties": {"a": "1"}}, "conflict"),
        ({"properties": {"a": "2", "b": "1"}}, "conflict"),
        ({"properties": {"a": "12", "b": ""}}, "conflict"),
        ({"properties": {"ab": "12"}}, "conflict"),
    ],
)
@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_what_a_resend_is(change, status, deleted, together):
    """In the same record or a later one, and when the metric takes no events any more."""
    pipeline = new_pipeline()
    again = EVENT | change
    if together and not deleted:
        assert statuses(pipeline, EVENT, again) == ["stored", status]
        return
    assert statuses(pipeline, EVENT) == ["stored"]
    if deleted:
        pipeline.command(NOW, op="metric_delete", code="m")
    expected = "unknown_metric" if deleted and status == "stored" else status
    assert statuses(pipeline, again) == [expected]
    assert statuses(pipeline, EVENT) == ["duplicate"]


def test_an_id_as_text_and_as_bytes_is_the_same_when_it_is_canonical():
    uuid = UUID(int=0x6FA459EAEE8A3CA4894EDB77E160355E)
    columns = {
        "n": 1,
        "timestamp": NOW.to_bytes(8, "little"),
        "metric": {"values": ["m"]},
        "account": {"values": ["a"], "index": bytes(4)},
        "id": {"uuid": uuid.bytes},
    }
    plain = {"account": "a", "metric": "m", "timestamp": NOW}
    pipeline = new_pipeline()
    (result,) = pipeline.ingest(NOW, msgpack.packb(columns))
    assert result.stored == 1
    assert statuses(pipeline, plain | {"id": str(uuid)}) == ["duplicate"]
    assert statuses(pipeline, plain | {"id": str(uuid).upper()}) == ["stored"]
    assert statuses(pipeline, plain | {"id": uuid.hex}) == ["stored"]
    assert statuses(pipeline, plain | {"id": uuid.bytes[:4].hex()}) == ["stored"]


def test_a_metric_that_comes_back_knows_its_events():
    pipeline = new_pipeline()
    statuses(pipeline, EVENT)
    pipeline.command(NOW, op="metric_delete", code="m")
    pipeline.put(NOW, {"code": "m", "aggregation": "sum", "decimals": 6, "period": "day"})
    assert statuses(pipeline, EVENT, EVENT | {"id": "2"}) == ["duplicate", "stored"]


@pytest.mark.parametrize("flushed", [False, True])
def test_an_identity_lives_as_long_as_the_day_of_its_event(flushed):
    pipeline = new_pipeline()
    midnight = 20_000 * DAY
    old = EVENT | {"timestamp": midnight - 1}
    at_midnight = EVENT | {"id": "2", "timestamp": midnight}
    assert statuses(pipeline, old, at_midnight) == ["stored", "stored"]
    pipeline.command(NOW, op="expire", horizon=midnight + DAY - 1, future_ns=DAY)
    assert pipeline.state.horizon == midnight
    if flushed:
        flush(pipeline.state)
    assert statuses(pipeline, old, at_midnight) == ["too_old", "duplicate"]
    assert statuses(pipeline, EVENT) == ["stored"]
    pipeline.command(NOW, op="expire", horizon=0, future_ns=DAY)
    assert pipeline.state.horizon == midnight


def test_the_retention_that_was_set_moves_the_horizon_and_never_back():
    pipeline = new_pipeline()
    assert pipeline.state.retention_days is None
    old = EVENT | {"timestamp": NOW - 30 * DAY}
    assert statuses(pipeline, old) == ["stored"]
    midnight = 20_000 * DAY
    result = pipeline.command(NOW, op="retention_set", days=7, horizon=NOW - 7 * DAY)
    assert result == {"days": 7, "horizon": midnight - 7 * DAY}
    assert statuses(pipeline, old) == ["too_old"]
    result = pipeline.command(NOW, op="retention_set", days=90, horizon=NOW - 90 * DAY)
    assert result == {"days": 90, "horizon": midnight - 7 * DAY}
    assert statuses(pipeline, old) == ["too_old"]
    fresh = StateMachine(pipeline.key, pipeline.capacity)
    saved = pipeline.state.save()
    fresh.restore(saved.state, saved.arrays())
    assert (fresh.retention_days, fresh.horizon) == (90, midnight - 7 * DAY)


def test_the_edges_of_time():
    pipeline = new_pipeline()
    pipeline.command(NOW, op="expire", horizon=NOW - DAY, future_ns=DAY)
    horizon, now = pipeline.state.horizon, pipeline.state.leader_time + 1
    times = [horizon - 1, horizon, now + DAY, now + DAY + 1]
    events = [EVENT | {"id": str(n), "timestamp": at} for n, at in enumerate(times)]
    found = statuses(pipeline, *events, now=now)
    assert found == ["too_old", "stored", "stored", "too_far_ahead"]
    assert pipeline.state.newest_event == now + DAY


def test_the_newest_event_is_one_that_was_stored():
    pipeline = new_pipeline()
    ahead = EVENT | {"id": "2", "timestamp": NOW + 9 * DAY}
    assert statuses(pipeline, EVENT, ahead) == ["stored", "too_far_ahead"]
    assert pipeline.state.newest_event == NOW


def test_a_member_of_an_earlier_period_is_not_left_out_of_an_invoice_run():
    """Its series has no cell in this period, so memory must not answer for all accounts."""
    pipeline = new_pipeline()
    pipeline.put(NOW, {"code": "seats", "aggregation": "unique", "period": "day"})
    seat = {"account": "a", "id": "1", "metric": "seats", "timestamp": NOW, "operation": "add"}
    statuses(pipeline, seat)
    later = NOW + 3 * DAY
    seen = {"account": "b", "id": "1", "metric": "seats", "timestamp": later}
    statuses(pipeline, seen, now=later)
    start = later // DAY * DAY
    asked = Question("accounts", metric="seats", start=start, end=start + DAY, whole_period=True)
    assert collect(pipeline.state, asked) is None
    other = Question("usage", "b", False, "seats", start, start + DAY, whole_period=True)
    assert collect(pipeline.state, other) is not None


small_events = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(-2, 2), st.integers(0, 2)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(
    small_events, st.lists(st.integers(1, 7), max_size=8), st.lists(st.integers(1, 3), max_size=8)
)
def test_however_events_are_split_the_outcome_is_the_same(drawn, sizes, requests_per_record):
    events = [
        EVENT | {"account": f"a{a}", "id": str(i), "value": value, "timestamp": NOW + at}
        for a, i, value, at in drawn
    ]
    one = new_pipeline()
    wanted = statuses(one, *events)
    split = new_pipeline()
    requests, at = [], 0
    for size in [*sizes, len(events)]:
        requests += [events[at : at + size]] if events[at : at + size] else []
        at += size
    found: list[str] = []
    at = 0
    for count in [*requests_per_record, len(requests)]:
        results = split.events(NOW, *requests[at : at + count]) if requests[at:] else []
        for request, result in zip(requests[at : at + count], results, strict=True):
            rows = ["stored"] * len(request)
            for row, status, _ in result.items:
                rows[row] = status
            found += rows
        at += count
    assert found == wanted
    assert totals(split.state) == totals(one.state)
    again = split.replayed()
    assert totals(again) == totals(one.state)
    assert again.counts() == split.state.counts() == one.state.counts()


def test_a_large_record_counts_as_many_small_ones():
    """Many partitions, resends far apart, ties in time: across the blocks that apply works in."""
    draw = Random(1)
    events = [
        EVENT
        | {
            "account": f"a{draw.randrange(40)}",
            "id": str(draw.randrange(400)),
            "value": draw.randrange(3),
            "timestamp": NOW + draw.randrange(2),
        }
        for _ in range(3_000)
    ]
    one, many = new_pipeline(), new_pipeline()
    wanted = []
    for at in range(0, len(events), 7):
        wanted += statuses(many, *events[at : at + 7])
    assert statuses(one, *events) == wanted
    assert {"stored", "duplicate", "conflict"} == set(wanted)
    assert totals(one.state) == totals(many.state)
    assert one.state.counts() == many.state.counts()


def totals(state: StateMachine) -> dict[str, list[int]]:
    """The cells of every account but for their positions, which are those of the log."""
    start = NOW // DAY * DAY
    question = Question("accounts", metric="m", start=start, end=start + DAY, whole_period=True)
    partial = collect(state, question)
    assert partial is not None
    found = {}
    for cell, account in zip(partial.cells.tolist(), partial.account.tolist(), strict=True):
        found[partial.accounts[account]] = [*cell[1:7], cell[7], cell[9], cell[10], cell[12]]
    return found


def test_a_full_table_stops_before_it_is_written_over():
    capacity = CAPACITY._replace(cells=10)
    pipeline = new_pipeline(capacity)
    events = [EVENT | {"account": f"a{n}"} for n in range(50)]
    assert statuses(pipeline, *events) == ["stored"] * 50  # the room for one more record
    assert pipeline.state.fill() == 5.0
    with pytest.raises(InvariantViolation, match=r"limits\.cells"):
        statuses(pipeline, EVENT | {"id": "2"})


@pytest.mark.parametrize(
    ("name", "counts"),
    [("accounts", 40), ("series", 40), ("cells", 40)],
)
def test_fill_is_that_of_the_fullest_table(name, counts):
    pipeline = new_pipeline(CAPACITY._replace(**{name: 50}))
    statuses(pipeline, *(EVENT | {"account": f"a{n}"} for n in range(counts)))
    assert pipeline.state.fill() == 0.8


def test_a_record_of_another_machine_or_registry_is_not_applied():
    pipeline = new_pipeline()
    statuses(pipeline, EVENT)
    append = pipeline.appended[-1]
    record = log_format.parse_frames(append.head, bytes(append.payload))
    fresh = StateMachine(KEY, CAPACITY)
    with pytest.raises(InvariantViolation, match="registry"):
        fresh.apply_events(record)
    with pytest.raises(InvariantViolation, match="machine version 9"):
        pipeline.state.apply_events(record._replace(machine_version=9))
    assert fresh.counts()["events"] == 0


def test_a_record_of_a_metric_that_was_never_given_a_number_changes_nothing():
    pipeline = new_pipeline()
    statuses(pipeline, EVENT)
    append = pipeline.appended[-1]
    record = log_format.parse_frames(append.head, bytes(append.payload))
    payload = bytearray(record.payload)
    at = log_format.payload_layout(record.row_count, record.heap_size).metric
    payload[at : at + 2] = b"\xff\xff"
    before = pipeline.state.counts()
    with pytest.raises(InvariantViolation, match="never given"):
        pipeline.state.apply_events(record._replace(payload=memoryview(payload)))
    assert pipeline.state.counts() == before


def test_an_account_is_found_by_its_path_and_nothing_else():
    pipeline = new_pipeline()
    names = ["a", "a/b", "a/b/c", "a/bc", "ab", "a//", "é/b", "é"]
    statuses(pipeline, *(EVENT | {"account": name} for name in names))
    start = NOW // DAY * DAY

    def found(account: str, subtree: bool) -> set[str]:
        question = Question("usage", account, subtree, "m", start, start + DAY, whole_period=True)
        partial = collect(pipeline.state, question)
        assert partial is not None
        assert np.unique(partial.account).tolist() == list(range(len(partial.accounts)))
        return set(partial.accounts)

    for name in [*names, "none", "a/", "é/"]:
        below = {other for other in names if other == name or other.startswith(name + "/")}
        assert found(name, True) == below
        assert found(name, False) == {name} & set(names)
