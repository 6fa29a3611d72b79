"""The index beside a log file: its bytes, and what damage to them does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.log_index import OpenIndex, SealedIndex, wanted_keys
from meterd.protocol.errors import Corrupt
from meterd.protocol.index_format import (
    HEADER_SIZE,
    SECTIONS,
    encode_index,
    parse_header,
    parse_index,
)
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.log_format import Damaged
from tests.support.log_builder import IDENTITY_KEY, LogBuilder, LoggedEvent

KEY = np.frombuffer(IDENTITY_KEY, np.uint64).copy()
ACCOUNTS = ("a", "a/b", "a/b/c", "ab", "z", "ä/ö")

events = st.builds(
    LoggedEvent,
    st.sampled_from(ACCOUNTS),
    st.text(min_size=1, max_size=5).filter(lambda text: len(text.encode()) <= 128),
    st.integers(1, 600),
    st.integers(-5, 5),
    st.integers(-1_000, 1_000),
    st.sampled_from(["none", "add"]),
)
blocks = st.lists(st.lists(st.lists(events, min_size=1, max_size=5), max_size=3), max_size=3)


def built(written) -> tuple[LogBuilder, OpenIndex]:
    builder, index = LogBuilder(7), OpenIndex()
    for records in written:
        builder.block(records)
        data = builder.array()  # grows as the file does
        index.extend(data, len(data), KEY, "wal.log")
    return builder, index


@settings(max_examples=100, deadline=None)
@given(blocks, st.sets(st.integers(0, 40)), st.sampled_from(ACCOUNTS), st.booleans(), st.data())
def test_both_kinds_of_index_find_every_stored_row(written, refused, account, subtree, data):
    """What else they find is compared by whoever reads the rows."""
    builder, index = built(written)
    bits = np.zeros(builder.row, np.uint8)
    bits[[row for row in refused if row < builder.row]] = 1
    bitmap = np.frombuffer(np.packbits(bits, bitorder="little").tobytes(), np.uint8)
    made = index.seal(7, len(builder.data), bitmap)
    read = parse_index(b"".join(encode_index(made)))
    start, end = sorted(data.draw(st.tuples(st.integers(-999, 999), st.integers(-999, 999))))
    numbers = data.draw(st.sampled_from([[], [3], [3, 259]]))
    keys = wanted_keys(KEY, account.encode(), subtree, numbers)
    stored = {
        place.row
        for place in builder.placed
        if not bits[place.row]
        and (
            place.event.account == account
            or (subtree and place.event.account.startswith(account + "/"))
        )
        and (not numbers or place.event.metric in numbers)
        and start <= place.event.timestamp < end
    }
    for finder in (index, SealedIndex(read)):
        rows = finder.rows_of(keys, start, end).tolist()
        assert rows == sorted(set(rows))
        assert stored <= set(rows)
    assert not {row for row in range(builder.row) if bits[row]} & set(rows)


@settings(max_examples=50, deadline=None)
@given(blocks)
def test_the_header_tells_the_facts_of_the_stored_rows(written):
    builder, index = built(written)
    header = parse_header(
        b"".join(encode_index(index.seal(7, len(builder.data), np.frombuffer(b"", np.uint8))))
    )
    times = [place.event.timestamp for place in builder.placed]
    assert (header.file_number, header.log_size) == (7, len(builder.data))
    assert header.row_count == header.stored_count == len(times)
    assert header.min_timestamp == min(times, default=I64_MAX)
    assert header.max_timestamp == max(times, default=I64_MIN)
    operations = any(place.event.operation != "none" for place in builder.placed)
    assert header.has_operations == operations
    assert header.log_crc == (builder.previous_crc if written else 0)


def golden() -> bytes:
    builder, index = built([[[LoggedEvent("a", "x", 1, 2, 3)], [LoggedEvent("b", "y", 1, 2, 4)]]])
    made = index.seal(7, len(builder.data), np.frombuffer(b"\1", np.uint8))
    return b"".join(encode_index(made))


def test_every_byte_is_covered_by_a_checksum_or_padding():
    """A flipped bit is found wherever it matters; what does not matter is zero."""
    whole = golden()
    good = parse_index(whole)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        try:
            read = parse_index(bytes(damaged))
        except Damaged:
            continue
        assert whole[at] == 0, f"byte {at} is covered by no checksum"
        for name, _ in SECTIONS:
            assert np.array_equal(getattr(read, name), getattr(good, name))


def test_a_cut_file_is_damaged():
    whole = golden()
    for size in (0, 1, HEADER_SIZE - 1, HEADER_SIZE, len(whole) - 8):
        with pytest.raises(Damaged):
            parse_index(whole[:size])


def test_refused_rows_are_not_indexed_but_counted():
    index = parse_index(golden())
    assert (index.header.row_count, index.header.stored_count) == (2, 1)
    assert index.rows.tolist() == [1]
    assert index.refused.tolist() == [1]


def test_bytes_that_are_no_log_are_corrupt_and_name_the_place():
    builder, _ = built([[[LoggedEvent("a", "x", 1, 2, 3)]]])
    data = bytearray(builder.data)
    data[4096] ^= 1
    with pytest.raises(Corrupt, match="offset 4096"):
        OpenIndex().extend(np.frombuffer(bytes(data), np.uint8), len(data), KEY, "wal.log")


def test_an_open_index_stops_where_the_question_ends():
    """Records behind the end may not be applied yet, also within one block."""
    builder, _ = built([[[LoggedEvent("a", "x", 1, 2, 3)], [LoggedEvent("a", "y", 1, 2, 3)]]])
    data, index = builder.array(), OpenIndex()
    ends = [4096, 4096 + 64, len(data) - 1, len(data)]
    rows = []
    for end in ends:
        index.extend(data, end, KEY, "wal.log")
        rows.append(index.row_count)
    assert rows[0] == rows[1] == 0
    assert rows[-1] == 2
