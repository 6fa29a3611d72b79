"""Bitmaps of rows that were not stored, against plain lists."""

from __future__ import annotations

import lz4.block
import msgpack
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.log.refused_rows import RefusedRows

records = st.lists(
    st.tuples(st.integers(1, 3), st.lists(st.booleans(), min_size=1, max_size=40)), max_size=12
)


def filled(records) -> tuple[RefusedRows, dict[int, list[bool]]]:
    rows, model = RefusedRows(), {}
    for number, refused in records:
        held = model.setdefault(number, [])
        rows.note(number, len(held), np.array(refused, np.bool_))
        held += refused
    return rows, model


def check(rows: RefusedRows, model: dict[int, list[bool]]) -> None:
    assert rows.files() == sorted(model)
    for number, held in model.items():
        packed, count = rows.packed(number)
        assert count == rows.rows(number) == len(held)
        bitmap = lz4.block.decompress(packed)
        assert len(bitmap) == -(-count // 8)
        assert [bool(bitmap[i // 8] >> i % 8 & 1) for i in range(count)] == held


@given(records, records)
def test_rows_are_remembered_through_a_checkpoint(before, after):
    rows, model = filled(before)
    check(rows, model)
    packed = msgpack.unpackb(msgpack.packb(rows.to_map()), strict_map_key=False)
    again = RefusedRows.from_map(packed)
    check(again, model)
    for number, refused in after:
        held = model.setdefault(number, [])
        again.note(number, len(held), np.array(refused, np.bool_))
        held += refused
    check(again, model)


@given(records)
def test_what_is_forgotten_is_gone(records):
    rows, model = filled(records)
    for number in list(model):
        rows.forget(number)
        del model[number]
        check(rows, model)
    assert rows.rows(1) == 0
    assert rows.packed(1)[1] == 0


def test_a_large_file_grows_piece_by_piece():
    rows, model = filled([(1, [True, False, False] * 30_000), (1, [True] * 60_000)])
    check(rows, model)
