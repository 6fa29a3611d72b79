"""Plain-Python views of what the protocol decodes, and the golden frames.

`rows_of` turns columns back into one dict per event, so tests compare events and not arrays.
`MESSAGES` builds one message of each kind; `python -m tests.support.wire` writes them to
tests/data/frames/, which a change of the encoders must not alter by accident.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import lz4.block
import numpy as np
from numpy.typing import NDArray

from meterd.protocol.body import pack
from meterd.protocol.columns import ABSENT, ColumnInput, EventColumns, encode_columns
from meterd.protocol.envelope import AnswerHeader, RequestHeader, encode_answer, encode_request
from meterd.protocol.errors import (
    REASONS,
    STATUSES,
    BadRequest,
    Overloaded,
    RemoteProtocolError,
    error_body,
)
from meterd.protocol.event_columns import Durability, text_rows
from meterd.protocol.metric import MetricDefinition
from meterd.protocol.result import IngestResult, encode_result

FRAMES = Path(__file__).resolve().parent.parent / "data" / "frames"
MOMENT = 1_767_225_600_000_000_000  # 2026-01-01 UTC
UUIDS = np.arange(32, dtype=np.uint8).reshape(2, 16)


def rows_of(columns: EventColumns) -> list[dict[str, object]]:
    """Return the events of columns, one dict per row; checks every promise about them."""
    check_columns(columns)
    accounts = text_rows(columns.account)
    if columns.uuid is not None:
        ids = [row.tobytes() for row in columns.uuid]
    else:
        ids = text_rows(columns.id)
    properties = [
        (column.key, text_rows(column.values), column.index.tolist())
        for column in columns.properties
    ]
    return [
        {
            "account": accounts[row],
            "metric": columns.metric_codes[columns.metric_index[row]],
            "value": (int(columns.value[row]), int(columns.exponent[row])),
            "timestamp": int(columns.timestamp[row]),
            "id": ids[row],
            "operation": int(columns.operation[row]),
            "properties": {
                key: values[index[row]] for key, values, index in properties if index[row] != ABSENT
            },
            "reason": int(columns.reason[row]),
        }
        for row in range(columns.count)
    ]


def check_columns(columns: EventColumns) -> None:
    """Assert the invariants that module event_columns promises to everybody behind it."""
    n = columns.count
    assert 1 <= n <= 10_000
    for array, dtype in (
        (columns.timestamp, np.int64),
        (columns.value, np.int64),
        (columns.exponent, np.uint8),
        (columns.metric_index, np.uint16),
        (columns.operation, np.uint8),
        (columns.reason, np.uint8),
    ):
        assert array.shape == (n,) and array.dtype == dtype
    assert columns.exponent.max() <= 18
    assert columns.operation.max() <= 2
    assert columns.metric_codes and columns.metric_index.max() < len(columns.metric_codes)
    assert (columns.id is None) != (columns.uuid is None)
    assert columns.uuid is None or columns.uuid.shape == (n, 16)
    assert [column.key for column in columns.properties] == sorted(
        {column.key for column in columns.properties}
    )
    texts = [(columns.account, n)] + ([(columns.id, n)] if columns.id is not None else [])
    for column in columns.properties:
        present = column.index[column.index != ABSENT]
        size = len(column.values.offsets) - 1
        assert column.index.shape == (n,) and column.index.dtype == np.uint32
        assert not present.size or present.max() < size
        texts.append((column.values, size))
    for text, count in texts:
        ends = text.offsets.tolist()
        assert text.offsets.dtype == np.uint32 and text.text.dtype == np.uint8
        assert len(ends) == count + 1 and ends == sorted(ends)
        assert ends[0] == 0 and ends[-1] == len(text.text)


def compress_body(body: bytes) -> bytes:
    """Return the body as one LZ4 block; its size before goes into the header's `lz4`."""
    compressed: bytes = lz4.block.compress(body, store_size=False)
    return compressed


