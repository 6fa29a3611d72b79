"""Answers read from log files, against the plain-Python model of the product."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.questions import feed, reading
from meterd.core.questions.answers import AnswerContext, answer_accounts, answer_usage
from meterd.core.questions.question import Question
from meterd.core.questions.zones import UTC
from meterd.core.state.registry import Registry
from meterd.protocol.limits import I64_MIN
from meterd.protocol.metric import MetricDefinition
from tests.support import model as oracle
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory, finish
from tests.support.periods import DAY, HOUR

NOW = 20_000 * DAY
SPAN = 6 * HOUR
ACCOUNTS = ("a", "a/x", "a/x/y", "a/xy", "ab", "ü/ß")
VALUES = ("", "eu", "us", "é" * 127)
CONTEXT = AnswerContext("7", I64_MIN)
SPLIT = NOW + SPAN // 2

event_fields = st.tuples(
    st.sampled_from(ACCOUNTS),
    st.integers(0, 12).map(lambda step: NOW + step * SPAN // 12),
    st.integers(-(10**6), 10**6) | st.sampled_from([2**63 - 1, -(2**63)]),
    st.sampled_from(["none", "none", "add", "remove"]),
    st.dictionaries(st.sampled_from(["region", "user", "other"]), st.sampled_from(VALUES)),
    st.booleans(),  # refused: in the log, but not stored
)
# Files: lists of records; each record a list of events.
logs = st.lists(
    st.lists(st.lists(event_fields, min_size=1, max_size=6), max_size=3), min_size=1, max_size=4
)


@st.composite
def worlds(draw):
    """A metric, perhaps in two versions with other decimals and dimensions, and a log."""
    aggregation = draw(st.sampled_from(oracle.AGGREGATIONS))
    unique_on = draw(st.sampled_from([None, "user"])) if aggregation == "unique" else None
    versions = [
        oracle.Metric(
            "m",
            aggregation,
            draw(st.sampled_from([0, 2])),
            draw(st.sampled_from([(), ("region",), ("user", "region")])),
            unique_on,
        )
        for _ in range(draw(st.integers(1, 2)))
    ]
    return versions, draw(logs)


class World:
    """The same events in the model and in a directory of log files."""

    def __init__(self, path: Path, versions: list[oracle.Metric], files) -> None:
        self.model = oracle.Model()
        self.registry = Registry()
        self.directory = LogDirectory(path)
        for version in versions:
            made = MetricDefinition.from_map(
                {
                    "code": "m",
                    "aggregation": version.aggregation,
                    "decimals": version.decimals,
                    "dimensions": list(version.dimensions),
                    "unique_on": version.unique_on,
                }
            )
            self.model.put_metric(version, SPLIT, replace=True)
            self.registry.put(made, UTC, True, SPLIT)
        self.count = 0
        for place, records in enumerate(files):
            for events in records:
                self.write(events)
            if place + 1 < len(files):
                self.directory.seal(segmented=place % 2 == 0)

    def expire(self, count: int) -> int:
        """Delete the oldest `count` full files, one by one; return the horizon."""
        horizon = NOW
        for number in range(1, min(count, self.directory.builder.file_number - 1) + 1):
            if number in self.directory.waiting:
                self.directory.make_segment(number)
            self.directory.files.refresh()
            (segment,) = self.directory.files.segments.chosen(number + 1, number - 1)
            horizon = max(horizon, segment.header.max_timestamp + 1)
            self.directory.delete([number], self.registry, horizon)
        self.model.expire(horizon)
        return horizon

    def write(self, events) -> None:
        logged, refused = [], set()
        for account, timestamp, units, operation, properties, is_refused in events:
            entry = self.registry.select("m", timestamp)
            self.count += 1
            logged.append(
                LoggedEvent(
                    account,
                    f"id-{self.count}",
                    entry.number,
                    units,
                    timestamp,
                    operation,
                    properties,
                )
            )
            if is_refused:
                refused.add(len(logged) - 1)
            else:
                self.store(logged[-1], entry.definition.decimals)
        self.directory.write(logged, refused)

    def store(self, event: LoggedEvent, decimals: int) -> None:
        """Enter an event into the model as it is, whatever its value."""
        stored = oracle.Stored(
            order=self.count,
            account=event.account,
            id=event.id,
            metric="m",
            value=Fraction(event.value, 10**decimals),
            timestamp=event.timestamp,
            operation=event.operation,
            properties=event.properties,
            version=self.model.version_at("m", event.timestamp),
        )
        self.model.stored.append(stored)
        self.model.identities[event.account, event.id] = stored

    def partial(self, question: Question):
        view = self.directory.view()
        return finish(reading.read_cells(view, question, self.registry))


@contextmanager
def world_of(drawn) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as path:
        yield World(Path(path), *drawn)


questions = st.tuples(
    st.integers(-1, 13).map(lambda step: NOW + step * SPAN // 12),
    st.integers(0, 14).map(lambda step: step * SPAN // 12),
    st.booleans(),
    st.sampled_from([None, "hour"]),
)


def number(text: str | None) -> Fraction | None:
    return None if text is None else Fraction(text)


def about_equal(text: str | None, exact: Fraction | None, metric: oracle.Metric) -> bool:
    """An average is rounded, half to even; everything else is exact."""
    if metric.aggregation == "avg" and exact is not None:
        digits = metric.decimals + 6
        exact = Fraction(round(exact * 10**digits), 10**digits)
    return number(text) == exact


@settings(max_examples=150, deadline=None)
@given(worlds(), questions, st.sampled_from(ACCOUNTS), st.data())
def test_usage_is_what_the_model_says(drawn, asked, account, data):
    """Any range, filter, grouping and window gives the model's numbers."""
    with world_of(drawn) as world:
        start, length, subtree, window = asked
        end = start + length
        version = world.model.version_at("m", end - 1)
        keys = st.sets(st.sampled_from(version.dimensions or ("",)), max_size=2)
        group_by = tuple(sorted(data.draw(keys) & set(version.dimensions)))
        filters = {
            key: data.draw(st.lists(st.sampled_from([None, *VALUES]), min_size=1, max_size=2))
            for key in sorted(data.draw(keys) & set(version.dimensions))
        }
        wanted = oracle.Question("m", start, end, filters, group_by, window)
        answer = world.model.usage(account, wanted, subtree)
        edges = [at for at, _, _ in answer.series] + [end] if answer.series else []
        question = Question(
            "usage",
            account,
            subtree,
            "m",
            start,
            end,
            tuple((key, tuple(values)) for key, values in sorted(filters.items())),
            group_by,
            tuple(edges),
        )
        partial = world.partial(question)
        result = answer_usage(question, world.registry.versions("m"), partial, CONTEXT)
        assert about_equal(result["value"], answer.value, version)
        assert result["count"] == answer.count
        assert result["newest_event"] == answer.newest_event
        if version.aggregation == "avg" and answer.count:
            assert Fraction(*map(int, result["fraction"])) == answer.value
        found = {tuple(group["key"][key] for key in group_by): group for group in result["groups"]}
        assert found.keys() == answer.groups.keys()
        for key, group in answer.groups.items():
            assert about_equal(found[key]["value"], group.value, version)
            assert found[key]["count"] == group.count
        assert [point["start"] for point in result["series"]] == [at for at, _, _ in answer.series]
        for point, (_, value, count) in zip(result["series"], answer.series, strict=True):
            assert about_equal(point["value"], value, version)
            assert point["count"] == count


