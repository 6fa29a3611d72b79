"""Questions: the defaults that are filled in, and that a wrong or unknown field is named."""

import pytest

from meterd.protocol.body import pack
from meterd.protocol.errors import BadRequest, RemoteProtocolError, UnsupportedAggregation
from meterd.protocol.messages import KINDS, check_request, kind_of
from meterd.protocol.metric import MetricDefinition
from tests.support.wire import compress_body

ASKED = {"account": "acme", "metric": "api_calls"}


def check(kind, **body):
    return check_request(kind, pack(body))


def test_the_table_says_who_serves_what():
    actors = {name: kind.actor for name, kind in KINDS.items()}
    assert actors == {
        "hello": "router",
        "map": "router",
        "ingest": "ingest",
        "metric_put": "ingest",
        "metric_delete": "ingest",
        "account_erase": "ingest",
        "balance_import": "ingest",
        "node_add": "ingest",
        "node_recover": "ingest",
        "node_state": "ingest",
        "plan_move": "ingest",
        "cluster_status": "replication",
        "leader_transfer": "replication",
        "metric_list": "usage",
        "metric_show": "usage",
        "usage": "usage",
        "accounts": "usage",
        "events": "usage",
        "feed": "usage",
        "disk_status": "retention_sweeper",
        "disk_free_reserve": "retention_sweeper",
        "status": "usage",
        "rejected": "retention_sweeper",
        "checkpoint": "usage",
        "retention_show": "retention_sweeper",
        "retention_set": "usage",
        "clock_accept": "usage",
        "retention_run": "retention_sweeper",
        "wal_status": "retention_sweeper",
        "wal_archive": "retention_sweeper",
        "backup_create": "retention_sweeper",
        "backup_hold": "retention_sweeper",
        "backup_release": "retention_sweeper",
        "backup_report": "retention_sweeper",
        "compact": "retention_sweeper",
        "compact_status": "retention_sweeper",
        "job_list": "retention_sweeper",
        "job_show": "retention_sweeper",
        "job_cancel": "retention_sweeper",
        "health": "metrics",
        "metrics": "metrics",
    }


def test_an_unknown_kind_is_named_with_the_nearest():
    with pytest.raises(RemoteProtocolError, match="'usage'") as caught:
        kind_of("usages")
    assert caught.value.code == "unknown_kind"


def test_usage_defaults_to_the_current_period():
    assert check("usage", **ASKED) == {
        "account": "acme",
        "metric": "api_calls",
        "period": "current",
        "start": None,
        "end": None,
        "filters": {},
        "group_by": (),
        "window": None,
        "timezone": None,
        "subtree": False,
        "consistency": "exact",
    }


def test_defaults_are_not_shared_between_requests():
    check("usage", **ASKED)["filters"]["region"] = ("eu",)
    assert check("usage", **ASKED)["filters"] == {}


def test_fields_come_in_the_form_the_node_works_with():
    asked = check(
        "usage",
        account=42,
        metric="m",
        start=-5,
        end=5,
        filters={"region": ["eu", None]},
        group_by=["region"],
        window="day",
        timezone="Europe/Berlin",
        subtree=True,
    )
    assert asked == {
        "account": "42",
        "metric": "m",
        "period": None,
        "start": -5,
        "end": 5,
        "filters": {"region": ("eu", None)},
        "group_by": ("region",),
        "window": "day",
        "timezone": "Europe/Berlin",
        "subtree": True,
        "consistency": "exact",
    }


@pytest.mark.parametrize("period", ["current", "previous", "2024-02-29"])
def test_periods_are_words_or_dates(period):
    assert check("usage", **ASKED, period=period)["period"] == period


def test_pages_have_a_size_and_begin_at_the_beginning():
    for kind, body in (("accounts", {"metric": "m"}), ("events", {"account": "a"}), ("feed", {})):
        assert check(kind, **body)["limit"] == 1_000
        assert check(kind, **body)["after"] is None
    assert check("rejected", limit=10_000, after="c")["after"] == "c"


def test_events_may_be_bounded_on_one_side():
    assert check("events", account="a", start=5)["end"] is None


def test_metric_put_gives_a_definition():
    checked = check("metric_put", code="m", aggregation="count", replace=True)
    assert checked == {
        "definition": MetricDefinition.from_map({"code": "m", "aggregation": "count"}),
        "replace": True,
    }
    with pytest.raises(UnsupportedAggregation):
        check("metric_put", code="m", aggregation="percentile")
    with pytest.raises(UnsupportedAggregation):
        check("metric_put", code="m", aggregation="percentile", q="0.95", sample="5m")
    with pytest.raises(BadRequest, match="missing"):
        check("metric_put", code="m")


def test_a_compressed_question_is_a_question():
    body = pack(ASKED)
    assert check_request("usage", compress_body(body), len(body)) == check("usage", **ASKED)