def encode_plain(events: Iterable[Mapping[str, object]], durability: Durability = "sync") -> bytes:
    """Encode events as a list of maps, as they are."""
    return pack({"durability": durability, "events": [dict(event) for event in events]})


def result_of(status: NDArray[np.uint8], reason: NDArray[np.uint8]) -> IngestResult:
    """Return the result for the status and reason numbers of all rows of a `sync` request."""
    stored, *others = np.bincount(status, minlength=len(STATUSES)).tolist()
    items = [
        (row, STATUSES[status[row]], REASONS[reason[row]])
        for row in np.flatnonzero(status).tolist()
    ]
    return IngestResult(len(status), stored, *others, items=items or ())


def plain_event(**fields: object) -> dict[str, object]:
    """Return a valid event of the plain form with these fields changed; None leaves one out."""
    event: dict[str, object] = {
        "account": "acme",
        "metric": "api_calls",
        "timestamp": MOMENT,
        "id": "evt-1",
    }
    return {key: value for key, value in (event | fields).items() if value is not None}


def _request(kind: str, body: bytes, **header: int) -> list[bytes]:
    return encode_request(RequestHeader(7, kind, 5_000, **header), body)


def _columns(**changed: object) -> bytes:
    columns = {
        "timestamp": [MOMENT, MOMENT + 1],
        "account": ["acme", "acme/team"],
        "metric": "api_calls",
        "id": UUIDS,
    }
    return encode_columns(ColumnInput(**(columns | changed)))


