"""A stage's limits: when it is full, and a request that would be too large written out."""

from __future__ import annotations

import msgpack
import numpy as np

from meterd.core.staging import HEAP_SIZE_ENOUGH, Stage
from meterd.protocol.columns import decode_events
from meterd.protocol.limits import (
    BODY_SIZE_MAX,
    EVENTS_MAX,
    PROPERTIES_MAX,
    PROPERTY_VALUE_SIZE_MAX,
)
from tests.property.test_staging import REGISTRY, Row, columns_of
from tests.support.pipeline import KEY

SMALL = [Row(b"a", b"%d" % n, "whole", 0, 1, 0, 0, 0, {}) for n in range(3)]


def new_stage(record_events_max: int = 16) -> Stage:
    stage = Stage(record_events_max, KEY)
    stage.use(REGISTRY)
    return stage


def many_values() -> bytes:
    """A small request whose rows all name the same large values: 82 MB when written out."""
    n = EVENTS_MAX
    value = "v" * PROPERTY_VALUE_SIZE_MAX
    fields = {
        "n": n,
        "timestamp": np.zeros(n, "<i8").tobytes(),
        "metric": {"values": ["whole"]},
        "account": {"values": ["a"], "index": np.zeros(n, "<u4").tobytes()},
        "id": {"uuid": np.arange(2 * n, dtype="<u8").tobytes()},
        "properties": [
            {"key": f"k{k}", "values": [value], "index": np.zeros(n, "<u4").tobytes()}
            for k in range(PROPERTIES_MAX)
        ],
    }
    return bytes(msgpack.packb(fields))


def test_a_small_request_that_grows_too_large_is_refused_and_disturbs_nobody():
    body = many_values()
    assert len(body) < BODY_SIZE_MAX
    stage, undisturbed = new_stage(), new_stage()
    for number in (0, 1):
        assert stage.add(columns_of(SMALL, False), number) == []
        assert undisturbed.add(columns_of(SMALL, False), number) == []
        assert stage.add(decode_events(body, None), number + 1) is None
    assert stage.refused_rows(1) == []
    found, wanted = stage.pack(), undisturbed.pack()
    assert found.row_count == 6
    assert found.payload.tobytes() == wanted.payload.tobytes()
    assert found.slices.tobytes() == wanted.slices.tobytes()
    assert found.row_of_row.tolist() == wanted.row_of_row.tolist()
    assert stage.add(decode_events(body, None), 0) is None
    assert stage.empty
    assert stage.add(columns_of(SMALL, False), 0) == []
    assert stage.pack().payload.tobytes() == new_payload()


def new_payload() -> bytes:
    stage = new_stage()
    stage.add(columns_of(SMALL, False), 0)
    return bytes(stage.pack().payload.tobytes())


def test_a_stage_is_full_after_so_many_rows_refused_ones_too():
    stage = new_stage(6)
    bad = [Row(b"a", b"x", "unknown", 0, 1, 0, 0, 0, {})] * 3
    stage.add(columns_of(SMALL, False), 0)
    assert not stage.full
    stage.add(columns_of(bad, False), 1)
    assert stage.full
    stage.pack()
    assert not stage.full and stage.empty


def test_a_stage_is_full_after_so_many_bytes():
    stage = new_stage(100_000)
    row = Row(b"a", b"x", "whole", 0, 1, 0, 0, 0, {f"k{n:02}": b"v" * 255 for n in range(32)})
    requests = 0
    while not stage.full:
        stage.add(columns_of([row] * 10, False), requests)
        requests += 1
    assert 0 <= requests * 10 * 8_300 - HEAP_SIZE_ENOUGH < 2 * 10 * 8_300


def test_without_a_registry_every_metric_is_unknown():
    stage = Stage(16, KEY)
    stage.add(columns_of(SMALL, False), 0)
    packed = stage.pack()
    assert packed.row_count == 0
    assert packed.refusals is not None and len(packed.refusals.rows) == 3
    stage.use(REGISTRY)
    stage.add(columns_of(SMALL, False), 0)
    assert stage.pack().row_count == 3
