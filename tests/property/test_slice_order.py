"""Nothing depends on the order between groups: slices applied in any order give the same outcomes.

One state machine applies whole records as the log has them.  Another applies each slice by itself,
those of a group in their order and otherwise at random, as replicas of different groups may.
Horizons and future limits move in some partitions and not in others.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.cluster.proposals import command
from meterd.core.log.record_cut import rows_of
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from meterd.protocol.columns import decode_events
from meterd.protocol.errors import REASONS, STATUSES, UNKNOWN
from meterd.protocol.log_format import Record
from tests.support.periods import DAY, HOUR
from tests.support.pipeline import Pipeline, proposal_of

NOW = 20_000 * DAY + 7 * HOUR
ACCOUNTS = [f"a{number}" for number in range(12)] + ["a1/x", "a2/y/z"]
TIMES = [0, -HOUR, -DAY, -2 * DAY, -3 * DAY, -4 * DAY, HOUR, DAY, DAY + HOUR, 3 * DAY]

events = st.fixed_dictionaries(
    {
        "account": st.sampled_from(ACCOUNTS),
        "id": st.integers(0, 5).map(str),
        "ahead": st.sampled_from(TIMES),
        "value": st.integers(0, 3),
        "properties": st.dictionaries(st.sampled_from(["k", "other"]), st.text(max_size=5)),
    }
)
moves = st.tuples(st.integers(-5, 0), st.integers(1, 3), st.integers(1, 255))
steps = st.lists(st.lists(events, min_size=1, max_size=25) | moves, min_size=1, max_size=8)


class Log(Pipeline):
    """Makes records without applying them."""

    def __init__(self) -> None:
        super().__init__()
        self.put(NOW, {"code": "m", "aggregation": "sum", "dimensions": ["k"]})
        self.records: list[Record] = []

    def add(self, step: Any, now: int) -> None:
        if isinstance(step, tuple):
            days, ahead, stride = step
            horizon = NOW + days * DAY
            body = {"op": "expire", "horizon": horizon, "future_ns": ahead * DAY}
            body |= {"totals_horizon": horizon}
            groups = range(0, 256, stride)
            self.records.append(self._record(command(log_format.EXPIRE, groups, body, 1), now))
            return
        rows = [{"metric": "m", "timestamp": NOW + one["ahead"]} | one for one in step]
        for row in rows:
            del row["ahead"]
        self.stage.add(decode_events(msgpack.packb({"events": rows}), None), 0)
        packed_rows = self.stage.pack()
        if packed_rows.row_count:
            self.records.append(self._record(proposal_of(packed_rows, self.stage), now))

    def machine(self) -> StateMachine:
        """Return a state machine that knows the metric."""
        fresh = StateMachine(self.key, self.capacity)
        record = log_format.parse_frames(self.appended[0].head, bytes(self.appended[0].payload))
        fresh.apply_command(record)
        return fresh


def told(outcome: int) -> str:
    return REASONS[outcome >> 4] or STATUSES[outcome & 15]


@settings(max_examples=120)
@given(steps, st.randoms(use_true_random=False))
def test_the_order_between_groups_changes_nothing(taken, random):
    log = Log()
    for number, step in enumerate(taken):
        log.add(step, NOW + random.randint(0, 40) * HOUR * number)
    whole, parts = log.machine(), log.machine()
    expected = []
    for record in log.records:
        if record.kind == log_format.EVENTS:
            expected.append(whole.apply_events(record).copy())
        else:
            whole.apply_command(record)
            expected.append(np.zeros(0, np.uint8))
    # The slices of each group, in order; then one after another of a random group.
    ways: dict[int, list[tuple[int, int]]] = {}
    for number, record in enumerate(log.records):
        for place, group in enumerate(record.slices["partition"].tolist()):
            ways.setdefault(group, []).append((number, place))
    found = [np.full(len(outcome), 255, np.uint8) for outcome in expected]
    while ways:
        group = random.choice(sorted(ways))
        number, place = ways[group].pop(0)
        if not ways[group]:
            del ways[group]
        record = log.records[number]
        chosen = np.zeros(len(record.slices), np.bool_)
        chosen[place] = True
        if record.kind == log_format.EXPIRE:
            parts.apply_command(record, chosen)
            continue
        outcome, rows = parts.apply_events(record, chosen), rows_of(record, chosen)
        assert (outcome[~rows] == UNKNOWN).all()
        found[number][rows] = outcome[rows]
    for one, other in zip(found, expected, strict=True):
        assert [told(row) for row in one] == [told(row) for row in other]
    assert (parts.stored, parts.newest_event) == (whole.stored, whole.newest_event)
    assert parts.horizons.packed() == whole.horizons.packed()
    assert parts.leader_time == whole.leader_time
    counts = ("accounts", "events")
    assert [parts.counts()[name] for name in counts] == [whole.counts()[name] for name in counts]