def _messages() -> Iterator[tuple[str, str, list[bytes]]]:
    """Yield name, meaning and frames of each golden message."""
    plain = plain_event(value="1.25", properties={"region": "eu"})
    storage = plain_event(metric="storage", id="evt-2", value=3)
    full = _columns(
        account="acme",
        metric=["seats", "api_calls"],
        id=["evt-1", "evt-2"],
        value=["-0.5", "12.000001"],
        operation=["add", "none"],
        properties={"region": ["eu", None]},
    )
    yield "request_hello", "who is there", _request("hello", pack({}))
    yield "request_map", "the partition map", _request("map", pack({}), map_version=3)
    yield (
        "request_ingest_plain",
        "two events as maps",
        _request("ingest", encode_plain([plain, storage])),
    )
    yield (
        "request_ingest_columns",
        "two events as columns, value 1, ids are UUIDs",
        _request("ingest", _columns(), map_version=3),
    )
    yield (
        "request_ingest_exponent",
        "values 150 and 2 in units of 10^-2",
        _request("ingest", _columns(value=[150, 2], exponent=2)),
    )
    yield (
        "request_ingest_full",
        "decimal text, two metrics, operation, a property",
        _request("ingest", full),
    )
    yield (
        "request_ingest_lz4",
        "request_ingest_full with its body compressed",
        _request("ingest", compress_body(full), lz4_size=len(full)),
    )
    metric = {"code": "api_calls", "aggregation": "sum", "unit": "calls", "dimensions": ["region"]}
    bodies: dict[str, dict[str, object]] = {
        "metric_put": {**metric, "period": {"kind": "month"}, "replace": False},
        "metric_delete": {"code": "api_calls"},
        "account_erase": {"account": "acme", "subtree": True, "id": "erasure-1"},
        "balance_import": {
            "id": "moved-2026",
            "balances": [
                {
                    "account": "acme",
                    "metric": "api_calls",
                    "dimensions": {"region": "eu"},
                    "at": MOMENT,
                    "count": 3,
                    "sum": "12.5",
                }
            ],
        },
        "node_add": {
            "node": 4,
            "peer_address": "node4.internal:8001",
            "client_address": "node4.internal:7001",
            "directory": "00112233445566778899aabbccddeeff",
        },
        "node_recover": {"node": 2},
        "node_state": {"node": 2, "state": "drained"},
        "plan_move": {"moves": [[7, [1, 2, 4], 4], [256, [1, 2, 3], 1]]},
        "metric_list": {},
        "metric_show": {"code": "api_calls"},
        "usage": {
            "account": "acme",
            "metric": "api_calls",
            "period": "current",
            "filters": {"region": ["eu", None]},
            "group_by": ["region"],
        },
        "accounts": {
            "metric": "api_calls",
            "start": MOMENT,
            "end": MOMENT + 10**9,
            "sort": "usage",
            "limit": 100,
        },
        "events": {"account": "acme", "start": MOMENT, "limit": 100},
        "feed": {"after": "end", "limit": 100},
        "rejected": {"limit": 100},
        "checkpoint": {},
        "retention_show": {},
        "retention_set": {"days": 400},
        "clock_accept": {},
        "retention_run": {"dry_run": True},
        "wal_status": {"holders": True},
        "wal_archive": {},
        "backup_create": {"to": "/var/backups/meterd", "type": "incr"},
        "backup_hold": {"seconds": 7_200},
        "backup_release": {},
        "backup_report": {"proof": "drill", "good": True, "rto_ms": 24_000, "rpo_ms": 3_600_000},
        "compact": {"aggressive": True},
        "compact_status": {},
        "job_list": {},
        "job_show": {"id": 1_769_817_600},
        "job_cancel": {"id": 1_769_817_600},
        "disk_status": {},
        "disk_free_reserve": {},
        "cluster_status": {},
        "leader_transfer": {"groups": [7, 256], "node": 2},
        "status": {},
        "health": {},
        "metrics": {"filter": "billing_events"},
    }
    for kind, body in bodies.items():
        yield f"request_{kind}", f"a question of kind {kind}", _request(kind, pack(body))
    ok = AnswerHeader(7, "ingest", "ok", 3)
    failed = ok._replace(status="error")
    yield (
        "answer_ingest_stored",
        "two events, both stored",
        encode_answer(ok, encode_result(IngestResult(2, 2))),
    )
    yield (
        "answer_ingest_items",
        "one stored, one duplicate, one rejected",
        encode_answer(
            ok,
            encode_result(
                IngestResult(
                    3,
                    1,
                    duplicate=1,
                    rejected=1,
                    items=[(1, "duplicate", ""), (2, "rejected", "bad_value")],
                )
            ),
        ),
    )
    definition = MetricDefinition.from_map(metric).to_map() | {"version": 1}
    yield (
        "answer_metric_put",
        "the definition with all its defaults",
        encode_answer(
            AnswerHeader(7, "metric_put", "ok", 3),
            pack({"metric": definition, "outcome": "created"}),
        ),
    )
    yield (
        "answer_error_never",
        "a question that must be mended",
        encode_answer(failed, pack(error_body(BadRequest("account: missing")))),
    )
    yield (
        "answer_error_later",
        "an error with a time to wait",
        encode_answer(failed, pack(error_body(Overloaded(retry_after_ms=250)))),
    )
    yield (
        "answer_error_no_id",
        "the request's header could not be read",
        encode_answer(
            AnswerHeader(None, "", "error", 3),
            pack(error_body(RemoteProtocolError("malformed", "header: not a map"))),
        ),
    )


MESSAGES = {name: (meaning, frames) for name, meaning, frames in _messages()}


def read_frames(name: str) -> tuple[str, list[bytes]]:
    """Return the meaning and the frames of a golden message."""
    meaning, header, body = (FRAMES / f"{name}.txt").read_text().splitlines()
    assert meaning.startswith("# ") and header.startswith("header ") and body.startswith("body ")
    return meaning[2:], [bytes.fromhex(header[7:]), bytes.fromhex(body[5:])]


def write_frames() -> None:
    """Write all golden messages."""
    for name, (meaning, (header, body)) in MESSAGES.items():
        text = f"# {meaning}\nheader {header.hex()}\nbody {body.hex()}\n"
        (FRAMES / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    write_frames()
