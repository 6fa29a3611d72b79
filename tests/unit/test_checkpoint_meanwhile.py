"""Checkpoints that are saved while events are applied: what they hold, what spoils them."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterd.actors.keeping import cell_stream
from meterd.actors.keeping.checkpoints import CURRENT, Checkpoints
from meterd.actors.keeping.identity_store import IdentityStore
from meterd.core.kernels.tables import Capacity
from meterd.core.state.erasures import erasure_command
from meterd.core.state.machine import StateMachine
from tests.support.pipeline import KEY, Pipeline, apply

NOW = 1_800_000_000_000_000_000
ROWS = cell_stream.BUFFERS * cell_stream.BUFFER_ROWS
ACCOUNTS = ROWS + 10_000  # more than all buffers take
CAPACITY = Capacity(500_000, 100_000, 100_000, 100_000, 100_000)
BATCH = 4_000


@pytest.fixture
def pipeline() -> Pipeline:
    """As many totals as accounts, each of one event."""
    made = Pipeline(KEY, CAPACITY)
    made.put(NOW, {"code": "m", "aggregation": "sum"})
    for first in range(0, ACCOUNTS, BATCH):
        add(made, first, min(ACCOUNTS, first + BATCH), "first")
    return made


def add(pipeline: Pipeline, first: int, last: int, name: str) -> None:
    events = [
        {"account": f"a{n}", "metric": "m", "id": f"{name} {n}", "timestamp": NOW}
        for n in range(first, last)
    ]
    (result,) = pipeline.events(NOW, events)
    assert result.stored == last - first


def load(directory: Path) -> StateMachine:
    state = StateMachine(KEY, CAPACITY)
    assert Checkpoints(str(directory), IdentityStore(str(directory), state, 10**9)).load(
        state.restore
    )
    return state


def counted(state: StateMachine) -> list[list[int]]:
    rows = state.tables.cells[: state.counts()["cells"]]
    return sorted([int(row[0]), int(row[2]), int(row[3])] for row in rows.tolist())


def test_what_is_applied_meanwhile_is_not_in_it_and_not_lost(pipeline, tmp_path):
    store = IdentityStore(str(tmp_path), pipeline.state, 10**9)
    checkpoints = Checkpoints(str(tmp_path), store)
    expected, behind = counted(pipeline.state), len(pipeline.appended)
    checkpoints.save(pipeline.state, {})
    for turn in range(10):
        add(pipeline, ACCOUNTS - 5_000 + 100 * turn, ACCOUNTS - 4_900 + 100 * turn, "second")
        add(pipeline, ACCOUNTS + 10 * turn, ACCOUNTS + 10 * (turn + 1), "new")
        checkpoints.turn(events=110)
    assert checkpoints.step(wait=True) is None
    assert checkpoints.step() is None and not checkpoints.saving
    fresh = load(tmp_path)
    assert counted(fresh) == expected
    for append in pipeline.appended[behind:]:
        apply(fresh, append)
    assert counted(fresh) == counted(pipeline.state)
    checkpoints.save(pipeline.state, {})
    assert checkpoints.step(wait=True) is None
    assert counted(load(tmp_path)) == counted(pipeline.state)


def test_an_erased_account_spoils_what_is_being_saved(pipeline, tmp_path):
    store = IdentityStore(str(tmp_path), pipeline.state, 10**9)
    checkpoints = Checkpoints(str(tmp_path), store)
    checkpoints.save(pipeline.state, {})
    assert checkpoints.step(wait=True) is None
    before = (tmp_path / CURRENT).read_bytes()
    checkpoints.save(pipeline.state, {})
    command, partition = erasure_command(pipeline.state.tables.key, "a7", True, "one")
    assert pipeline.account_command(NOW, partition, command)["erased"]
    assert checkpoints.step(wait=True) == "spoiled"
    assert (tmp_path / CURRENT).read_bytes() == before
    assert not checkpoints.saving and not checkpoints.waiting
    checkpoints.save(pipeline.state, {})
    assert checkpoints.step(wait=True) is None
    fresh = load(tmp_path)
    assert fresh.counts()["cells"] == ACCOUNTS - 1
    assert "a7" not in {fresh.account_text(number) for number in range(100)}