@pytest.mark.parametrize(
    ("kind", "body", "named"),
    [
        ("usage", {}, "account: missing"),
        ("usage", {"account": None, "metric": "m"}, "account: missing"),
        ("usage", {"account": "a"}, "metric: missing"),
        ("usage", {**ASKED, "acount": 1}, "'account'"),
        ("usage", {**ASKED, "account": ""}, "account: empty"),
        ("usage", {**ASKED, "account": "a" * 129}, "account: 129 bytes"),
        ("usage", {**ASKED, "account": True}, "account"),
        ("usage", {**ASKED, "account": "\udcff"}, "account: not UTF-8"),
        ("usage", {**ASKED, "metric": "M"}, "metric"),
        ("usage", {**ASKED, "period": "next"}, "period"),
        ("usage", {**ASKED, "period": "2026-02-30"}, "period"),
        ("usage", {**ASKED, "period": "20260203"}, "period"),
        ("usage", {**ASKED, "period": "2026-W01-1"}, "period"),
        ("usage", {**ASKED, "period": "current", "start": 1, "end": 2}, "period"),
        ("usage", {**ASKED, "start": 1}, "together"),
        ("usage", {**ASKED, "end": 1}, "together"),
        ("usage", {**ASKED, "start": 2, "end": 2}, "end"),
        ("usage", {**ASKED, "start": 2**63, "end": 2}, "start"),
        ("usage", {**ASKED, "start": "1", "end": 2}, "start"),
        ("usage", {**ASKED, "filters": ["region"]}, "filters"),
        ("usage", {**ASKED, "filters": {"region": "eu"}}, "filters"),
        ("usage", {**ASKED, "filters": {"region": []}}, "filters"),
        ("usage", {**ASKED, "filters": {"region": ["v" * 256]}}, "filters"),
        ("usage", {**ASKED, "filters": {"region": [5]}}, "filters"),
        ("usage", {**ASKED, "filters": {"": ["eu"]}}, "filters"),
        ("usage", {**ASKED, "filters": {f"k{n}": ["eu"] for n in range(9)}}, "filters"),
        ("usage", {**ASKED, "group_by": "region"}, "group_by"),
        ("usage", {**ASKED, "group_by": ["a", "a"]}, "group_by"),
        ("usage", {**ASKED, "window": "minute"}, "window"),
        ("usage", {**ASKED, "timezone": "/etc"}, "timezone"),
        ("usage", {**ASKED, "subtree": 1}, "subtree"),
        ("accounts", {"metric": "m", "sort": "name"}, "sort"),
        ("accounts", {"metric": "m", "limit": 0}, "limit"),
        ("accounts", {"metric": "m", "limit": 10_001}, "limit"),
        ("accounts", {"metric": "m", "after": "c" * 1_025}, "after"),
        ("events", {"account": "a", "start": 5, "end": 5}, "end"),
        ("events", {"account": "a", "period": "current"}, "'period'"),
        ("metric_show", {"code": "M"}, "code"),
        ("metric_put", {"code": "m", "aggregation": "sum", "version": 1}, "'version'"),
        (
            "metric_put",
            {"code": "m", "aggregation": "sum", "effective_from": 1},
            "'effective_from'",
        ),
        ("metric_put", {"code": "m", "aggregation": "sum", "replace": "yes"}, "replace"),
        ("metrics", {"filter": "f" * 257}, "filter"),
        ("hello", {"x": 1}, "'x'"),
    ],
)
def test_a_wrong_field_is_named(kind, body, named):
    with pytest.raises(BadRequest, match=named):
        check(kind, **body)


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x90", b"\xff\xff", b"\x81\x01\x02"])
def test_a_body_that_is_no_map_is_malformed(body):
    with pytest.raises(RemoteProtocolError) as caught:
        check_request("usage", body)
    assert caught.value.code == "malformed"


ADDRESSES = ("node9:8001", "node-9.internal:8001", "10.0.0.9:1", "[::1]:8001", "[fe80::1%eth0]:9")
WRONG_ADDRESSES = (
    "http://n:8001",
    "n/x:8001",
    "*:8001",
    "n,m:8001",
    "n;m:8001",
    "_n:8001",
    "[::1:80",
    "[fe80::1%a b]:8001",
    "[fe80::1%\u00e9]:8001",
    "[fe80::1%]:8001",
)


@pytest.mark.parametrize("address", [*ADDRESSES, *WRONG_ADDRESSES, "::1:8001", ":8001", "-:1"])
def test_a_node_is_where_everybody_can_connect_to(address):
    """It becomes a part of the state of all nodes, and each of them connects to it."""
    fields = {"node": 9, "peer_address": "n9:8001", "client_address": "n9:7001", "directory": ""}
    for name in ("peer_address", "client_address"):
        body = pack(fields | {name: address})
        if address in ADDRESSES:
            assert check_request("node_add", body)[name] == address
        else:
            with pytest.raises(BadRequest, match=name):
                check_request("node_add", body)
