"""Staging a body as it came against decoding it: the same rows, or it is left to the decoder.

The bytes lie against a page that ends the process when it is read.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meterd.core.kernels import stage as kernels
from meterd.core.staging import Stage
from meterd.protocol.columns import ColumnInput, decode_events, encode_columns
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.event_columns import Durability
from tests.property.test_staging import KEY, REGISTRY, Row, columns_of, rows, uuid_of
from tests.support.guard_page import GuardedBytes

GUARDED = GuardedBytes()


def new_stage() -> Stage:
    stage = Stage(64, KEY)
    stage.use(REGISTRY)
    return stage


def body_of(batch: list[Row], as_uuid: bool, durability: Durability) -> bytes:
    """A columnar body of rows that share an exponent, as the client encodes it."""
    columns = columns_of(batch, as_uuid)
    ids = np.array([list(uuid_of(row)) for row in batch], np.uint8) if as_uuid else columns.id
    keys = sorted({key for row in batch for key in row.properties})
    given = ColumnInput(
        account=columns.account,
        metric=[row.code for row in batch],
        value=columns.value,
        exponent=batch[0].exponent,
        timestamp=columns.timestamp,
        id=ids,
        operation=columns.operation,
        properties={key: [text(row.properties.get(key)) for row in batch] for key in keys},
    )
    return encode_columns(given, durability)


def text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "surrogateescape")


bodies = st.builds(
    body_of,
    st.lists(rows, min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from(["sync", "async"]),
)
good_rows = st.builds(
    Row,
    st.sampled_from([b"acme", b"a/b", "é/ü".encode()]),
    st.binary(min_size=1, max_size=20).map(lambda raw: raw.hex().encode()),
    st.sampled_from(["whole", "cents", "atoms"]),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(10**9), 10**9),
    st.just(0),
    st.integers(0, 2),
    st.just(0),
    st.dictionaries(st.sampled_from(["k00", "k01", "zone"]), st.sampled_from([b"", b"eu"])),
)
good_bodies = st.builds(
    body_of,
    st.lists(good_rows, min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from(["sync", "async"]),
)


def staged_by_decoder(body: bytes) -> tuple[Stage, int, str] | None:
    """What the decoder stages, or None when it refuses the body or any of its rows."""
    stage = new_stage()
    try:
        columns = decode_events(body, None)
    except RemoteProtocolError:
        return None
    faults = stage.add(columns, 0)
    if faults or stage._state[kernels.REFUSED]:
        return None
    return stage, columns.count, columns.durability


def check(body: bytes) -> bool:
    """Whether the body was staged as it came; if so, exactly as the decoder would."""
    stage = new_stage()
    found = stage.add_body(GUARDED.lay(body), 0)
    if found is None:
        assert stage.empty
        return False
    wanted = staged_by_decoder(body)
    assert wanted is not None
    other, count, durability = wanted
    assert found == (count, durability)
    one, two = stage.pack(), other.pack()
    for name in ("payload", "slices", "request_of_row", "row_of_row"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()
    return True


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_a_body_is_staged_as_the_decoder_would_or_left_to_it(body):
    check(body)


@settings(max_examples=100, deadline=None)
@given(good_bodies)
def test_bodies_as_the_client_makes_them_need_no_decoder(body):
    assert check(body)


@settings(max_examples=400, deadline=None)
@given(good_bodies, st.data())
def test_damaged_bodies_are_read_within_their_bounds(body, data):
    at = data.draw(st.integers(0, len(body) - 1))
    change = data.draw(st.sampled_from(["cut", "flip", "head", "splice"]))
    if change == "cut":
        body = body[:at]
    elif change == "splice":
        body = body[:at] + data.draw(st.binary(min_size=1, max_size=9)) + body[at:]
    else:
        heads = st.sampled_from([0xC4, 0xC6, 0xD9, 0xDB, 0xDD, 0xDF, 0xCF, 0x8F, 0x9F, 0xBF])
        byte = data.draw(heads if change == "head" else st.integers(0, 255))
        body = body[:at] + bytes([byte]) + body[at + 1 :]
    check(body)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
@example(b"")
@example(b"\xdf\xff\xff\xff\xff\xa1n\xcf\xff\xff\xff\xff\xff\xff\xff\xff")
def test_any_bytes_are_safe(body):
    check(body)


def test_every_form_that_the_decoder_alone_knows_is_left_to_it():
    n = 2
    whole: dict[str, Any] = {
        "n": n,
        "timestamp": bytes(8 * n),
        "metric": {"values": ["whole"]},
        "account": {"offsets": np.array([0, 1, 2], "<u4").tobytes(), "text": b"ab"},
        "id": {"uuid": bytes(range(16 * n))},
    }
    assert check(msgpack.packb(whole))
    left = [
        {"account": {"values": ["a"], "index": bytes(4 * n)}},
        {"value": {"offsets": np.array([0, 1, 2], "<u4").tobytes(), "text": b"12"}},
        {"metric": {"values": ["unknown"]}},
        {"metric": {"values": ["gone"]}},
        {"exponent": 1},
        {"operation": b"\x00\x03"},
        {"durability": "quorum"},
        {"n": 0},
    ]
    for change in left:
        assert not check(msgpack.packb(whole | change)), change
    assert not check(msgpack.packb(dict(reversed(whole.items()))))  # n comes too late
    assert not check(msgpack.packb({"events": []}))
