"""The state machine against the plain-Python model: outcomes of every row, answers from memory."""

from __future__ import annotations

from copy import deepcopy
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meterd.core.kernels.bloom import STEP_LINES
from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.kernels.index import clear
from meterd.core.kernels.runs import ENTRIES_MARGIN
from meterd.core.kernels.tables import TEXT_USED
from meterd.core.questions.answers import AnswerContext, answer_accounts, answer_usage
from meterd.core.questions.folded_cells import joined
from meterd.core.questions.memory_cells import collect
from meterd.core.questions.partial_cells import PartialCells
from meterd.core.questions.question import Question
from meterd.core.state.balance_rows import import_commands
from meterd.core.state.erasures import erasure_command
from meterd.core.state.identity_filter import IdentityFilter
from meterd.core.state.identity_runs import Entries, Run
from meterd.core.state.machine import StateMachine
from meterd.core.state.snapshot import CELLS, Snapshot
from meterd.protocol.errors import MetricVersionsDiffer
from tests.support import model as oracle
from tests.support.identities import merge_of, run_of
from tests.support.log_directory import finish
from tests.support.periods import DAY, HOUR, Period
from tests.support.pipeline import Pipeline

NOW = 20_000 * DAY + 7 * HOUR
ACCOUNTS = ("a", "a/x", "a/x/y", "ax", "ü/ß")
IDS = ("1", "2", "é" * 64, "6fa459ea-ee8a-3ca4-894e-db77e160355e")
PROPERTIES = st.dictionaries(
    st.sampled_from(["region", "user", "other"]), st.sampled_from(["", "eu", "é" * 127]), max_size=3
)
# Each code keeps its period; versions differ in everything else.
VARIANTS = {
    "sum": [
        oracle.Metric("sum", "sum", 2, ("region",)),
        oracle.Metric("sum", "sum", 0, ("user", "region")),
        oracle.Metric("sum", "sum", 6),
        oracle.Metric("sum", "max", 2),
    ],
    "hours": [
        oracle.Metric("hours", name, 2, ("region",), period=Period("hour"))
        for name in ("latest", "first", "avg")
    ],
    "days": [
        oracle.Metric("days", name, 1, ("user",), period=Period("day")) for name in ("min", "count")
    ],
    "values": [oracle.Metric("values", "unique", n, ("region",)) for n in (0, 2)],
    "seats": [
        oracle.Metric("seats", "unique", 0, ("region",), "user", Period("day")),
        oracle.Metric("seats", "unique", 0, (), "other", Period("day")),
    ],
}
# What is wrong with an event, whatever the registry holds.
FAULTS = {
    "float": {"value": 1.5},
    "65 bits": {"value": 2**63},
    "no number": {"value": "x"},
    "bad_operation": {"operation": "steal"},
    "bad_properties": {"properties": {f"k{n}": "" for n in range(33)}},
    "bad_metric": {"metric": "Not A Code"},
}
CONTEXT_POSITION = "7"

events = st.fixed_dictionaries(
    {
        "account": st.sampled_from(ACCOUNTS),
        "id": st.sampled_from(IDS) | st.integers(10, 60).map(str),
        "metric": st.sampled_from([*VARIANTS, *VARIANTS, "unknown"]),
        "ahead": st.sampled_from([0, 0, -1, 1, -HOUR, -2 * HOUR, -DAY, -31 * DAY, -70 * DAY])
        | st.sampled_from([HOUR, DAY, DAY + 1]),
        "value": st.sampled_from(["1", "1.50", "1.5", "-3", "0.01", "0.000001", 7])
        | st.sampled_from([str(2**63 - 1), str(-(2**63))]),
        "operation": st.sampled_from(["none", "none", "none", "add", "remove"]),
        "properties": PROPERTIES,
        "fault": st.sampled_from([None] * 12 + list(FAULTS)),
    }
)


def definition_of(metric: oracle.Metric) -> dict[str, Any]:
    return {
        "code": metric.code,
        "aggregation": metric.aggregation,
        "decimals": metric.decimals,
        "dimensions": list(metric.dimensions),
        "unique_on": metric.unique_on,
        "period": metric.period.kind,
    }


