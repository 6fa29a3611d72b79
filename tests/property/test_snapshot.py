"""A snapshot that is taken in turns is the state of one moment, whatever is applied meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.kernels.cells import CELL_WORDS, FIRST_MEMBER, NEXT_CELL, PERIOD_START, SERIES
from meterd.core.kernels.tables import (
    ACCOUNT,
    CELLS,
    DIMS_SIZE,
    DIMS_START,
    METRIC,
    NEXT_MEMBER,
    NO_MEMBER,
)
from meterd.core.state.machine import StateMachine
from meterd.core.state.snapshot import CELLS as CELL_SECTION
from meterd.core.state.snapshot import Snapshot
from tests.support.periods import HOUR
from tests.support.pipeline import Pipeline, apply

NOW = 480_000 * HOUR
DEFINITIONS = (
    {"code": "sum", "aggregation": "sum", "dimensions": ["k"], "period": "hour"},
    {"code": "users", "aggregation": "unique", "unique_on": "user", "period": "hour"},
)

rows = st.tuples(st.sampled_from("abcd"), st.sampled_from(["sum", "users"]), st.sampled_from("xyz"))
batches = st.lists(rows, min_size=1, max_size=6)
# Events; rows handed over; two hours that pass, so that nobody asks for what was before.
steps = st.one_of(batches, batches, st.integers(1, 3), st.just("hours"), st.just("save"))


def contents(state: StateMachine) -> dict[Any, Any]:
    """What the tables say, whichever rows they use for it."""
    tables, found = state.tables, {}
    for number in range(int(tables.counters[CELLS])):
        row = tables.cells[number].tolist()
        if row[SERIES] < 0:
            continue
        series = tables.series[row[SERIES]].tolist()
        start = series[DIMS_START]
        dims = tables.dims[start : start + series[DIMS_SIZE]].tobytes()
        key = (state.account_text(series[ACCOUNT]), series[METRIC], dims, row[PERIOD_START])
        members, member = set(), row[FIRST_MEMBER]
        while member >= 0:
            words = tables.members[member]
            members.add((int(words[0]), int(words[1])))
            member = -1 if words[NEXT_MEMBER] == NO_MEMBER else int(words[NEXT_MEMBER])
        assert key not in found
        skipped = (SERIES, FIRST_MEMBER, NEXT_CELL)
        found[key] = ([row[word] for word in range(CELL_WORDS) if word not in skipped], members)
    return found


class Taken:
    """A snapshot on its way, and what it must hold."""

    def __init__(self, state: StateMachine, applied: int) -> None:
        self.snapshot: Snapshot = state.save()
        self.expected, self.counts = contents(state), state.counts()
        self.applied = applied
        self._pieces = [np.empty((0, CELL_WORDS), np.int64)]

    def hand_over(self, count: int) -> bool:
        out = np.empty((count, CELL_WORDS), np.int64)
        self._pieces.append(out[: self.snapshot.copy_cells(out)])
        return len(self._pieces[-1]) > 0

    def restored(self, pipeline: Pipeline) -> StateMachine:
        while self.hand_over(100):
            pass
        snapshot = self.snapshot
        cells = {CELL_SECTION: np.concatenate(self._pieces)}
        fresh = StateMachine(pipeline.key, pipeline.capacity)
        fresh.restore(snapshot.state, snapshot.growing | snapshot.fixed | cells)
        fresh.restore_identities(snapshot.identities)
        return fresh


@settings(max_examples=300)
@given(st.lists(steps, min_size=4, max_size=40))
def test_a_snapshot_taken_in_turns_is_the_state_of_one_moment(drawn: list[Any]) -> None:
    pipeline, now, identity = Pipeline(), NOW, 0
    for definition in DEFINITIONS:
        pipeline.put(now, definition)
    taken: Taken | None = None
    for step in [*drawn, "save", "end"]:
        state = pipeline.state
        if step == "hours":
            now += 2 * HOUR
            step = [("a", "sum", "x")]
        if isinstance(step, list):
            identity += len(step)
            events = [
                {
                    "account": account,
                    "metric": metric,
                    "id": f"{identity}-{place}",
                    "timestamp": now,
                    "properties": {"k": text, "user": f"{text}{identity}"},
                }
                for place, (account, metric, text) in enumerate(step)
            ]
            (result,) = pipeline.events(now, events)
            assert result.stored == len(step)
            while taken is None and state.evict() is not None:
                pass
        elif isinstance(step, int) and taken is not None:
            taken.hand_over(step)
        elif step in ("save", "end") and taken is None:
            taken = Taken(state, len(pipeline.appended))
        elif step in ("save", "end"):
            check(pipeline, taken)
            taken = None


def check(pipeline: Pipeline, taken: Taken) -> None:
    """What was taken is the state of its moment, and the log behind it leads to that of now."""
    fresh = taken.restored(pipeline)
    pipeline.state.end_save()
    assert contents(fresh) == taken.expected
    assert fresh.counts() == taken.counts
    for append in pipeline.appended[taken.applied :]:
        apply(fresh, append)
    assert contents(fresh) == contents(pipeline.state)
    assert fresh.counts() == pipeline.state.counts()
