"""Whatever was folded, merged, coarsened or erased: an answer is the model's, or refused."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from meterd.actors.files import totals_files
from meterd.actors.files.totals_files import Covered, TotalsFiles
from meterd.actors.questions import feed, reading
from meterd.actors.questions.log_files import LogFiles
from meterd.core.questions.answers import AnswerContext, answer_accounts, answer_usage
from meterd.core.questions.folded import GRAIN
from meterd.core.questions.question import Question
from meterd.core.questions.zones import UTC
from meterd.core.state.erasures import Erasures
from meterd.core.state.registry import Registry
from meterd.protocol.errors import RangeExpired
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.metric import MetricDefinition
from tests.support import model as oracle
from tests.support.log_builder import IDENTITY_KEY, LoggedEvent
from tests.support.log_directory import LogDirectory, finish
from tests.support.periods import DAY

NOW = 20_000 * DAY
QUARTERS = 4
SPLIT = NOW + QUARTERS // 2 * GRAIN + 1
ACCOUNTS = ("a", "a/x", "a/xy", "ü/ß")
VALUES = ("", "eu", "é" * 127)
CONTEXT = AnswerContext("7", I64_MIN)

# Moments on edges of cells, and on both sides of them.
moments = st.builds(
    lambda quarter, off: NOW + quarter * GRAIN + off,
    st.integers(0, QUARTERS),
    st.sampled_from([0, 0, 1, -1, GRAIN // 2]),
)
logged = st.tuples(
    st.sampled_from(ACCOUNTS),
    moments,
    st.integers(-2, 2) | st.integers(-2, 2) | st.sampled_from([2**63 - 1, -(2**63)]),
    st.sampled_from(["none", "add", "add", "remove"]),
    st.dictionaries(st.sampled_from(["region", "user"]), st.sampled_from(VALUES)),
    st.booleans(),
)
asked = st.tuples(
    moments | st.sampled_from([I64_MIN, NOW - DAY]),
    moments | st.sampled_from([I64_MAX, NOW + DAY]),
    st.sampled_from(ACCOUNTS),
    st.booleans(),
    st.integers(0, 3),
)
versions = st.builds(
    lambda aggregation, decimals, dimensions, on: oracle.Metric(
        "m", aggregation, decimals, dimensions, on if aggregation == "unique" else None
    ),
    st.sampled_from([*oracle.AGGREGATIONS, *["unique"] * 6]),
    st.sampled_from([0, 2]),
    st.sampled_from([(), ("region",), ("user", "region")]),
    st.sampled_from([None, "user"]),
)


class Expiry(RuleBasedStateMachine):
    """A data directory and the model; nothing the sweeper may do changes what is said."""

    @initialize(
        first=versions,
        second=versions,
        events=st.lists(st.lists(logged, min_size=3, max_size=12), min_size=2, max_size=4),
    )
    def begin(self, first: oracle.Metric, second: oracle.Metric, events: list[Any]) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.model, self.registry = oracle.Model(), Registry()
        self.log = LogDirectory(self.path)
        # Versions that do not aggregate alike are not added up at all.
        second = replace(second, aggregation=first.aggregation, unique_on=first.unique_on)
        for version in (first, second):
            definition = {
                "code": "m",
                "aggregation": version.aggregation,
                "decimals": version.decimals,
                "dimensions": list(version.dimensions),
                "unique_on": version.unique_on,
            }
            self.model.put_metric(version, SPLIT, replace=True)
            self.registry.put(MetricDefinition.from_map(definition), UTC, True, SPLIT)
        self.horizon = I64_MIN
        self.count = self.through = 0
        self.left_over: list[int] = []  # folded, not yet deleted
        for of_file in events:
            self.write(of_file, seal=True)

    def teardown(self) -> None:
        if hasattr(self, "path"):
            shutil.rmtree(self.path)

    # What happens to the log

    @rule(events=st.lists(logged, min_size=3, max_size=12), seal=st.booleans())
    def write(self, events: list[Any], seal: bool) -> None:
        rows, refused = [], set()
        for account, timestamp, units, operation, properties, is_refused in events:
            entry = self.registry.select("m", timestamp)
            assert entry is not None
            self.count += 1
            event = LoggedEvent(
                account, f"id-{self.count}", entry.number, units, timestamp, operation, properties
            )
            rows.append(event)
            if is_refused:
                refused.add(len(rows) - 1)
                continue
            stored = oracle.Stored(
                self.count,
                account,
                event.id,
                "m",
                Fraction(units, 10**entry.definition.decimals),
                timestamp,
                operation,
                properties,
                self.model.version_at("m", timestamp),
            )
            self.model.stored.append(stored)
        self.log.write(rows, refused)
        if seal:
            self.log.seal(segmented=self.count % 2 == 0)

    @rule()
    def seal(self) -> None:
        self.log.seal(segmented=True)

    @precondition(lambda self: self.through + 1 < self.log.builder.file_number)
    @rule(count=st.integers(1, 3), dies=st.booleans())
    def fold(self, count: int, dies: bool) -> None:
        for number in range(self.through + 1, self.log.builder.file_number)[:count]:
            if number in self.log.waiting:
                self.log.make_segment(number)
            self.log.fold([number], self.registry, self.horizon)
            self.through = number
            self.left_over.append(number)
        if not dies:
            self.log.remove(self.left_over)
            self.left_over = []

    @rule(quarters=st.integers(0, QUARTERS))
    def expire_totals(self, quarters: int) -> None:
        self.horizon = max(self.horizon, NOW + quarters * GRAIN)

    @precondition(lambda self: self.through)
    @rule(data=st.data(), tidy=st.booleans())
    def rewrite(self, data: st.DataObject, tidy: bool) -> None:
        """Any neighbours become one file, and what they supersede may stay for long.

        The horizon may have gone back: a partition has come whose own is older.
        """
        files = self.files()
        first = data.draw(st.integers(0, len(files) - 1))
        last = data.draw(st.integers(first, len(files) - 1))
        making = self.log.making(data.draw(st.sampled_from([self.horizon, NOW, I64_MIN])))
        totals_files.rewrite(str(self.path), files[first : last + 1], making)
        known = max(file.horizon for file in files[first : last + 1])
        made = TotalsFiles(str(self.path)).snapshot(os.listdir(self.path))[first]
        assert made.horizon == max(known, making.horizon)
        if tidy:
            stand = [Covered(one.first, one.last) for one in self.files()]
            totals_files.remove_superseded(str(self.path), stand, 0.0)
        self.log.files.refresh()

    def files(self) -> Any:
        return TotalsFiles(str(self.path)).snapshot(os.listdir(self.path))

    @precondition(lambda self: len(self.log.erasures) < self.count // 20)
    @rule(account=st.sampled_from(ACCOUNTS), subtree=st.booleans())
    def erase(self, account: str, subtree: bool) -> None:
        self.log.erase(account, subtree)
        self.model.erase(account, subtree)

    @rule()
    def restart(self) -> None:
        """The groups speak in another order than before, so the erasures come in another one."""
        self.log.erasures = Erasures(reversed(list(self.log.erasures)), self.log.erasures.key)
        self.log.files = LogFiles(str(self.path), IDENTITY_KEY)

    # What is said

    @rule(questions=st.lists(asked, min_size=1, max_size=4))
    def ask(self, questions: list[Any]) -> None:
        for question in questions:
            self.ask_one(question)

    def ask_one(self, question: Any) -> None:
        start, end, account, subtree, split = question
        if start >= end:
            start, end = end, start + 1
        version = self.model.version_at("m", end - 1)
        group_by = version.dimensions if split == 1 else ()
        filters = {key: [None, "eu"] for key in version.dimensions} if split == 2 else {}
        edges: tuple[int, ...] = ()
        if split == 3 and end - start < 4 * QUARTERS * GRAIN:
            edges = (start, *range(start - start % GRAIN + GRAIN, end, GRAIN), end)
        posed = Question(
            "usage",
            account,
            subtree,
            "m",
            start,
            end,
            tuple((key, tuple(values)) for key, values in sorted(filters.items())),
            group_by,
            edges,
        )
        wanted = oracle.Question("m", start, end, filters, group_by)
        try:
            self.compare(posed, wanted)
        except RangeExpired as refusal:
            self.check_refusal(posed, wanted, refusal)

    def compare(self, posed: Question, wanted: oracle.Question) -> None:
        """Raises RangeExpired."""
        version = self.model.version_at("m", posed.end - 1)
        entries = self.registry.versions("m")
        view = self.log.view()
        partial = finish(reading.read_cells(view, posed, self.registry))
        answer = self.model.usage(posed.account, wanted, posed.subtree)
        result = answer_usage(posed, entries, partial, CONTEXT)
        assert about_equal(result["value"], answer.value, version)
        assert (result["count"], result["newest_event"]) == (answer.count, answer.newest_event)
        found = {tuple(row["key"].values()): row["value"] for row in result["groups"]}
        assert found.keys() == answer.groups.keys()
        for key, group in answer.groups.items():
            assert about_equal(found[key], group.value, version)
        for point, last in zip(result["series"], posed.edges[1:], strict=False):
            one = self.model.usage(
                posed.account, replace(wanted, start=point["start"], end=last), posed.subtree
            )
            assert point["count"] == one.count
            if self.model.version_at("m", last - 1) == version:
                assert about_equal(point["value"], one.value, version)

    def check_refusal(
        self, posed: Question, wanted: oracle.Question, refusal: RangeExpired
    ) -> None:
        """It was not refused for nothing, and the range that it names is answered."""
        on_edges = posed.start % GRAIN == posed.end % GRAIN == 0
        assert not (posed.start >= self.horizon and on_edges), refusal
        found = re.search(r"ask for (-?\d+) to (-?\d+)", refusal.message)
        assert found is not None
        start, end = int(found[1]), int(found[2])
        version = self.model.version_at("m", end - 1)
        keys = (*posed.group_by, *(key for key, _ in posed.filters))
        if set(keys) <= set(version.dimensions):
            nearest = replace(posed, start=start, end=end, edges=())
            self.compare(nearest, replace(wanted, start=start, end=end))

    @rule(question=asked)
    def ask_for_all(self, question: Any) -> None:
        """An invoice run over all accounts."""
        start, end = sorted(question[:2])
        if start == end:
            return
        posed = Question("accounts", metric="m", start=start, end=end)
        entries = self.registry.versions("m")
        try:
            partial = finish(reading.read_cells(self.log.view(), posed, self.registry))
            ranking = finish(answer_accounts(posed, entries, partial))
        except RangeExpired:
            return
        version = self.model.version_at("m", end - 1)
        answers = self.model.accounts(oracle.Question("m", start, end))
        rows = {row["account"]: row for row in ranking.rows(0, len(ACCOUNTS))}
        assert rows.keys() == answers.keys()
        for name, answer in answers.items():
            assert about_equal(rows[name]["value"], answer.value, version)
            assert rows[name]["count"] == answer.count

    @rule(account=st.sampled_from(("", *ACCOUNTS)))
    def listen(self, account: str) -> None:
        """Listing and feed hold what is left of the log, and never an erased event."""
        view = self.log.view()
        left = {place.event.id for place in self.log.builder.placed}
        left &= {p.event.id for p in self.log.builder.placed if p.file_number > self.through}
        wanted = [e.id for e in self.model.stored if e.id in left and account in ("", e.account)]
        page = finish(feed.read_feed(view, Question("feed", account), self.registry, I64_MIN))
        assert sorted(event["id"] for event in page["events"]) == sorted(wanted)
        if account:
            question = Question("events", account)
            page = finish(reading.read_events(view, question, self.registry, I64_MIN))
            assert sorted(event["id"] for event in page["events"]) == sorted(wanted)
        if self.through:
            gone = Question("feed", account, after=f"f.{self.through}.0")
            try:
                finish(feed.read_feed(view, gone, self.registry, I64_MIN))
            except RangeExpired as refusal:
                assert f"f.{self.through + 1}.0" in refusal.message
            else:
                raise AssertionError("a cursor whose place is gone was followed")


def about_equal(text: str | None, exact: Fraction | None, metric: oracle.Metric) -> bool:
    """An average is rounded, half to even; everything else is exact."""
    if metric.aggregation == "avg" and exact is not None:
        digits = metric.decimals + 6
        exact = Fraction(round(exact * 10**digits), 10**digits)
    return (None if text is None else Fraction(text)) == exact


TestExpiry = Expiry.TestCase
TestExpiry.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
