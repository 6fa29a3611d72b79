"""Questions that wait to be fresh, against a plain model."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from meterd.core.questions.read_waits import AGAIN_SECONDS, ReadWaits

GROUPS = 4


class Waits(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table: ReadWaits[int] = ReadWaits()
        self.wanted: dict[int, dict[int, int | None]] = {}  # by number: group → index
        self.until: dict[int, float] = {}
        self.asked: dict[int, float] = {}  # when an index was last asked for
        self.applied = np.zeros(GROUPS, np.int64)
        self.now = 0.0

    @rule(groups=st.sets(st.integers(0, GROUPS - 1), min_size=1), wait=st.integers(0, 4))
    def add(self, groups, wait):
        number = self.table.add(
            len(self.until), np.array(sorted(groups)), self.now + wait, self.now
        )
        self.asked[number] = self.now
        self.wanted[number] = dict.fromkeys(groups)
        self.until[number] = self.now + wait
        assert number == len(self.until)

    @rule(
        number=st.integers(1, 12),
        said=st.dictionaries(st.integers(0, GROUPS), st.integers(0, 5), max_size=3),
    )
    def know(self, number, said):
        self.table.know(number, list(said), list(said.values()))
        for group, index in said.items():
            before = self.wanted.get(number, {}).get(group, -1)
            if before != -1:
                self.wanted[number][group] = index if before is None else min(before, index)

    @rule(group=st.integers(0, GROUPS - 1), more=st.integers(0, 3))
    def apply(self, group, more):
        self.applied[group] += more
        ready = {
            number
            for number, groups in self.wanted.items()
            if all(i is not None and i <= self.applied[g] for g, i in groups.items())
        }
        assert {asked + 1 for asked in self.table.ready(self.applied)} == ready
        for number in ready:
            del self.wanted[number]

    @rule(number=st.integers(1, 12))
    def fail(self, number):
        wanted = [number - 1] if self.wanted.pop(number, None) else []
        assert self.table.fail(number) == wanted

    @rule()
    def silent(self):
        expected = {}
        for number, groups in self.wanted.items():
            if self.now - self.asked[number] >= AGAIN_SECONDS:
                self.asked[number] = self.now
                unknown = [group for group, index in sorted(groups.items()) if index is None]
                expected |= {number: unknown} if unknown else {}
        found = {number: groups.tolist() for number, groups in self.table.silent(self.now)}
        assert found == expected

    @rule(seconds=st.integers(0, 2))
    def expire(self, seconds):
        self.now += seconds
        due = {number for number in self.wanted if self.until[number] <= self.now}
        assert {asked + 1 for asked in self.table.expire(self.now)} == due
        for number in due:
            del self.wanted[number]
        assert len(self.table) == len(self.wanted)


TestWaits = Waits.TestCase
TestWaits.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
