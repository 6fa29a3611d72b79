"""What a client makes of values: events, moments, partitions, columns, results."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.client import questions
from meterd.client.batches import ColumnSource, EventSource, compact_ids, ingest_calls, take
from meterd.client.connections import check_address
from meterd.client.events import Event, make_id
from meterd.client.partitions import PartitionMap, partition_of, root_of, xxh64
from meterd.client.results import Usage
from meterd.client.session import Unsendable
from meterd.client.times import exact_value, to_nanoseconds
from meterd.commands.moments import parse_moment
from meterd.core.staging import HEAP_SIZE_MAX
from meterd.protocol.body import unpack
from meterd.protocol.columns import ColumnInput, decode_events, encode_columns
from meterd.protocol.errors import BAD_METRIC, BAD_PROPERTIES, BAD_VALUE, LocalProtocolError
from meterd.protocol.event_columns import is_utf8, text_column
from meterd.protocol.limits import ACCOUNT_SIZE_MAX, BODY_SIZE_MAX, ID_SIZE_MAX
from tests.support.wire import rows_of

NEW_YEAR = 1_767_225_600_000_000_000  # 2026-01-01 UTC


def asked_by(plan) -> dict:
    """The body of the first request of a plan."""
    return unpack(next(plan).make_call().body)


def test_every_question_about_events_takes_a_consistency() -> None:
    local = {"consistency": "local"}
    assert asked_by(questions.usage("acme", "m", local))["consistency"] == "local"
    for listing in (
        questions.accounts("m", local),
        questions.events("acme", local),
        questions.feed(None, None, local),
    ):
        assert asked_by(listing.page(None, 0))["consistency"] == "local"


def test_a_local_answer_says_how_old_it_is() -> None:
    answer = dict.fromkeys(("account", "metric", "aggregation", "unit", "position"), "")
    answer |= {"start": 0, "end": 1, "value": "1", "count": 1, "newest_event": 0, "expired": False}
    assert Usage.from_answer(answer).as_of is None
    assert Usage.from_answer(answer | {"as_of": NEW_YEAR}).as_of == NEW_YEAR


def test_thresholds_of_a_metric_are_sent() -> None:
    thresholds = [{"code": "half", "value": "50"}]
    body = asked_by(questions.put_metric("m", "sum", {"thresholds": thresholds}))
    assert body["thresholds"] == thresholds


@pytest.mark.parametrize(
    ("text", "hashed"),
    [
        # As published with XXH64 and by python-xxhash.
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"xxhash", 3665147885093898016),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_xxh64_gives_the_published_hashes(text: bytes, hashed: int) -> None:
    assert xxh64(text) == hashed


def test_accounts_of_one_root_share_a_partition() -> None:
    assert root_of("acme/team/key") == "acme"
    assert partition_of("acme/team/key") == partition_of("acme") == xxh64(b"acme") % 256


def test_a_map_knows_the_leader_of_an_account_only_where_there_is_a_choice() -> None:
    answer = {"version": 1, "nodes": {"1": "a:1", "2": "b:1"}, "leaders": [1, 2] * 128}
    known = PartitionMap(answer)
    for account in ("acme", "acme/x", "émile"):
        assert known.leader_of(account) == ("a:1", "b:1")[partition_of(account) % 2]
    assert PartitionMap(answer | {"nodes": {"1": "a:1"}}).leader_of("acme") is None


def test_an_id_is_a_version_7_uuid_of_its_millisecond() -> None:
    made = uuid.UUID(make_id(NEW_YEAR + 999_999))
    assert made.version == 7 and made.variant == uuid.RFC_4122
    assert made.int >> 80 == NEW_YEAR // 1_000_000
    assert str(made) == str(made).lower()
    assert len({make_id(NEW_YEAR) for _ in range(1_000)}) == 1_000


def test_an_event_gets_time_and_id_when_it_is_made() -> None:
    before = to_nanoseconds(datetime.now(UTC) - timedelta(seconds=5))
    event = Event(42, "api_calls")
    assert event.account == "42" and event.value == 1 and event.operation == "none"
    assert before < event.timestamp < before + 60_000_000_000
    assert event.id == event.id and event.id != Event(42, "api_calls").id


def test_equal_events_are_equal() -> None:
    one, same = (Event("a", "m", "1.5", 7, "i", "add", {"k": "v"}) for _ in range(2))
    assert one == same and hash(one) == hash(same) and eval(repr(one)) == one
    assert one != Event("a", "m", "1.5", 8, "i", "add", {"k": "v"})


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"value": 0.1}, TypeError, "float, which is not exact"),
        ({"value": True}, TypeError, "bool"),
        ({"value": Decimal("NaN")}, ValueError, "64 bits"),
        ({"value": Decimal("1E+999999")}, ValueError, "64 bits"),
        ({"account": 1.5}, TypeError, "neither text nor an integer"),
        ({"account": None}, TypeError, "neither text nor an integer"),
        ({"metric": 7}, TypeError, "is not text"),
        ({"id": 7}, TypeError, "is not text"),
        ({"operation": "set"}, ValueError, "none, add, remove"),
        ({"properties": {"k": 1}}, TypeError, "keys and values are text"),
        ({"timestamp": 1.5}, TypeError, "is no time"),
        ({"timestamp": datetime(2026, 1, 1)}, ValueError, "no time zone"),
        ({"timestamp": "yesterday"}, ValueError, "isoformat"),
        ({"timestamp": "2026-01-01T00:00:00.0123456789Z"}, ValueError, "finer than"),
    ],
)
def test_an_event_that_cannot_be_sent_cannot_be_made(
    fields: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Event(**({"account": "a", "metric": "m"} | fields))


@pytest.mark.parametrize(
    "moment",
    [
        NEW_YEAR,
        np.int64(NEW_YEAR),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5.5))),
        "2026-01-01",
        "2026-01-01T00:00",
        "2026-01-01T00:00:00Z",
        "2026-01-01T01:00:00.000000000+01:00",
    ],
)
def test_moments_mean_the_same_in_every_form(moment: object) -> None:
    assert to_nanoseconds(moment) == NEW_YEAR


@given(st.integers(-(2**62), 2**62))
def test_iso_text_keeps_nanoseconds(moment: int) -> None:
    seconds, fraction = divmod(moment, 10**9)
    whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert to_nanoseconds(f"{whole:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z") == moment


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**18), max_value=10**18))
def test_a_decimal_keeps_its_value(value: Decimal) -> None:
    if value == 0 or abs(value.adjusted()) <= 40:
        assert Decimal(exact_value(value)) == value


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "host:", ":7001", "host:0", "host:70000", "", "::1:7001"),
        *("bad host:7001", "*:7001", "höst:7001", "host:7\u0661", "tcp://*:7001", "ipc://x:7001"),
        "[fe80::1%a b]:7001",
    ],
)
def test_an_address_needs_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        check_address(address)


def test_an_address_may_name_what_it_goes_over() -> None:
    assert check_address("tcp://[::1]:7001") == check_address("[::1]:7001") == "[::1]:7001"


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
events = st.builds(
    Event,
    account=texts | st.integers(0, 99),
    metric=st.sampled_from(["api_calls", "bytes"]),
    value=st.integers(-(2**63), 2**63 - 1) | st.decimals("-9.99", "9.99", places=2),
    timestamp=st.integers(-(2**63), 2**63 - 1),
    id=st.none() | texts,
    operation=st.sampled_from(["none", "add", "remove"]),
    properties=st.dictionaries(texts, texts, max_size=3),
)


def expected_row(event: Event) -> dict[str, object]:
    text = str(event.value)
    fraction = text.partition(".")[2].rstrip("0")
    return {
        "account": event.account.encode(),
        "metric": event.metric.encode(),
        "value": (int(Decimal(text).scaleb(len(fraction))), len(fraction)),
        "timestamp": event.timestamp,
        "operation": ("none", "add", "remove").index(event.operation),
        "properties": {key.encode(): text.encode() for key, text in event.properties.items()},
        "reason": 0,
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(events, min_size=1, max_size=12), st.integers(1, 5), st.booleans())
def test_events_arrive_as_they_were_made(made: list[Event], size: int, routed: bool) -> None:
    """Whichever way they are cut, each event is in one request, at the row its number says."""
    route = (lambda account: f"node-{len(account) % 2}") if routed else None
    rows: dict[int, dict[str, object]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meterd.client.batches.REQUEST_EVENTS_COUNT", size)
        for call in ingest_calls(EventSource(made), "sync", route):
            decoded = rows_of(decode_events(call.body, None))
            assert len(decoded) == len(call.rows) <= size
            assert len({len(made[row].account) % 2 for row in call.rows}) == 1 or not routed
            rows.update(zip(call.rows, decoded, strict=True))
    assert sorted(rows) == list(range(len(made)))
    for row, event in enumerate(made):
        sent_id = rows[row].pop("id")
        assert sent_id in (event.id.encode(), uuid_bytes(event.id))
        assert rows[row] == expected_row(event)


def uuid_bytes(text: str) -> bytes:
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return b""


def test_only_uuids_in_canonical_text_are_compacted() -> None:
    """The id is the text: two spellings of a UUID are two ids."""
    made = [make_id(1), make_id(2)]
    assert compact_ids(made).tobytes() == b"".join(uuid.UUID(one).bytes for one in made)
    for other in ("evt-1", made[0].upper(), made[0].replace("-", "") + "----", "x" * 36):
        assert compact_ids([made[0], other]) == [made[0], other]


def test_a_request_that_would_be_too_large_is_halved() -> None:
    made = [Event("a", "m", properties={f"k{n}": "v" * 255 for n in range(32)}) for _ in range(600)]
    for number, event in enumerate(made):
        event.properties = {key: f"{number}".zfill(250) for key in event.properties}
    calls = list(ingest_calls(EventSource(made), "sync", None))
    assert len(calls) > 1 and all(len(call.body) <= BODY_SIZE_MAX for call in calls)
    assert [row for call in calls for row in call.rows] == list(range(600))


def test_a_request_that_a_node_has_no_room_to_write_out_is_halved() -> None:
    """What events share is sent once, so the body is small."""
    shared = {f"key-{n:02}": "v" * 255 for n in range(32)}
    made = [Event("a", "m", properties=shared) for _ in range(5_000)]
    calls = list(ingest_calls(EventSource(made), "sync", None))
    written_size = sum(2 + len(key) + len(text) for key, text in shared.items())
    assert len(calls) > 1
    assert all(len(call.rows) * written_size < 0.75 * HEAP_SIZE_MAX for call in calls)
    assert [row for call in calls for row in call.rows] == list(range(5_000))
    columns = ColumnSource({"account": ["a"] * 5_000, "metric": "m", "properties": shared})
    assert [call.rows for call in ingest_calls(columns, "sync", None)] == [
        call.rows for call in calls
    ]
    few = ColumnSource({"account": ["a"] * 5_000, "metric": "m", "properties": {"k": "é" * 100}})
    assert len(list(ingest_calls(few, "sync", None))) == 1


def test_a_request_with_too_many_property_keys_is_halved() -> None:
    made = [Event("a", "m", properties={f"k{number}": "v"}) for number in range(600)]
    calls = list(ingest_calls(EventSource(made), "sync", None))
    assert len(calls) == 4
    assert [row for call in calls for row in call.rows] == list(range(600))


def test_columns_with_too_many_property_keys_are_halved() -> None:
    """A key that no row of a half has is not sent with it."""
    properties = {f"k{key}": [None] * key + ["v"] + [None] * (599 - key) for key in range(600)}
    columns = {"account": "a", "metric": "m", "id": [f"{row}" for row in range(600)]}
    calls = list(ingest_calls(ColumnSource(columns | {"properties": properties}), "sync", None))
    assert len(calls) == 4
    assert [row for call in calls for row in call.rows] == list(range(600))


LONG = "9" * (BODY_SIZE_MAX + 1)
MANY = {f"k{number}": "v" for number in range(300)}


def answer_to(source: EventSource | ColumnSource) -> list[dict[str, object]]:
    """Give the rows as nodes get them, in the order they were passed."""
    rows: dict[int, dict[str, object]] = {}
    for call in ingest_calls(source, "sync", None):
        rows.update(zip(call.rows, rows_of(decode_events(call.body, None)), strict=True))
    return [rows[row] for row in sorted(rows)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metric": LONG}, BAD_METRIC),
        ({"value": LONG}, BAD_VALUE),
        ({"value": 10**5_000}, BAD_VALUE),
        ({"properties": MANY}, BAD_PROPERTIES),
        ({"properties": {"k": LONG}}, BAD_PROPERTIES),
        ({"properties": {LONG: "v", LONG + "x": "v"}}, BAD_PROPERTIES),
    ],
)
def test_an_event_that_fits_no_request_is_for_the_node_to_reject(
    fields: dict, reason: int
) -> None:
    good = [Event("a", "m", id=f"{number}") for number in range(6)]
    bad = Event(**{"account": "a", "metric": "m", "id": "bad"} | fields)
    rows = answer_to(EventSource([*good[:3], bad, *good[3:]]))
    assert [row["reason"] for row in rows] == [0, 0, 0, reason, 0, 0, 0]
    assert rows[3]["id"] == b"bad"  # which may be known


def test_an_account_or_id_that_fits_no_request_is_sent_as_one_that_is_too_long() -> None:
    made = [Event(LONG, "m"), Event("a", "m", id="9" * 127 + "é" * BODY_SIZE_MAX), Event("b", "m")]
    rows = answer_to(EventSource(made))
    assert len(rows[0]["account"]) == ACCOUNT_SIZE_MAX + 1
    assert len(rows[1]["id"]) == ID_SIZE_MAX + 1 and rows[2]["account"] == b"b"


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("columns", "reasons"),
    [
        ({"metric": ["m", HALF, "m"]}, [0, BAD_METRIC, 0]),
        ({"value": ["1", HALF, "2"]}, [0, BAD_VALUE, 0]),
        ({"value": [1, Decimal("1e999999999"), 10**5_000]}, [0, BAD_VALUE, BAD_VALUE]),
        ({"value": np.array([1, 2, 3]), "properties": {"k": [HALF, None, "v"]}}, [8, 0, 0]),
        ({"properties": {"k": ["x", None, "v"], HALF: [None, "v", None]}}, [0, 8, 0]),
        ({"properties": {"k": LONG}}, [BAD_PROPERTIES] * 3),
        ({"metric": LONG}, [BAD_METRIC] * 3),
        ({"id": np.zeros((3, 16), np.uint8), "properties": MANY}, [BAD_PROPERTIES] * 3),
    ],
)
def test_rows_that_fit_no_request_are_for_the_node_to_reject(
    columns: dict, reasons: list[int]
) -> None:
    source = ColumnSource({"account": ["a", "b", "c"], "metric": "m"} | columns)
    assert [row["reason"] for row in answer_to(source)] == reasons


def test_an_account_without_bytes_is_no_utf8_and_goes_to_any_node() -> None:
    lead = PartitionMap(
        {"version": 1, "nodes": {"1": "a:1", "2": "b:1"}, "leaders": [1] * 128 + [2] * 128}
    ).leader_of
    for accounts in (["a", HALF, "c"], text_column([b"a", b"\xff", b"c"]), ["a", LONG, "c"]):
        source = ColumnSource({"account": accounts, "metric": "m"})
        calls = list(ingest_calls(source, "sync", lead))
        assert sorted(row for call in calls for row in call.rows) == [0, 1, 2]
    assert lead(LONG) is None
    rows = answer_to(ColumnSource({"account": ["a", HALF], "metric": "m"}))
    assert not is_utf8(rows[1]["account"])


def test_columns_may_be_lists_arrays_or_one_value() -> None:
    ids = [make_id(1), make_id(2)]
    forms: list[dict[str, object]] = [
        {"account": ["acme", "acme"], "metric": ["m", "m"], "value": [1, 1], "id": ids},
        {"account": np.array(["acme", "acme"]), "metric": np.array(["m", "m"]), "id": ids},
        {"account": "acme", "metric": "m", "value": 1, "id": ids},
        {"account": text_column([b"acme"] * 2), "metric": "m", "value": np.ones(2, int), "id": ids},
        {"account": "acme", "metric": "m", "id": np.array(ids), "operation": "none"},
    ]
    moments = [NEW_YEAR, np.array([NEW_YEAR] * 2), np.array(["2026-01-01"] * 2, "datetime64[s]")]
    seen = []
    for number, form in enumerate(forms):
        source = ColumnSource(form | {"timestamp": moments[number % 3]})
        assert source.accounts() == ["acme", "acme"]
        [call] = ingest_calls(source, "sync", None)
        rows = rows_of(decode_events(call.body, None))
        seen.append([row | {"id": uuid_bytes(_text_of(row["id"]))} for row in rows])
    assert all(rows == seen[0] for rows in seen)


def _text_of(sent_id: bytes) -> str:
    return str(uuid.UUID(bytes=sent_id)) if len(sent_id) == 16 else sent_id.decode()


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        ({"metric": "m"}, TypeError, "'account' is missing"),
        ({"account": "a", "metric": "m", "valeu": [1]}, TypeError, "no column is called 'valeu'"),
        ({"account": ["a"], "metric": ["m", "m"]}, ValueError, "differ in length"),
        ({"account": ["a"], "metric": "m", "properties": {"k": ["x", "y"]}}, ValueError, "differ"),
    ],
)
def test_columns_that_make_no_table_are_refused(
    columns: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ColumnSource(columns)


def test_float_columns_are_refused() -> None:
    source = ColumnSource({"account": "a", "metric": "m", "value": np.array([0.5, 1.5])})
    with pytest.raises(LocalProtocolError, match=r"value.*floats are not exact") as caught:
        list(ingest_calls(source, "sync", None))
    assert (caught.value.code, caught.value.retry) == ("bad_request", "never")
    assert caught.value.hint.startswith("mend")


def test_a_question_that_cannot_be_sent_is_a_bad_request() -> None:
    with pytest.raises(Unsendable, match="usage"):
        asked_by(questions.usage("acme", "m", {"filters": {"region": [object()]}}))


def test_any_iterable_of_events_is_taken_and_one_event_is_no_list() -> None:
    events = [Event("a", "m", id=str(number)) for number in range(3)]
    assert EventSource(event for event in events).count == 3
    with pytest.raises(TypeError, match="list of events"):
        EventSource(events[0])


def test_one_numpy_moment_is_the_time_of_all_rows() -> None:
    moment = np.datetime64("2026-01-01", "D")
    source = ColumnSource({"account": ["a", "b"], "metric": "m", "timestamp": moment})
    assert list(source.columns["timestamp"]) == [NEW_YEAR, NEW_YEAR]


@given(
    st.lists(texts, min_size=1, max_size=9),
    st.data(),
)
def test_rows_taken_of_a_column_are_the_same_in_every_form(made: list[str], data) -> None:
    rows = data.draw(st.lists(st.integers(0, len(made) - 1), min_size=1))
    first = data.draw(st.integers(0, len(made) - 1))
    for taken in (rows, range(first, len(made))):
        wanted = [made[row] for row in taken]
        assert take(made, taken) == wanted
        assert list(take(np.array(made, object), taken)) == wanted
        column = text_column([text.encode() for text in made])
        plain = {"timestamp": [1] * len(wanted), "metric": "m", "account": "a"}
        bodies = [
            encode_columns(ColumnInput(**plain, id=ids)) for ids in (wanted, take(column, taken))
        ]
        assert bodies[0] == bodies[1]


def test_usage_is_read_exactly() -> None:
    point = {"start": 0, "value": "0.1", "count": 1}
    group = {"key": {"region": None, "start": "x"}, "value": None, "count": 0, "series": [point]}
    usage = Usage.from_answer(
        {
            "account": "acme",
            "metric": "latency",
            "aggregation": "avg",
            "unit": "ms",
            "start": 0,
            "end": 10,
            "value": "0.333333333",
            "fraction": [1, 3],
            "count": 3,
            "groups": [group],
            "series": [],
            "position": "1:7",
            "newest_event": 9,
            "expired": False,
        }
    )
    assert usage.value == Decimal("0.333333333") and usage.fraction == Fraction(1, 3)
    assert usage.groups[0].series[0].value == Decimal("0.1")
    assert usage.columns() == {
        "region": [None],
        "key_start": ["x"],
        "start": [0],
        "value": [Decimal("0.1")],
        "count": [1],
    }


def test_results_become_tables_where_the_libraries_are() -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    from meterd.client.tables import to_arrow, to_pandas

    columns = {"start": [NEW_YEAR, NEW_YEAR + 1], "value": [Decimal("0.1"), None]}
    frame, table = to_pandas(columns), to_arrow(columns)
    assert frame["start"][1] == pandas.Timestamp(NEW_YEAR + 1, tz="UTC")
    assert frame["value"][0] == Decimal("0.1")
    assert pyarrow.types.is_decimal(table.schema.field("value").type)
    assert table["value"].to_pylist() == [Decimal("0.1"), None]


def test_every_error_a_node_can_answer_is_public() -> None:
    import meterd.client
    from meterd.protocol.errors import CLASS_OF_CODE

    for error in CLASS_OF_CODE.values():
        assert getattr(meterd.client, error.__name__) is error
        assert error.__name__ in meterd.client.__all__


def test_both_clients_have_the_same_methods() -> None:
    from inspect import signature

    from meterd.client import AsyncClient, Client

    names = {name for name in vars(Client) if not name.startswith("_")}
    assert names == {name for name in vars(AsyncClient) if not name.startswith("_")}
    for name in names:
        blocking, awaited = (signature(getattr(kind, name)) for kind in (Client, AsyncClient))
        assert blocking.parameters == awaited.parameters


def test_errors_that_carry_events_can_be_pickled() -> None:
    """A program that sends from several processes hands them to its parent."""
    import pickle

    from meterd.client import IngestResult, IngestUndecided, ProducerFailed

    event, result = Event("a", "m"), IngestResult(received=1, unknown=1)
    for error in (IngestUndecided("why", result, [event]), ProducerFailed("why", [event])):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == "why" and copy.undecided == [event]


@pytest.mark.parametrize(
    "fields",
    [
        {"account": "\ud83d"},
        {"metric": "\ud83d"},
        {"id": "\ud83d"},
        {"value": "\ud83d"},
        {"properties": {"\ud83d": ""}},
        {"properties": {"name": "caf\ud83d"}},
        {"timestamp": 2**63},
        {"timestamp": datetime(9999, 1, 1, tzinfo=UTC)},
    ],
)
def test_an_event_that_would_fail_its_whole_batch_is_not_made(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"half a character|1678"):
        Event(**{"account": "acme", "metric": "m"} | fields)


@pytest.mark.parametrize("text", ["2026-01-31T10:10.5Z", "2026-01-31T10.5", "20260131T1010.5"])
def test_a_fraction_of_a_minute_is_no_fraction_of_a_second(text: str) -> None:
    with pytest.raises(ValueError, match="fraction"):
        to_nanoseconds(text)
    with pytest.raises(ValueError, match="no point in time"):
        parse_moment(text, 0)


@pytest.mark.parametrize("zero", ["0E-50", "0E+60", "-0.000", "0"])
def test_nothing_is_nothing_whatever_its_digits(zero: str) -> None:
    assert exact_value(Decimal(zero)) == 0
