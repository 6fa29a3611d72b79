"""A state that takes some partitions of another's has what one would have that was given them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.kernels.tables import Capacity
from meterd.core.questions.partition_sets import partition
from meterd.core.state.balance_rows import import_commands
from meterd.core.state.erasures import erasure_command
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from meterd.protocol.errors import StorageError
from tests.property.test_snapshot import contents
from tests.support.periods import HOUR
from tests.support.pipeline import Pipeline, apply

NOW = 480_000 * HOUR
ACCOUNTS = ["a", "b", "b/sub", "c", "d"]
DEFINITIONS = (
    {"code": "sum", "aggregation": "sum", "dimensions": ["k"], "period": "hour"},
    {"code": "users", "aggregation": "unique", "unique_on": "user", "period": "hour"},
)
account = st.sampled_from(ACCOUNTS)
operation = st.sampled_from(["add", "remove"])
step = st.one_of(
    st.tuples(st.just("event"), account, st.sampled_from("xyz"), operation),
    st.tuples(st.just("import"), account, st.sampled_from("12"), st.none()),
    st.tuples(st.just("erase"), account, st.sampled_from("12"), st.none()),
    st.tuples(st.just("expire"), account, st.integers(1, 3), st.none()),
)


class Log(Pipeline):
    """A log in which each record but those of the meta group is of one partition."""

    def __init__(self, steps: list[Any]) -> None:
        super().__init__()
        for definition in DEFINITIONS:
            self.put(NOW, definition)
        for number, (kind, name, what, operation) in enumerate(steps):
            key = self.state.tables.key
            if kind == "event":
                self._event(number, name, what, operation)
            elif kind == "import":
                row = {"account": name, "metric": "sum", "at": 7, "count": 1, "sum": "1"}
                found = import_commands(what + name, [row], self.state.registry, key)
                ((place, command),) = found.items()
                self.account_command(NOW, place, command)
            elif kind == "erase":
                command, place = erasure_command(key, name, True, what)
                self.account_command(NOW, place, command)
            else:
                days = {"op": "expire", "horizon": what * 24 * HOUR, "future_ns": what, "time": 1}
                self.account_command(NOW, partition(name), days)

    def _event(self, number: int, name: str, what: str, operation: str) -> None:
        event = {"account": name, "id": str(number), "timestamp": NOW + number % 3 * HOUR}
        if number % 2:
            more = {"metric": "sum", "value": number, "properties": {"k": what}}
        else:
            more = {"metric": "users", "operation": operation, "properties": {"user": what}}
        self.events(NOW, [event | more])

    def replay(self, chosen: np.ndarray[Any, Any], last: int) -> StateMachine:
        """Return a state that was given some groups' records of the first ones."""
        fresh = StateMachine(self.key, self.capacity)
        for append in self.appended[:last]:
            record = log_format.parse_frames(append.head, bytes(append.payload))
            if chosen[record.slices["partition"]].all():
                apply(fresh, append)
        return fresh


def groups_of(names: set[str]) -> np.ndarray[Any, Any]:
    found = np.zeros(log_format.GROUP_COUNT, np.bool_)
    found[[partition(name) for name in names]] = True
    return found


def balances_of(state: StateMachine) -> Any:
    held, arrays = state.balances.save()
    imports = sorted(map(repr, held["imports"]))
    return held["accounts"], imports, {name: rows.tolist() for name, rows in arrays.items()}


@settings(max_examples=120, deadline=None)
@given(st.lists(step, max_size=40), st.sets(account), st.sets(account), st.integers(2, 42))
def test_what_is_adopted_takes_the_place_of_what_was_there(steps, mine, theirs, last):
    log = Log(steps)
    wanted, meta = groups_of(theirs), groups_of(set())
    meta[log_format.META_GROUP] = True
    # What is older than the peer's, of the same partitions, may be here as well.
    taker = log.replay(groups_of(mine | theirs) | meta, last)
    giver = log.replay(wanted | meta, len(log.appended))
    known = log.replay((groups_of(mine) & ~wanted) | meta, last)
    taker.adopt(giver, wanted)
    expected = contents(known) | contents(giver)
    assert contents(taker) == expected
    assert balances_of(taker)[1] == sorted(balances_of(known)[1] + balances_of(giver)[1])
    whole = StateMachine(log.key, log.capacity)
    whole.restore(*saved(taker))
    assert contents(whole) == expected, "also from a checkpoint"
    assert {one.id for one in taker.erasures} >= {one.id for one in giver.erasures}
    both = wanted[: log_format.META_GROUP]
    rows = np.frombuffer(taker.horizons.packed(), np.int64).reshape(4, -1)
    given_rows = np.frombuffer(giver.horizons.packed(), np.int64).reshape(4, -1)
    assert np.array_equal(rows[:, both], given_rows[:, both])


def saved(state: StateMachine) -> tuple[dict[str, Any], dict[str, Any]]:
    snapshot = state.save()
    found = snapshot.state, snapshot.arrays()
    state.end_save()
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(step, max_size=40), st.sets(account))
def test_it_goes_on_as_if_it_had_always_been_there(steps, theirs):
    """Whatever comes behind what was adopted, of the same log, is counted the same."""
    log, half = Log(steps), len(steps) // 2 + len(DEFINITIONS)
    wanted, meta = groups_of(theirs), groups_of(set())
    meta[log_format.META_GROUP] = True
    giver = log.replay(wanted | meta, half)
    taker = log.replay(meta, half)
    taker.adopt(giver, wanted)
    for append in log.appended[half:]:
        record = log_format.parse_frames(append.head, bytes(append.payload))
        if wanted[record.slices["partition"]].all():
            apply(taker, append)
    assert contents(taker) == contents(log.replay(wanted | meta, len(log.appended)))


def test_without_room_nothing_changes():
    log = Log([("event", "a", "x", "add"), ("event", "a", "y", "add")] * 3)
    taker = StateMachine(log.key, Capacity(100, 10, 1, 10, 10))
    for append in log.appended[: len(DEFINITIONS)]:
        apply(taker, append)
    everything = np.ones(log_format.GROUP_COUNT, np.bool_)
    with pytest.raises(StorageError, match=r"limits\.series"):
        taker.adopt(log.state, everything)
    assert contents(taker) == {}
