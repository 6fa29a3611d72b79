"""A limit of the state machine is a partition's: the same log of it gives the same decisions.

Whatever else a node has, in whichever order, and also when it begins from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.questions.partition_sets import partition
from meterd.core.state import balances as balances_module
from meterd.core.state import machine as state_module
from meterd.core.state.balance_rows import import_commands
from meterd.core.state.balances import Balances
from meterd.core.state.erasures import erasure_command
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from tests.support.pipeline import Pipeline, apply

NOW = 1_800_000_000_000_000_000
ACCOUNTS = [f"a{number}" for number in range(4)]  # each in a partition of its own
IMPORTS, ROWS, ERASURES = 3, 6, 2


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Limits that are reached at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balances_module, "IMPORTS_MAX", IMPORTS)
        patch.setattr(balances_module, "BALANCES_MAX", ROWS)
        patch.setattr(state_module, "ERASURES_MAX", ERASURES)
        yield


steps = st.lists(
    st.tuples(
        st.sampled_from(["import", "erase"]),
        st.sampled_from(ACCOUNTS),
        st.integers(0, 4).map(str),  # id
        st.integers(1, 4),  # rows
    ),
    max_size=25,
)


def balance(account: str, number: int) -> dict[str, Any]:
    return {"account": account, "metric": "m", "at": 7 + number, "count": 1, "sum": "1"}


class Log(Pipeline):
    """Imports and erasures of some accounts, and what became of each where all are."""

    def __init__(self, taken: list[Any]) -> None:
        super().__init__()
        self.put(NOW, {"code": "m", "aggregation": "sum"})
        self.outcomes: dict[int, dict[str, Any]] = {}  # by place in `appended`
        for kind, account, name, rows in taken:
            key = self.state.tables.key
            if kind == "import":
                found = [balance(account, number) for number in range(rows)]
                ((place, command),) = import_commands(name, found, self.state.registry, key).items()
            else:
                command, place = erasure_command(key, account, True, name)
            at = len(self.appended)
            self.outcomes[at] = decided(self.account_command(NOW, place, command))


def decided(result: dict[str, Any]) -> dict[str, Any]:
    """What a client is told of its command; how many erasures a node has is about the node."""
    return {key: value for key, value in result.items() if key != "erasures"}


@settings(max_examples=60, deadline=None)
@given(steps, st.sets(st.sampled_from(ACCOUNTS)), st.integers(0, 25))
def test_what_else_a_node_has_decides_nothing(taken, others, saved_after):
    log = Log(taken)
    ours = {partition(account) for account in others}
    fresh = StateMachine(log.key, log.capacity)
    for place, append in enumerate(log.appended):
        record = log_format.parse_frames(append.head, bytes(append.payload))
        if record.kind != log_format.ACCOUNT:
            apply(fresh, append)
        elif int(record.slices["partition"][0]) in ours:
            assert decided(fresh.apply_command(record)) == log.outcomes[place]
        if place == saved_after:  # the same from a checkpoint
            state, arrays = fresh.balances.save()
            fresh.balances = Balances()
            fresh.balances.restore(state, arrays)


@given(steps)
def test_each_partition_has_its_own_room(taken):
    """One that is full refuses nothing of another."""
    log = Log(taken)
    imports: dict[str, dict[str, int]] = {}
    erased: dict[str, set[str]] = {}
    for (kind, account, name, rows), result in zip(taken, log.outcomes.values(), strict=True):
        code = result.get("error", {}).get("code")
        if kind == "erase":
            names = erased.setdefault(account, set())
            fits = name in names or len(names) < ERASURES
            assert code == (None if fits else "too_many_erasures")
            if fits:
                names.add(name)
            continue
        known = imports.setdefault(account, {})
        if name in known:
            assert code == (None if known[name] == rows else "import_conflict")
        elif len(known) >= IMPORTS or sum(known.values()) + rows > ROWS:
            assert code == "too_many_balances"
        else:
            assert code is None
            known[name] = rows


def test_imports_of_earlier_versions_are_known():
    """They did not say how many rows they had; more are taken, and none twice."""
    balances = Balances()
    state, arrays = balances.save()
    state["imports"] = [[3, "one", b"digest"]]
    balances.restore(state, arrays)
    assert balances.take({"id": "one", "digest": b"digest", "rows": []}, 3, 1) == "unchanged"
