"""What was committed, and what it amounts to: the reference that knows no files and no nodes.

Whoever first says that an op is committed tells it here.  Each group's ops are counted once, in
their order, by the plain-Python model of the product (`tests/support/model.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from meterd.protocol.log_format import EVENTS, EXPIRE
from meterd.protocol.raft_messages import CONFIG, NOOP, OPENS_TERM
from tests.sim.checks import require
from tests.support.model import Metric, Model
from tests.support.periods import DAY

# Noon of a day, so that no run crosses midnight; jumps of clocks are an hour.
NOW = 20_000 * DAY + DAY // 2
# Events are of these days; memory keeps the totals of the last two.
FIRST_DAY, KEPT_DAY, TODAY = 19_997 * DAY, 19_999 * DAY, 20_000 * DAY
CODE = "calls"

Outcome = tuple[str, str]  # status, reason
# The model has no horizon of its own here: each partition's log moves it.
RETENTION_DAYS = 10**5


class Proposed(NamedTuple):
    """What one slice of a record is to do."""

    kind: int
    leader_time: int
    content: Any  # events of the slice in their order, or the body of a command


class Group:
    """One group's committed history."""

    def __init__(self, voters: Sequence[int]) -> None:
        self.voters = self._opened_by = voters
        self.model = Model(retention_days=RETENTION_DAYS)
        self.model.put_metric(Metric(CODE, "sum", decimals=0))
        self.last = 0
        self.outcomes: dict[int, list[Outcome]] = {}  # by index
        # Of each account: index, events and sum of the days that memory keeps.
        self.sums: dict[str, list[tuple[int, int, int]]] = {}
        self.stored: list[tuple[int, int]] = [(0, 0)]  # index, events ever
        self.view_changes = [(0, 0)]  # index, how often there was a new leader
        self.stored_at: dict[tuple[str, str], int] = {}  # identity -> index it was last stored at

    def open_term(self, index: int, term: int) -> None:
        """A leader has opened its term: is it a new one?"""
        alone = len(self.voters) == 1 and self._opened_by == self.voters
        self._opened_by = self.voters
        if index > 1 and term > 1 and not alone:
            self.view_changes.append((index, self.view_changes[-1][1] + 1))

    def apply(self, index: int, proposed: Proposed) -> None:
        if proposed.kind == EVENTS:
            self._count(index, proposed)
        elif proposed.kind == EXPIRE:
            self.model.expire(proposed.content["horizon"] // DAY * DAY)
            self.model.ahead = proposed.content["future_ns"]

    def _count(self, index: int, proposed: Proposed) -> None:
        outcomes = self.outcomes[index] = []
        stored = 0
        for event in proposed.content:
            outcome = self.model.ingest(event, proposed.leader_time)
            outcomes.append(outcome)
            if outcome[0] != "stored":
                continue
            stored += 1
            self.stored_at[event["account"], event["id"]] = index
            if event["timestamp"] >= KEPT_DAY:
                known = self.sums.setdefault(event["account"], [(0, 0, 0)])
                _, count, total = known[-1]
                known.append((index, count + 1, total + event["value"]))
        self.stored.append((index, self.stored[-1][1] + stored))

    def total_at(self, account: str, index: int) -> tuple[int, int]:
        """Return events and sum of an account when `index` had been applied."""
        known = self.sums.get(account, [(0, 0, 0)])
        return known[bisect_right(known, index, key=lambda row: row[0]) - 1][1:]

    def stored_to(self, index: int) -> int:
        """Return how many events had been stored when `index` had been applied."""
        return _at(self.stored, index)

    def view_changes_to(self, index: int) -> int:
        """Return how often there had been a new leader when `index` had been applied."""
        return _at(self.view_changes, index)


def _at(rows: list[tuple[int, int]], index: int) -> int:
    return rows[bisect_right(rows, index, key=lambda row: row[0]) - 1][1]


class History:
    """All groups."""

    def __init__(self, groups: Iterable[int], voters: Sequence[int]) -> None:
        self.groups = {group: Group(voters) for group in groups}
        self.proposed: dict[tuple[int, int, int], Proposed] = {}  # by group, index, term

    def propose(self, group: int, index: int, term: int, proposed: Proposed) -> None:
        """A leader has written an op of a client."""
        require((group, index, term) not in self.proposed, "I2 two ops of one place", group, index)
        self.proposed[group, index, term] = proposed

    def commit(self, group: int, index: int, term: int, kind: int, body: Any) -> None:
        """An op is committed, as somebody says for the first time."""
        if group not in self.groups:
            return
        mine = self.groups[group]
        require(index == mine.last + 1, "I5 commits follow each other", group, index)
        mine.last = index
        if kind == NOOP and body == OPENS_TERM:
            mine.open_term(index, term)
        elif kind == CONFIG:
            mine.voters = body.voters
        if kind >= NOOP:
            return
        proposed = self.proposed.get((group, index, term))
        require(proposed is not None, "I15 an op that nobody has proposed", group, index, term)
        assert proposed is not None
        require(proposed.kind == kind, "I15 an op of another kind", group, index)
        mine.apply(index, proposed)

    def totals_at(self, applied: Mapping[int, int]) -> dict[str, tuple[int, int]]:
        """Return events and sum of every account that has any, by what is applied of each group."""
        found = {}
        for number, group in self.groups.items():
            for account in group.sums:
                total = group.total_at(account, applied[number])
                if total[0]:
                    found[account] = total
        return found

    def stored_to(self, applied: Mapping[int, int]) -> int:
        return sum(group.stored_to(applied[number]) for number, group in self.groups.items())