class Saving:
    """A snapshot that is taken in turns, and what it must be."""

    def __init__(self, snapshot: Snapshot, machine: StateMachineAgainstModel) -> None:
        self.snapshot, self.model = snapshot, deepcopy(machine.model)
        self.counts = machine.pipeline.state.counts()
        self.runs = list(machine.runs)  # a merge meanwhile leaves out what has expired since
        self._pieces: list[Any] = []

    def hand_over(self, rows: int) -> int:
        out = np.empty((rows, CELL_WORDS), np.int64)
        count = self.snapshot.copy_cells(out)
        self._pieces.append(out[:count])
        return count

    def arrays(self) -> dict[str, Any]:
        """All rows; those that only grow are read last, as late as a thread might."""
        cells = np.concatenate(self._pieces)
        assert len(cells) == self.snapshot.cells
        growing = {name: rows.copy() for name, rows in self.snapshot.growing.items()}
        return growing | self.snapshot.fixed | {CELLS: cells}


def small_filter() -> IdentityFilter:
    """One that a sweep fills in three turns."""
    return IdentityFilter(3 * STEP_LINES, turn_keys=0)


class StateMachineAgainstModel(RuleBasedStateMachine):
    """Whatever is done to both, both say the same."""

    @initialize()
    def begin(self) -> None:
        self.pipeline = Pipeline()
        self.model = oracle.Model(retention_days=10**6)
        self.runs: list[Run] = []
        self.flushing: Entries | None = None
        self.filter = small_filter()
        self.now = NOW
        self.asked = self.erased = self.moment = 0
        self.later: list[Any] = []
        self.saving: Saving | None = None
        for variants in VARIANTS.values():
            self.put(variants[0], False)

    def leader_time(self) -> int:
        """The time that the next record gets."""
        return max(self.now, self.pipeline.state.leader_time + 1)

    @rule(span=st.sampled_from([1, HOUR, 5 * HOUR, DAY, 31 * DAY]))
    def wait(self, span: int) -> None:
        self.now += span

    @rule(
        metric=st.sampled_from([metric for variants in VARIANTS.values() for metric in variants]),
        replace=st.booleans(),
    )
    def put(self, metric: oracle.Metric, replace: bool) -> None:
        at = self.leader_time()
        result = self.pipeline.put(self.now, definition_of(metric), replace)
        try:
            outcome = self.model.put_metric(metric, at, replace)
        except oracle.Refused as error:
            assert result["error"]["code"] == str(error)
        else:
            assert result["outcome"] == outcome

    @rule(code=st.sampled_from(sorted(VARIANTS)))
    def delete(self, code: str) -> None:
        result = self.pipeline.command(self.now, op="metric_delete", code=code)
        try:
            self.model.delete_metric(code)
        except oracle.Refused as error:
            assert result["error"]["code"] == str(error)
        else:
            assert result == {"code": code}

    @rule(batches=st.lists(st.lists(events, min_size=1, max_size=8), min_size=1, max_size=3))
    def ingest(self, batches: list[list[dict[str, Any]]]) -> None:
        at = self.leader_time()
        requests, faults = [], []
        for batch in batches:
            request = []
            for drawn in batch:
                event = dict(drawn)
                event["timestamp"] = self.now + event.pop("ahead")
                fault = event.pop("fault")
                event |= FAULTS.get(fault, {})
                request.append(event)
                faults.append(fault)
            requests.append(request)
        found = self.pipeline.events(self.now, *requests)
        wanted = self.outcomes([event for request in requests for event in request], at)
        first = 0
        for request, result in zip(requests, found, strict=True):
            statuses = dict.fromkeys(range(len(request)), ("stored", ""))
            statuses |= {row: (status, reason) for row, status, reason in result.items}
            assert result.received == len(request)
            assert result.stored == sum(s == "stored" for s, _ in statuses.values())
            for row, (status, reason) in statuses.items():
                expected = wanted[first + row]
                assert status == expected[0], (request[row], reason, expected)
                fault = faults[first + row]
                if fault is None or not reason:
                    assert reason == expected[1], request[row]
                else:
                    broken = "bad_value" if "value" in FAULTS[fault] else fault
                    assert reason in (broken, expected[1])
            first += len(request)

    def outcomes(self, batch: list[dict[str, Any]], at: int) -> list[tuple[str, str]]:
        """What the model says; rows that never reach the log are judged behind the others."""
        outcomes: dict[int, tuple[str, str]] = {}
        late = []
        for row, event in enumerate(batch):
            content = self.content_of(event)
            if self.model.ingest_reason(content, at) in ("", "too_old", "too_far_ahead"):
                outcomes[row] = self.model.ingest(event, at)
            else:
                late.append(row)
        for row in late:
            outcomes[row] = self.model.ingest(batch[row], at)
        return [outcomes[row] for row in range(len(batch))]

    def content_of(self, event: dict[str, Any]) -> tuple[Any, ...]:
        return oracle.ingest_content(event)

    @rule(days=st.integers(-80, 3), odd=st.integers(0, DAY - 1), ahead=st.sampled_from([1, 2]))
    def expire(self, days: int, odd: int, ahead: int) -> None:
        horizon = self.now + days * DAY + odd
        self.pipeline.command(self.now, op="expire", horizon=horizon, future_ns=ahead * DAY)
        self.model.expire(horizon // DAY * DAY)
        self.model.ahead = ahead * DAY
        assert self.pipeline.state.horizon == self.model.horizon

    @rule(account=st.sampled_from(ACCOUNTS), subtree=st.booleans())
    def erase(self, account: str, subtree: bool) -> None:
        key = self.pipeline.state.tables.key
        command, partition = erasure_command(key, account, subtree, str(self.erased))
        self.erased += 1
        self.pipeline.account_command(self.now, partition, command)
        self.model.erase(account, subtree)
        if len(account) > 2:  # not a part of anything else
            tables = self.pipeline.state.tables
            text = tables.text[: int(tables.counters[TEXT_USED])]
            assert account.encode() not in text.tobytes() or not subtree

    @rule(
        brought=st.lists(events, min_size=1, max_size=6),
        at=st.sampled_from([0, -DAY, -31 * DAY]),
        again=st.booleans(),
    )
    def bring(self, brought: list[dict[str, Any]], at: int, again: bool) -> None:
        """A balance is what a few events at one moment would be."""
        self.moment += 1
        moment = self.now + at - self.moment  # no event and no other balance lies there
        groups: dict[Any, list[oracle.Stored]] = {}
        for event in brought:
            if event["metric"] not in self.model.versions or event["metric"] in self.model.deleted:
                continue
            version = self.model.version_at(event["metric"], moment)
            value = oracle.parse_value(event["value"])
            if value is None or not oracle.fits(value, version.decimals):
                continue
            self.moment += 1
            operation = "none" if event["operation"] == "remove" else event["operation"]
            if version.aggregation != "unique" or version.unique_on not in (
                None,
                *event["properties"],
            ):
                operation = "none"
            stored = oracle.Stored(
                self.model.order + self.moment,
                event["account"],
                f"balance {self.moment}",
                event["metric"],
                value,
                moment,
                operation,
                event["properties"],
                version,
            )
            name = (
                event["account"],
                event["metric"],
                tuple((key, stored.dimension(key)) for key in version.dimensions),
            )
            groups.setdefault(name, []).append(stored)
        balances = [balance_of(held, moment) for held in groups.values()]
        if not balances:
            return
        for outcome in ("imported", "unchanged")[: 1 + again]:
            commands = import_commands(
                f"import {self.moment}",
                balances,
                self.pipeline.state.registry,
                self.pipeline.state.tables.key,
            )
            for partition, command in commands.items():
                result = self.pipeline.account_command(self.now, partition, command)
                assert result["outcome"] == outcome
                other = self.pipeline.account_command(
                    self.now, partition, command | {"digest": b"other"}
                )
                assert other["error"]["code"] == "import_conflict"
        for held in groups.values():
            self.model.bring(held)

    @rule()
    def save_and_restore(self) -> None:
        """As a node that is stopped and started again."""
        self.end_save()
        self.end_flush()
        self.begin_save()
        assert self.saving is not None
        counts = self.pipeline.state.counts()
        self.pipeline.state = self.restored(self.saving)
        self.filter = small_filter()
        self.saving = None
        assert self.pipeline.state.counts() == counts

    @rule()
    def begin_save(self) -> None:
        if self.saving is None and self.flushing is None:
            self.saving = Saving(self.pipeline.state.save(), self)

    @rule(rows=st.integers(1, 5))
    def hand_over(self, rows: int) -> None:
        """Whatever else is done before, between and behind: these are the rows of that moment."""
        if self.saving is not None:
            self.saving.hand_over(rows)

    @rule()
    def end_save(self) -> None:
        """A snapshot taken in turns, among all else that happens, is the state of one moment."""
        saving = self.saving
        if saving is None:
            return
        fresh = None if saving.snapshot.spoiled else self.restored(saving)
        self.saving = None
        self.pipeline.state.end_save()
        if fresh is not None:
            assert fresh.counts() == saving.counts
            now, self.model = self.model, saving.model
            self.later = now.stored + now.expired  # a series may say that it has seats since then
            self.compare_all(fresh, fresh.leader_time)
            self.model, self.later = now, []

    def restored(self, saving: Saving) -> StateMachine:
        while saving.hand_over(1_000):
            pass
        fresh = StateMachine(self.pipeline.key, self.pipeline.capacity)
        fresh.restore(saving.snapshot.state, saving.arrays())
        fresh.use_runs(saving.runs)
        fresh.restore_identities(saving.snapshot.identities)
        return fresh

    @rule()
    def begin_flush(self) -> None:
        if self.saving is not None:
            return
        if self.flushing is None and self.pipeline.state.recent:
            self.flushing = self.pipeline.state.begin_flush()

    @rule()
    def add_flushing(self) -> None:
        if self.flushing is not None:
            self.filter.add(self.flushing)
            self.pipeline.state.filter_has_flushing()

    @rule()
    def end_flush(self) -> None:
        if self.flushing is not None:
            self.add_flushing()
            self.runs.append(run_of(self.flushing))
            self.pipeline.state.use_runs(self.runs)
            clear(self.pipeline.state.end_flush())
            self.flushing = None

    @rule()
    def begin_sweep(self) -> None:
        if not self.filter.sweeping:
            self.filter.begin(1)
            self.pipeline.state.use_filter(self.filter.arrays)

    @rule()
    def turn(self) -> None:
        if self.filter.sweeping:
            self.filter.fill(self.runs, self.flushing, max(0, self.model.horizon // DAY))
            if self.filter.move_edge():
                self.pipeline.state.use_filter(self.filter.arrays)

    @rule()
    def merge(self) -> None:
        if self.runs:
            day = max(0, self.model.horizon // DAY)
            merged = merge_of(self.runs, day)
            self.runs = [merged] if len(merged.entries) > ENTRIES_MARGIN else []
            self.pipeline.state.use_runs(self.runs)

    @rule()
    def evict(self) -> None:
        if self.saving is None:
            self.pipeline.state.evict()

    @rule()
    def replay(self) -> None:
        """The same log gives the same state on another machine, whatever housekeeping was done."""
        fresh, state = self.pipeline.replayed(), self.pipeline.state
        for name in ("accounts", "series", "events"):
            assert fresh.counts()[name] == state.counts()[name]
        assert fresh.registry.to_bytes() == state.registry.to_bytes()
        self.compare_all(fresh, state.leader_time)

    @invariant()
    def compare(self) -> None:
        if hasattr(self, "pipeline"):
            self.compare_all(self.pipeline.state, self.pipeline.state.leader_time)

    def compare_all(self, state: StateMachine, now: int) -> None:
        """Ask about a few accounts each time: all of them come round."""
        for code in VARIANTS:
            for named in ("current", "previous"):
                start, end = self.model.period(code, named, now)
                self.asked += 1
                account = ACCOUNTS[self.asked % len(ACCOUNTS)]
                self.compare_usage(state, code, start, end, account, self.asked % 3 == 0)
                self.compare_accounts(state, code, start, end)

    def has_seats(self, code: str, is_asked: Any) -> bool:
        return any(
            event.metric == code
            and event.operation != "none"
            and event.version.aggregation == "unique"
            and is_asked(event.account)
            for event in self.model.stored + self.model.expired + self.later
        )

    def compare_usage(
        self, state: StateMachine, code: str, start: int, end: int, account: str, subtree: bool
    ) -> None:
        version = self.model.version_at(code, end - 1)
        keys = version.dimensions[: self.asked % 3]
        filters = {key: [None, "eu"] for key in version.dimensions if self.asked % 4 == 1}
        question = Question(
            "usage",
            account,
            subtree,
            code,
            start,
            end,
            tuple((key, tuple(values)) for key, values in sorted(filters.items())),
            keys,
            whole_period=True,
        )
        partial = collected(state, question)

        def asked(other: str) -> bool:
            return oracle.below(other, account) if subtree else other == account

        if partial is None:
            assert self.has_seats(code, asked)
            return
        wanted = oracle.Question(code, start, end, filters, keys)
        answer = self.model.usage(account, wanted, subtree)
        entries = state.registry.versions(code)
        context = AnswerContext(CONTEXT_POSITION, state.horizon)
        try:
            result = answer_usage(question, entries, partial, context)
        except MetricVersionsDiffer:
            self.check_versions_differ(code, start, end, version)
            return
        for event in self.model.stored:
            if event.metric == code and start <= event.timestamp < end and asked(event.account):
                assert not self.differs(event, version)
        assert about_equal(result["value"], answer.value, version)
        assert result["count"] == answer.count
        assert result["newest_event"] == answer.newest_event
        assert result["expired"] == answer.expired
        found = {tuple(group["key"][key] for key in keys): group for group in result["groups"]}
        assert found.keys() == answer.groups.keys()
        for key, group in answer.groups.items():
            assert about_equal(found[key]["value"], group.value, version)
            assert found[key]["count"] == group.count

    def compare_accounts(self, state: StateMachine, code: str, start: int, end: int) -> None:
        question = Question("accounts", metric=code, start=start, end=end, whole_period=True)
        partial = collected(state, question)
        if partial is None:
            assert self.has_seats(code, lambda account: True)
            return
        version = self.model.version_at(code, end - 1)
        try:
            ranking = finish(answer_accounts(question, state.registry.versions(code), partial))
        except MetricVersionsDiffer:
            self.check_versions_differ(code, start, end, version)
            return
        wanted = self.model.accounts(oracle.Question(code, start, end))
        rows = {row["account"]: row for row in ranking.rows(0, len(ranking.accounts))}
        assert rows.keys() == wanted.keys()
        for account, answer in wanted.items():
            assert about_equal(rows[account]["value"], answer.value, version)
            assert rows[account]["count"] == answer.count

    def check_versions_differ(
        self, code: str, start: int, end: int, version: oracle.Metric
    ) -> None:
        held = self.model.stored + self.model.expired
        assert any(
            event.metric == code and start <= event.timestamp < end and self.differs(event, version)
            for event in held
        )

    def differs(self, event: oracle.Stored, version: oracle.Metric) -> bool:
        """Whether an event cannot be added up under the answering version."""
        own = event.version
        if (own.aggregation, own.unique_on) == (version.aggregation, version.unique_on):
            return False
        if "unique" in (own.aggregation, version.aggregation):
            return True
        # Behind the beginning of the next version it counts as whichever answers.
        versions = self.model.versions[event.metric]
        place = next(place for place, (_, one) in enumerate(versions) if one is own)
        return place + 1 == len(versions) or event.timestamp < versions[place + 1][0]


def collected(state: StateMachine, question: Question) -> PartialCells | None:
    """What the usage actor answers from: totals and balances."""
    partial = collect(state, question)
    balances = state.balances.partial(question, state.registry.versions(question.metric))
    if partial is None or balances is None:
        return partial
    if balances.seats is not None and len(balances.seats.rows):
        return None
    return joined([partial, balances])


def balance_of(held: list[oracle.Stored], moment: int) -> dict[str, Any]:
    """The balance of events of one account, metric and dimension tuple."""
    first = held[0]
    unique_on = first.version.unique_on
    members: dict[str, list[Any]] = {"none": [], "add": []}
    for event in held:
        member = text_of(event.value) if unique_on is None else event.properties.get(unique_on)
        if member is not None:
            members[event.operation].append(member)
    values = [event.value for event in held]
    balance: dict[str, Any] = {
        "account": first.account,
        "metric": first.metric,
        "dimensions": {
            key: first.dimension(key)
            for key in first.version.dimensions
            if first.dimension(key) is not None
        },
        "at": moment,
        "count": len(held),
        "sum": text_of(sum(values, Fraction(0))),
        "min": text_of(min(values)),
        "max": text_of(max(values)),
        "latest": text_of(values[-1]),
        "first": text_of(values[0]),
    }
    if first.version.aggregation == "unique":
        balance |= {"members": members["none"], "present": members["add"]}
    return balance


def text_of(value: Fraction) -> str:
    units = value * 10**9
    assert units.denominator == 1
    whole, part = divmod(abs(units.numerator), 10**9)
    return f"{'-' if value < 0 else ''}{whole}.{part:09d}"


def about_equal(text: str | None, exact: Fraction | None, metric: oracle.Metric) -> bool:
    """An average is rounded, half to even; everything else is exact."""
    if text is None or exact is None:
        return text is None and exact is None
    if metric.aggregation == "avg":
        digits = metric.decimals + 6
        exact = Fraction(round(exact * 10**digits), 10**digits)
    return Fraction(text) == exact


TestStateMachine = StateMachineAgainstModel.TestCase
TestStateMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
