"""The bytes of a segment, and what damage to them does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.kernels.packing import CHUNK_SIZE_MAX, pack_column, skip_column, unpack_column
from meterd.core.questions.question import Question
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.log_format import Damaged
from meterd.protocol.segment_format import (
    HEADER_SIZE,
    INDEX_HEADER_SIZE,
    SECTIONS,
    SUFFIXES,
    SegmentName,
    encode_index,
    parse_file_header,
    parse_header,
    parse_index,
    parse_name,
)
from tests.support.log_builder import LoggedEvent
from tests.support.segments import EVER, Files, counted, encoded, fed, logged, opened, registry_of

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "segment"
UUID = "01234567-89ab-cdef-0123-456789abcdef"
REGISTRY = registry_of(3)


def golden_events() -> list[list[LoggedEvent]]:
    """Everything a row can be, in two records."""
    return [
        [
            LoggedEvent("acme/eu", UUID, 1, 5_000, 1_000_000_000, "none", {"region": "eu"}),
            LoggedEvent("acme", "refused", 1, 9, 2_000_000_000),
            LoggedEvent("acme", "text id", 2, -7_000, 3_000_000_000, "add", {"region": "ü"}),
            LoggedEvent("zeta", UUID, 3, 0, 1_000_000_000),
        ],
        [
            LoggedEvent("acme", UUID, 1, 2**63 - 1, -(2**63)),
            LoggedEvent("acme/eu", "x", 1, 1, 1_000_000_000, "remove", {"region": "eu"}),
        ],
    ]


def golden() -> Files:
    builder = logged(golden_events())
    (refused,) = [place.row for place in builder.placed if place.event.id == "refused"]
    return encoded(builder, {refused})


def test_the_bytes_are_those_that_were_written_before(monkeypatch):
    # The index holds the checksum of the log file, which was of this version.
    monkeypatch.setattr(log_format, "FILE_VERSION", 1)
    files = golden()
    for suffix in SUFFIXES:
        assert files[suffix] == (GOLDEN / f"golden{suffix}").read_bytes()


def test_a_segment_written_before_is_read():
    files = {suffix: (GOLDEN / f"golden{suffix}").read_bytes() for suffix in SUFFIXES}
    reader = opened(files)
    header = reader.header
    assert (header.first, header.last, header.row_count, header.ordinal_count) == (7, 7, 5, 6)
    assert (header.account_count, header.run_count, header.set_count) == (3, 4, 3)
    assert (header.min_timestamp, header.max_timestamp) == (-(2**63), 3_000_000_000)
    assert header.has_operations
    wanted = [
        (event.account, event.id, event.timestamp, str(event.value), event.operation)
        for place in sorted(logged(golden_events()).placed, key=lambda place: place.row)
        for event in [place.event]
        if event.id != "refused"
    ]
    found = [
        (event["account"], event["id"], event["timestamp"], event["value"], event["operation"])
        for event in fed(reader, REGISTRY)
    ]
    assert found == wanted
    assert len(reader.index.checked_digests()) == header.slice_count


def everything(files: Files):
    """All answers of a segment, that its checksums cover them all."""
    reader = opened(files)
    found = [fed(reader, REGISTRY)]
    for number in (1, 2, 3):
        question = Question("accounts", metric=f"m{number}", group_by=("region",), **EVER)
        found.append(counted(reader, question, REGISTRY))
    digests = reader.index.checked_digests().tolist()
    return found, digests, reader.header


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_is_found_or_changes_nothing(suffix):
    """One bit of every byte, another one each time."""
    files = golden()
    good = everything(files)
    unnoticed = 0
    for at in range(len(files[suffix])):
        damaged = bytearray(files[suffix])
        damaged[at] ^= 1 << at % 8
        try:
            found = everything(files | {suffix: bytes(damaged)})
        except Damaged:
            continue
        except Corrupt as corrupt:
            assert corrupt.path.endswith(suffix)
            assert corrupt.offset <= at
            continue
        assert found == good
        assert files[suffix][at] == 0, f"byte {at} is covered by no checksum"
        unnoticed += 1
    assert unnoticed < 64  # zeros between sections


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [0, 1, HEADER_SIZE - 1, HEADER_SIZE, -9])
def test_a_cut_file_is_damaged(suffix, size):
    files = golden()
    with pytest.raises(Damaged):
        opened(files | {suffix: files[suffix][:size]})


def test_files_of_two_segments_never_pass_for_one():
    files, other = golden(), encoded(logged([[LoggedEvent("a", "b", 1, 2, 3)]], 8))
    for suffix in SUFFIXES:
        with pytest.raises(Damaged):
            opened(files | {suffix: other[suffix]})


def test_a_segment_without_rows_has_the_facts_of_nothing():
    for refused in (set(), {0}):
        reader = opened(
            encoded(logged([[LoggedEvent("a", "b", 1, 2, 3)]] if refused else []), refused)
        )
        header = reader.header
        assert (header.row_count, header.account_count) == (0, 0)
        assert header.ordinal_count == len(refused)
        assert (header.min_timestamp, header.max_timestamp) == (I64_MAX, I64_MIN)
        assert fed(reader, REGISTRY) == []
        assert counted(reader, Question("usage", "a", metric="m1", **EVER), REGISTRY) == {}


@given(st.integers(0, 10**12 - 1), st.integers(0, 10**12 - 1), st.sampled_from(SUFFIXES))
def test_names_tell_the_range(one, two, suffix):
    name = SegmentName(min(one, two), max(one, two))
    assert parse_name(name.file(suffix)) == (name, suffix)


@pytest.mark.parametrize(
    "name",
    [
        "seg-1-2.seg",
        "seg-000000000001-000000000002",
        "seg-000000000001-000000000002.idx.tmp",
        "seg-000000000002-000000000001.idx",
        "wal-00000000000000000007.idx",
        "seg-.seg",
    ],
)
def test_other_names_are_no_segments(name):
    assert parse_name(name) is None


def test_headers_name_what_is_wrong():
    with pytest.raises(Damaged, match="magic"):
        parse_header(bytes(INDEX_HEADER_SIZE))
    with pytest.raises(Damaged, match="magic"):
        parse_file_header(".seg", golden()[".props"])


@given(
    st.lists(
        st.integers(-(2**63), 2**63 - 1)
        | st.integers(-5, 5)
        | st.sampled_from([-(2**63), 2**63 - 1, 2**56, 2**57 - 1]),
        min_size=1,
        max_size=300,
    )
)
def test_a_packed_column_comes_back(values):
    column = np.array(values, np.int64)
    out = np.full(CHUNK_SIZE_MAX * (len(values) // 128 + 1) + 8, 255, np.uint8)
    end = pack_column(column, len(column), out, 3)
    back = np.empty(len(column), np.int64)
    assert unpack_column(out, 3, len(column), back) == end == skip_column(out, 3, len(column))
    assert back.tolist() == values


def test_a_later_generation_has_another_version_of_the_index():
    """So a meterd that knows no generations refuses it, instead of not seeing it."""
    files = golden()
    index = parse_index(files[".idx"])
    assert (index.header.generation, index.header.name) == (0, SegmentName(7, 7))
    header = replace(index.header, generation=3, has_erased=True)
    sections = {name: getattr(index, name) for name, _ in SECTIONS}
    encoded_index = b"".join(encode_index(header, sections))
    assert int.from_bytes(encoded_index[8:10], "little") == 2
    assert parse_index(encoded_index).header == header
    assert header.name == SegmentName(7, 7, 3)
    mixed = bytearray(encoded_index)
    mixed[8:10] = (1).to_bytes(2, "little")
    mixed[380:384] = crc32c(bytes(mixed[:380])).to_bytes(4, "little")
    with pytest.raises(Damaged, match="version"):
        parse_index(bytes(mixed))


def test_generations_supersede_each_other_and_what_lies_within():
    old, new, wide = SegmentName(3, 4), SegmentName(3, 4, 1), SegmentName(3, 5)
    assert new.supersedes(old) and not old.supersedes(new) and not old.supersedes(old)
    assert wide.supersedes(new) and not new.supersedes(wide)
    for name in (old, new, wide, SegmentName(1, 1, 10_000)):
        assert parse_name(name.file(".idx")) == (name, ".idx")
    assert parse_name("seg-000000000003-000000000004-0000.idx") is None