@settings(max_examples=100, deadline=None)
@given(worlds(), questions, st.sampled_from(ACCOUNTS), st.integers(1, 3), st.data())
def test_deleted_files_change_no_answer_from_the_horizon_on(drawn, asked, account, count, data):
    """Members that were added in files that are gone still count; earlier ranges are refused."""
    with world_of(drawn) as world:
        start, length, subtree, _ = asked
        horizon = world.expire(count)
        start = max(start, horizon)
        end = start + length
        version = world.model.version_at("m", end - 1)
        group_by = version.dimensions if data.draw(st.booleans()) else ()
        wanted = oracle.Question("m", start, end, group_by=group_by)
        question = Question("usage", account, subtree, "m", start, end, group_by=group_by)
        entries = world.registry.versions("m")
        result = answer_usage(question, entries, world.partial(question), CONTEXT)
        answer = world.model.usage(account, wanted, subtree)
        assert about_equal(result["value"], answer.value, version)
        assert result["count"] == answer.count
        found = {tuple(row["key"].values()): row["value"] for row in result["groups"]}
        assert found.keys() == answer.groups.keys()
        for key, group in answer.groups.items():
            assert about_equal(found[key], group.value, version)
        everyone = replace(question, kind="accounts", account="", subtree=False, group_by=())
        ranking = finish(answer_accounts(everyone, entries, world.partial(everyone)))
        amounts = {row["account"]: row["value"] for row in ranking.rows(0, len(ACCOUNTS))}
        model_accounts = world.model.accounts(replace(wanted, group_by=()))
        assert amounts.keys() == model_accounts.keys()
        for name, total in model_accounts.items():
            assert about_equal(amounts[name], total.value, version)


