"""The log's bytes are those of docs/STORAGE.md, and nothing that was altered parses."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
from crc32c import crc32c

from meterd.core.log.scan import Groups
from meterd.protocol import log_format
from meterd.protocol.log_format import BlockHeader, Damaged, FileHeader
from tests.support.log_life import events_entry, meta_entry
from tests.support.replica import Replica

STORAGE = Path(__file__).resolve().parents[2] / "docs" / "STORAGE.md"
ROW = re.compile(r"\| (\d+) \| ([iu]\d+) \| (\w+)")


@pytest.mark.parametrize(
    ("heading", "dtype"),
    [
        ("### Block", log_format.BLOCK_HEADER),
        ("### Record", log_format.RECORD_HEADER),
    ],
)
def test_headers_are_as_documented(heading: str, dtype: np.dtype[np.void]) -> None:
    section = STORAGE.read_text().split(heading)[1].split("###")[0]
    documented = [(int(at), kind, name) for at, kind, name in ROW.findall(section)]
    fields = dtype.fields
    assert fields is not None
    laid_out = [
        (offset, f"{kind.kind}{kind.itemsize * 8}", name.split("_2")[0].split("_3")[0])
        for name, (kind, offset, *_) in fields.items()
    ]
    assert laid_out == documented
    assert dtype.itemsize == 64


def test_sizes_are_as_documented() -> None:
    assert log_format.SLICE.itemsize == log_format.SLICE_SIZE == 40
    assert crc32c(b"123456789") == 0xE3069283


def file_header() -> FileHeader:
    return FileHeader(7, b"cluster identity", b"the identity key", 3, 12, 99, 1234)


def test_a_file_header_survives_the_round_trip() -> None:
    encoded = log_format.encode_file_header(file_header())
    header, crc = log_format.parse_file_header(encoded)
    array = np.frombuffer(encoded, log_format.FILE_HEADER, 1)[0]
    assert header == file_header()
    assert len(encoded) == 4096
    assert array["crc"] == crc
    assert (array["file_number"], array["first_block_seq"], array["created"]) == (3, 12, 99)
    assert array["previous_crc"] == 1234


def test_no_flipped_bit_of_a_file_header_goes_unnoticed() -> None:
    encoded = log_format.encode_file_header(file_header())
    for at in [*range(log_format.FILE_HEADER.itemsize), 100, 4095]:
        damaged = bytearray(encoded)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(Damaged) as caught:
            log_format.parse_file_header(bytes(damaged))
        assert caught.value.offset == 0


def test_a_short_file_has_no_header() -> None:
    with pytest.raises(Damaged, match="4095 bytes"):
        log_format.parse_file_header(log_format.encode_file_header(file_header())[:-1])


def block_header(size: int = 1024) -> BlockHeader:
    return BlockHeader(5, size, 2, 3, 4, 1, 77, 88, 9, 10)


def test_a_block_header_survives_the_round_trip() -> None:
    encoded = log_format.encode_block_header(block_header())
    header, crc = log_format.parse_block(b"12345678" + encoded, 8)
    array = np.frombuffer(encoded, log_format.BLOCK_HEADER, 1)[0]
    assert header == block_header()
    assert array["crc"] == crc == int.from_bytes(encoded[-4:], "little")
    assert [array[name] for name in BlockHeader._fields] == list(header)


@pytest.mark.parametrize("size", [0, 64, 1000, log_format.BLOCK_SIZE_MAX + 512])
def test_impossible_block_sizes_are_damage(size: int) -> None:
    with pytest.raises(Damaged, match="block size"):
        log_format.parse_block(log_format.encode_block_header(block_header(size)), 0)


def test_a_block_header_beyond_the_end_is_damage() -> None:
    encoded = log_format.encode_block_header(block_header())
    with pytest.raises(Damaged, match="beyond the end"):
        log_format.parse_block(encoded[:-1], 0)


@pytest.mark.parametrize("row_count", [1, 2, 7, 100])
def test_an_events_record_survives_the_round_trip(row_count: int) -> None:
    entry = events_entry(Replica(Groups()), Random(row_count), row_count)
    raw = b"\0" * 8 + entry.head + bytes(entry.payload)
    record = log_format.parse_record(raw, 8)
    columns = log_format.columns(record)
    array = np.frombuffer(raw, log_format.RECORD_HEADER, 1, 8)[0]
    assert (record.offset, record.size, record.kind) == (8, len(raw) - 8, log_format.EVENTS)
    assert (
        (record.sequence, record.row_count)
        == (1, row_count)
        == (
            array["sequence"],
            array["row_count"],
        )
    )
    assert record.slices["count"].sum() == row_count
    assert columns.timestamp.tolist() == list(range(row_count))
    assert [len(column) for column in columns] == [row_count] * 5 + [record.heap_size]
    assert log_format.record_sizes(entry.head) == (record.size, len(record.slices), row_count)


def test_columns_are_views_of_the_buffer() -> None:
    entry = events_entry(Replica(Groups()), Random(1), 3)
    raw = bytearray(entry.head + bytes(entry.payload))
    columns = log_format.columns(log_format.parse_record(memoryview(raw)))
    raw[len(entry.head)] = 200
    assert columns.timestamp[0] == 200


def test_a_meta_record_gives_its_body() -> None:
    entry = meta_entry(Replica(Groups()), Random(1), 13)
    record = log_format.parse_frames(entry.head, entry.payload)
    assert len(record.body) < len(record.payload)
    assert bytes(record.body) == bytes(entry.payload).rstrip(b"\0").ljust(len(record.body), b"\0")


def test_no_flipped_bit_of_a_record_goes_unnoticed() -> None:
    entry = events_entry(Replica(Groups()), Random(2), 4)
    raw = entry.head + bytes(entry.payload)
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            log_format.parse_record(damaged)


def test_no_prefix_of_a_record_passes_for_one() -> None:
    entry = events_entry(Replica(Groups()), Random(3), 4)
    raw = entry.head + bytes(entry.payload)
    for size in range(len(raw)):
        with pytest.raises(Damaged):
            log_format.parse_record(raw[:size])


def test_frames_that_do_not_belong_together_are_damage() -> None:
    replica = Replica(Groups())
    one, other = events_entry(replica, Random(4), 4), events_entry(replica, Random(5), 9)
    for head, payload in [(one.head, other.payload), (one.head[:-8], one.payload), (b"", b"")]:
        with pytest.raises(Damaged):
            log_format.parse_frames(head, payload)


@pytest.mark.parametrize("row_count", [1, 2, 3, 4, 5, 8, 4096])
def test_columns_do_not_overlap_and_are_aligned(row_count: int) -> None:
    layout = log_format.payload_layout(row_count, 13)
    sizes = [8 * row_count, 8 * row_count, 4 * row_count, 2 * row_count, row_count, 13]
    for start, size, following in zip(layout, sizes, layout[1:], strict=False):
        assert start % 8 == following % 8 == 0
        assert 0 <= following - (start + size) < 8


def test_names_of_full_files() -> None:
    assert log_format.full_name(7) == "wal-00000000000000000007.log"
    assert log_format.number_of("wal-00000000000000000007.log") == 7
    for name in ("wal.log", "wal.spare", "wal-7.log", "wal-00000000000000000007.idx", "wal-.log"):
        assert log_format.number_of(name) is None
