"""The metric registry: what a command changes, and what a timestamp selects."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.questions.zones import UTC
from meterd.core.state import registry as module
from meterd.core.state.registry import Registry
from meterd.protocol.errors import MetricConflict, TooManyMetrics, UnknownMetric
from meterd.protocol.limits import I64_MIN
from meterd.protocol.metric import MetricDefinition
from tests.support import model as oracle

BERLIN = (*UTC, (1_000, 3600))


def definition(code: str = "m", aggregation: str = "sum", **more) -> MetricDefinition:
    return MetricDefinition.from_map({"code": code, "aggregation": aggregation} | more)


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    assert made.put(definition(), UTC, False, 100) == "created"
    return made


def test_the_first_version_reaches_back_for_ever(registry):
    assert registry.select("m", I64_MIN).number == 1
    assert registry.find("m").effective_from == I64_MIN


def test_the_same_definition_changes_nothing(registry):
    before = registry.to_bytes()
    assert registry.put(definition(), UTC, False, 200) == "unchanged"
    assert registry.put(definition(), UTC, True, 200) == "unchanged"
    assert registry.to_bytes() == before


def test_another_definition_needs_replace_and_changes_nothing_without(registry):
    before = registry.to_bytes()
    with pytest.raises(MetricConflict, match="m is registered"):
        registry.put(definition(unit="EUR"), UTC, False, 200)
    assert registry.to_bytes() == before
    assert registry.put(definition(unit="EUR"), UTC, True, 200) == "replaced"
    assert [entry.version for entry in registry.versions("m")] == [1, 2]


def test_new_rules_of_a_time_zone_are_taken_over_with_replace_only(registry):
    assert registry.put(definition(), BERLIN, False, 200) == "unchanged"
    assert registry.put(definition(), BERLIN, True, 200) == "replaced"
    assert registry.find("m").transitions == BERLIN


def test_a_timestamp_selects_the_version(registry):
    registry.put(definition(aggregation="max"), UTC, True, 200)
    assert registry.select("m", 199).number == 1
    assert registry.select("m", 200).number == 2
    assert registry.select("other", 0) is None


def test_effective_times_rise_even_when_clocks_do_not(registry):
    registry.put(definition(aggregation="max"), UTC, True, 200)
    registry.put(definition(aggregation="min"), UTC, True, 200)
    assert [entry.effective_from for entry in registry.versions("m")] == [I64_MIN, 200, 201]


def test_a_deleted_metric_takes_no_events_and_keeps_its_versions(registry):
    registry.delete("m")
    assert registry.select("m", 50) is None
    assert registry.find("m").deleted
    assert registry.entry(1).code == "m"
    with pytest.raises(UnknownMetric):
        registry.delete("m")
    assert registry.put(definition(), UTC, False, 300) == "created"
    assert registry.select("m", 50).number == 1
    assert registry.select("m", 300).number == 2


def test_unknown_numbers_and_codes_are_named(registry):
    for number in (0, 2, -1):
        with pytest.raises(UnknownMetric, match=str(number)):
            registry.entry(number)
    with pytest.raises(UnknownMetric, match="other"):
        registry.delete("other")
    assert registry.find("other") is None
    assert registry.versions("other") == []


def test_the_registry_is_bounded(registry, monkeypatch):
    monkeypatch.setattr(module, "ENTRIES_MAX", 2)
    registry.put(definition("n"), UTC, False, 1)
    before = registry.to_bytes()
    with pytest.raises(TooManyMetrics):
        registry.put(definition("o"), UTC, False, 1)
    assert registry.put(definition("n"), UTC, False, 1) == "unchanged"
    assert registry.to_bytes() == before


commands = st.lists(
    st.tuples(
        st.sampled_from(["put", "replace", "delete"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["sum", "max"]),
        st.sampled_from([UTC, BERLIN]),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(commands)
def test_any_history_gives_the_model_s_versions_and_the_same_bytes(history):
    """The bytes are read back and written again; selection is compared at every moment."""
    registry, model = Registry(), oracle.Model()
    now = 0
    for command, code, aggregation, _ in history:
        now += 10
        metric = oracle.Metric(code, aggregation)
        try:
            if command == "delete":
                model.delete_metric(code)
                registry.delete(code)
            else:
                expected = model.put_metric(metric, now, command == "replace")
                put = definition(code, aggregation)
                assert registry.put(put, UTC, command == "replace", now) == expected
        except oracle.Refused as refused:
            with pytest.raises((MetricConflict, UnknownMetric)) as error:
                if command == "delete":
                    registry.delete(code)
                else:
                    registry.put(definition(code, aggregation), UTC, False, now)
            assert error.value.code == refused.args[0]
    packed = registry.to_bytes()
    again = Registry.from_bytes(packed)
    assert again.to_bytes() == packed
    assert again.entries == registry.entries
    for moment in range(-5, now + 15, 5):
        for code in "ab":
            entry = again.select(code, moment)
            known = code in model.versions and code not in model.deleted
            assert (entry is not None) == known
            if entry is not None:
                version = model.version_at(code, moment)
                assert entry.definition.aggregation == version.aggregation


def test_tables_of_transitions_are_shared_in_the_bytes():
    """Ten thousand metrics in one zone must not make megabytes."""
    registry = Registry()
    long = (*UTC, *((moment, 0) for moment in range(1_000, 2_000)))
    registry.put(definition("a"), long, False, 1)
    one = len(registry.to_bytes())
    registry.put(definition("b"), long, False, 2)
    assert len(registry.to_bytes()) < one + 600


def test_bytes_of_a_later_format_are_refused():
    packed = Registry().to_bytes().replace(b"\xa6format\x01", b"\xa6format\x02")
    with pytest.raises(ValueError, match="2"):
        Registry.from_bytes(packed)
