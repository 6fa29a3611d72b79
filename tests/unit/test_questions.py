"""What a question means: its range, its windows, what it may filter and group by."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.questions.zone_files import transitions
from meterd.core.questions.question import Question, resolve_question
from meterd.core.questions.zones import HOUR
from meterd.core.state.registry import Registry
from meterd.protocol.body import pack
from meterd.protocol.errors import BadRequest, UnknownMetric
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.messages import check_request
from meterd.protocol.metric import MetricDefinition
from tests.support import periods as oracle
from tests.support.periods import DAY

NOW = 20_000 * DAY + 5 * HOUR
KOLKATA = {"kind": "month", "anchor_day": 31, "timezone": "Asia/Kolkata"}


def registry_of(*definitions: dict) -> Registry:
    registry = Registry()
    for place, fields in enumerate(definitions):
        definition = MetricDefinition.from_map({"code": "m", "aggregation": "sum"} | fields)
        zone = transitions(definition.period.timezone)
        registry.put(definition, zone, True, NOW - DAY + place)
    return registry


def ask(registry: Registry, kind: str = "usage", **body) -> Question:
    if kind == "usage":
        body = {"account": "a"} | body
    checked = check_request(kind, pack({"metric": "m"} | body))
    return resolve_question(kind, checked, registry, NOW, transitions)


periods = st.sampled_from(
    [
        {"kind": "hour"},
        {"kind": "day", "timezone": "America/Sao_Paulo"},
        {"kind": "week"},
        KOLKATA,
        {"kind": "quarter"},
        {"kind": "year", "timezone": "Pacific/Apia"},
        {"kind": "fixed", "duration": 7_200, "epoch": 5},
    ]
)


@settings(max_examples=60, deadline=None)
@given(periods, st.sampled_from(["current", "previous", "2024-02-29", "2018-11-04"]))
def test_a_named_period_is_the_oracle_s(period, named):
    question = ask(registry_of({"period": period}), period=named)
    expected = oracle.resolve(oracle.Period(**period), named, NOW)
    assert (question.start, question.end) == expected
    assert question.whole_period
    assert question.from_totals


def test_no_range_means_the_current_period():
    registry = registry_of({})
    assert ask(registry) == ask(registry, period="current")


def test_a_range_that_is_one_period_by_chance_is_one():
    registry = registry_of({})
    current = ask(registry)
    assert ask(registry, start=current.start, end=current.end).whole_period
    assert not ask(registry, start=current.start, end=current.end - 1).whole_period
    assert not ask(registry, start=I64_MIN, end=I64_MAX).whole_period


def test_totals_answer_only_when_all_versions_have_that_period():
    """An event may have been counted by any of them."""
    other = registry_of({"period": {"kind": "month"}}, {"period": {"kind": "day"}})
    assert not ask(other).whole_period
    assert ask(registry_of({"unit": "a"}, {"unit": "b"})).whole_period


def test_totals_do_not_answer_a_series():
    question = ask(registry_of({}), window="day")
    assert question.whole_period
    assert not question.from_totals


def test_windows_are_days_of_the_metric_s_zone_unless_another_is_named():
    registry = registry_of({"period": KOLKATA})
    asked = {"start": NOW - 3 * DAY, "end": NOW, "window": "day"}
    for zone, more in (("Asia/Kolkata", {}), ("Europe/Berlin", {"timezone": "Europe/Berlin"})):
        expected = oracle.windows("day", zone, asked["start"], asked["end"])
        edges = ask(registry, **asked, **more).edges
        assert list(edges) == [start for start, _ in expected] + [asked["end"]]
    with pytest.raises(BadRequest, match="timezone"):
        ask(registry, timezone="UTC")
    with pytest.raises(BadRequest, match="Nowhere"):
        ask(registry, window="day", timezone="Nowhere")


@pytest.mark.parametrize("where", ["filters", "group_by"])
def test_a_key_that_is_no_dimension_is_refused_with_those_that_are(where):
    registry = registry_of({"dimensions": ["region", "plan"]})
    body = {"filters": {"regoin": ["eu"]}} if where == "filters" else {"group_by": ["regoin"]}
    with pytest.raises(BadRequest, match=f"{where}: regoin .* region, plan"):
        ask(registry, **body)


def test_the_version_at_the_end_of_the_range_says_what_a_dimension_is():
    registry = registry_of({"dimensions": ["old"]}, {"dimensions": ["new"]})
    split = registry.find("m").effective_from
    before = {"start": split - 10, "end": split}
    after = {"start": split - 10, "end": split + 1}
    assert ask(registry, **before, group_by=["old"]).group_by == ("old",)
    assert ask(registry, **after, group_by=["new"]).group_by == ("new",)
    with pytest.raises(BadRequest):
        ask(registry, **after, group_by=["old"])


@pytest.mark.parametrize("kind", ["usage", "accounts", "events"])
def test_an_unknown_metric_is_named(kind):
    body = {"account": "a"} if kind == "events" else {}
    with pytest.raises(UnknownMetric, match="m"):
        ask(Registry(), kind, **body)


def test_a_deleted_metric_still_answers():
    registry = registry_of({})
    registry.delete("m")
    assert ask(registry).whole_period


def test_listings_have_no_range_of_their_own():
    registry = registry_of({})
    question = ask(registry, "events", account="a")
    assert (question.start, question.end) == (I64_MIN, I64_MAX)
    checked = check_request("feed", pack({}))
    feed = resolve_question("feed", checked, registry, NOW, transitions)
    assert (feed.account, feed.after) == ("", None)


@pytest.mark.parametrize("kind", ["usage", "accounts"])
def test_a_question_survives_the_way_to_the_query_actor(kind):
    registry = registry_of({"dimensions": ["k"]})
    body = {"filters": {"k": ["a", None]}}
    body |= {"window": "day", "group_by": ["k"]} if kind == "usage" else {"sort": "usage"}
    question = ask(registry, kind, **body)
    fields = question.to_map()
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}
    assert Question.from_map(lists) == question
