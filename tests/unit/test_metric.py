"""Metric definitions: what one may say, what it means when it does not, and what is refused."""

import pytest

from meterd.protocol.errors import BadRequest, UnsupportedAggregation, UnsupportedThresholds
from meterd.protocol.metric import AGGREGATIONS, MetricDefinition, Period


def define(**changed):
    return MetricDefinition.from_map({"code": "api_calls", "aggregation": "sum"} | changed)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_values_come_in_millionths_unless_told_otherwise(aggregation):
    assert define(aggregation=aggregation).decimals == 6
    assert define(aggregation=aggregation, decimals=3).decimals == 3


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"aggregation": "unique", "unique_on": "user"},
        {"dimensions": ["region", "ü"], "unit": "GB", "description": "d" * 1024},
        {"period": {"kind": "month", "anchor_day": 31, "timezone": "Europe/Berlin"}},
        {"period": {"kind": "fixed", "duration": 60, "epoch": -5}},
        {"version": 3, "effective_from": 7, "deleted": True},
    ],
)
def test_a_definition_comes_back_from_its_map(changed):
    definition = define(**changed)
    assert MetricDefinition.from_map(definition.to_map()) == definition
    hash(definition)


def test_nil_means_left_out():
    keys = define().to_map().keys() - {"code", "aggregation"}
    assert define(**dict.fromkeys(keys)) == define()


def test_a_period_may_be_its_kind_alone():
    assert define(period="day").period == Period(kind="day")
    assert Period(kind="day").to_map() == {"kind": "day", "timezone": "UTC"}


def test_what_the_node_added_is_no_content():
    registered = define(version=2, effective_from=5, deleted=True)
    assert registered.same_content(define())
    assert not registered.same_content(define(unit="calls"))


@pytest.mark.parametrize("aggregation", ["time_weighted", "percentile"])
def test_known_aggregations_that_are_not_computed_have_their_own_code(aggregation):
    with pytest.raises(UnsupportedAggregation):
        define(aggregation=aggregation)


def test_thresholds_have_their_own_code():
    assert define(thresholds=[]) == define()
    with pytest.raises(UnsupportedThresholds):
        define(thresholds=[{"code": "x", "value": 1}])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"code": "Upper"}, "code"),
        ({"code": "m\n"}, "code"),
        ({"code": ""}, "code"),
        ({"code": "m" * 64}, "code"),
        ({"code": "\udcff"}, "code"),
        ({"code": None}, "code"),
        ({"aggregation": "total"}, "aggregation"),
        ({"aggregation": []}, "aggregation"),
        ({"decimals": 10}, "decimals"),
        ({"decimals": -1}, "decimals"),
        ({"decimals": True}, "decimals"),
        ({"unit": 5}, "unit"),
        ({"unit": "u" * 64}, "unit"),
        ({"unit": "\udcff"}, "unit"),
        ({"description": "d" * 1025}, "description"),
        ({"dimensions": "region"}, "dimensions"),
        ({"dimensions": ["a"] * 2}, "twice"),
        ({"dimensions": [f"d{number}" for number in range(9)]}, "dimensions"),
        ({"dimensions": [""]}, "dimensions"),
        ({"dimensions": ["\udcff"]}, "dimensions"),
        ({"dimensions": ["\ud800"]}, "dimensions"),
        ({"dimensions": [5]}, "dimensions"),
        ({"unique_on": "user"}, "unique_on"),
        ({"aggregation": "unique", "unique_on": ""}, "unique_on"),
        ({"period": "fortnight"}, "period.kind"),
        ({"period": 5}, "period"),
        ({"period": {"kind": "day", "anchor_day": 1}}, "period.anchor_day"),
        ({"period": {"anchor_day": 32}}, "period.anchor_day"),
        ({"period": {"kind": "fixed"}}, "period.duration"),
        ({"period": {"kind": "fixed", "duration": 59}}, "period.duration"),
        ({"period": {"kind": "month", "duration": 60}}, "period.duration"),
        ({"period": {"kind": "fixed", "duration": 60, "epoch": 2**63}}, "period.epoch"),
        ({"period": {"timezone": "../etc/passwd"}}, "period.timezone"),
        ({"period": {"timezone": "Europe/../x"}}, "period.timezone"),
        ({"period": {"timezone": ""}}, "period.timezone"),
        ({"period": {"zone": "UTC"}}, "'zone'"),
        ({"version": -1}, "version"),
        ({"effective_from": 2**63}, "effective_from"),
        ({"deleted": 1}, "deleted"),
        ({"agregation": "sum"}, "'aggregation'"),
    ],
)
def test_a_wrong_field_is_named(changed, named):
    with pytest.raises(BadRequest, match=named):
        define(**changed)


def test_a_definition_is_a_map():
    with pytest.raises(BadRequest, match="map"):
        MetricDefinition.from_map([])


@pytest.mark.parametrize(("unit", "decimals"), [("bytes", 0), ("calls", 6), ("", 6)])
def test_bytes_have_no_parts(unit: str, decimals: int):
    fields = {"code": "out", "aggregation": "sum", "unit": unit}
    assert MetricDefinition.from_map(fields).decimals == decimals
    assert MetricDefinition.from_map(fields | {"decimals": 3}).decimals == 3