@settings(max_examples=60, deadline=None)
@given(worlds(), questions, st.sampled_from(["account", "usage"]))
def test_an_invoice_run_has_every_account_once_in_order(drawn, asked, sort):
    """All pages together are the model's accounts, each with its usage."""
    with world_of(drawn) as world:
        start, length, *_ = asked
        end = start + length
        question = Question("accounts", metric="m", start=start, end=end, sort=sort)
        version = world.model.version_at("m", end - 1)
        entries = world.registry.versions("m")
        ranking = finish(answer_accounts(question, entries, world.partial(question)))
        wanted = world.model.accounts(oracle.Question("m", start, end))
        rows = [row for first in range(0, len(ACCOUNTS), 2) for row in ranking.rows(first, 2)]
        assert {row["account"] for row in rows} == wanted.keys()
        assert len(rows) == len(wanted)
        for row in rows:
            assert about_equal(row["value"], wanted[row["account"]].value, version)
            assert row["count"] == wanted[row["account"]].count
        names = [row["account"] for row in rows]
        order = (
            sorted(wanted)
            if sort == "account"
            else sorted(wanted, key=lambda name: (-wanted[name].value, name))
        )
        assert names == order


@settings(max_examples=60, deadline=None)
@given(worlds(), questions, st.sampled_from(ACCOUNTS), st.integers(1, 5))
def test_pages_of_events_are_the_events_of_the_model(drawn, asked, account, limit):
    """Following the cursors lists every stored event once, in order, and ends."""
    with world_of(drawn) as world:
        start, length, subtree, _ = asked
        question = Question("events", account, subtree, "", start, start + length, limit=limit)
        listed, pages = [], 0
        while True:
            steps = reading.read_events(world.directory.view(), question, world.registry, I64_MIN)
            page = finish(steps)
            listed += page["events"]
            pages += 1
            if page["next"] is None:
                break
            assert len(page["events"]) == limit
            question = replace(question, after=page["next"])
        wanted = world.model.events(account, start, start + length, None, subtree)
        assert [event["id"] for event in listed] == [event.id for event in wanted]
        for event, stored in zip(listed, wanted, strict=True):
            assert Fraction(event["value"]) == stored.value
            assert event["properties"] == stored.properties
            assert (event["account"], event["timestamp"]) == (stored.account, stored.timestamp)
            assert (event["operation"], event["metric"]) == (stored.operation, "m")


@settings(max_examples=60, deadline=None)
@given(worlds(), st.sampled_from(["", *ACCOUNTS]), st.integers(1, 5), st.data())
def test_a_feed_gives_every_stored_event_once(drawn, account, limit, data):
    """Also events that are stored while the feed is followed."""
    with world_of(drawn) as world:
        question = Question("feed", account, limit=limit)
        seen: list[str] = []
        late = data.draw(st.lists(event_fields, min_size=1, max_size=3))
        while True:
            steps = feed.read_feed(world.directory.view(), question, world.registry, I64_MIN)
            page = finish(steps)
            seen += [event["id"] for event in page["events"]]
            at_end = question.after == page["next"]
            question = replace(question, after=page["next"])
            if at_end:
                if not late:
                    break
                world.write(late)
                late = []
        stored = [event.id for event in world.model.stored if account in ("", event.account)]
        assert sorted(seen) == sorted(stored)
