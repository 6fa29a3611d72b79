"""The table of split requests against a plain model: each split is done once, with what came."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meterd.core.split_requests import Part, SplitTable

SPLITS_MAX = 3
GROUPS = 4


class Splits(RuleBasedStateMachine):
    """The model keeps, for each split, its parts' outcomes and how long each is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.table: SplitTable[int] = SplitTable(SPLITS_MAX)
        self.out: dict[int, dict[bytes, float]] = {}  # in the order they came
        self.parts: dict[int, list[Part]] = {}
        self.came: dict[bytes, Any] = {}
        self.done: set[int] = set()
        self.now = 0.0
        self.tokens = 0

    def check(self, ended: list[Any]) -> None:
        for split in ended:
            assert split.asked not in self.done
            self.done.add(split.asked)
            waited = self.out.pop(split.asked)
            assert all(due <= self.now for due in waited.values()), "somebody was still waited for"
            wanted = [self.came.get(part.token) for part in self.parts[split.asked]]
            assert split.outcomes == wanted

    @rule(nodes=st.lists(st.integers(1, 3), max_size=3), wait=st.integers(0, 5), data=st.data())
    def add(self, nodes, wait, data):
        parts = []
        for node in nodes:
            self.tokens += 1
            groups = data.draw(st.sets(st.integers(0, GROUPS - 1), min_size=1, max_size=2))
            parts.append(Part(b"%d" % self.tokens, node, tuple(sorted(groups))))
        number = len(self.parts)
        if len(self.out) >= SPLITS_MAX:
            oldest = next(iter(self.out))
            self.out[oldest] = dict.fromkeys(self.out[oldest], self.now)
        self.parts[number] = parts
        self.out[number] = {part.token: self.now + wait for part in parts}
        self.check(self.table.add(number, parts, self.now + wait))

    @rule(place=st.integers(0, 12), outcome=st.none() | st.binary(max_size=2))
    def settle(self, place, outcome):
        """Outcomes come for parts that are out, for those that are not, and twice."""
        token = b"%d" % (self.tokens - place)
        for waited in self.out.values():
            if token in waited:
                del waited[token]
                self.came[token] = outcome
        ended = self.table.settle(token, outcome)
        self.check([] if ended is None else [ended])

    @rule(leaders=st.lists(st.integers(0, 3), min_size=GROUPS, max_size=GROUPS))
    def led(self, leaders):
        for number, waited in self.out.items():
            for part in self.parts[number]:
                until = self.now + (2 if part.node in leaders else 1)
                if part.token in waited and any(leaders[g] != part.node for g in part.groups):
                    waited[part.token] = min(waited[part.token], until)
        self.table.led(leaders, self.now + 1, self.now + 2)

    @rule(seconds=st.integers(0, 3))
    def expire(self, seconds):
        self.now += seconds
        for waited in self.out.values():
            for token in [token for token, due in waited.items() if due <= self.now]:
                del waited[token]  # it is not known
        self.check(self.table.expire(self.now))

    @invariant()
    def nothing_is_forgotten(self):
        assert len(self.table) == len(self.out) <= SPLITS_MAX


TestSplits = Splits.TestCase
TestSplits.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
