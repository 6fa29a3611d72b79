"""Each way a log file can end, written out, and each way it can contradict itself."""

from __future__ import annotations

from random import Random

import pytest

from meterd.core.log.scan import Block, FileScan, Groups, NextBlock, Torn, verify_chain
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import BLOCK_HEADER_SIZE, BlockHeader, Damaged, FileHeader
from tests.support.log_life import OWNER, events_entry, meta_entry
from tests.support.replica import Replica

FIRST = 4096
SIZE = 32 * 1024


class Image:
    """The bytes of a preallocated log file, built block by block."""

    def __init__(self) -> None:
        header = log_format.encode_file_header(FileHeader(*OWNER[:3], 1, 1, 0, 0))
        self.content = bytearray(header.ljust(SIZE, b"\0"))
        self.file_crc = log_format.parse_file_header(header)[1]
        self.replica = Replica(Groups())
        self.random = Random(5)
        self.blocks: list[tuple[int, int]] = []  # start and end
        self.next = BlockHeader(1, 0, 0, 0, 0, 0, 0, 0, 1, self.file_crc)
        self.end = FIRST

    def add(self, **changed: int) -> tuple[int, int]:
        """Append a block of a few sectors, one of them all zero; return its start and end."""
        records = b""
        for entry in (
            meta_entry(self.replica, Random(1), 1600),
            events_entry(self.replica, self.random, 9),
        ):
            records += entry.head + bytes(entry.payload)
        size = log_format.padded(BLOCK_HEADER_SIZE + len(records), 512)
        body = (bytes(BLOCK_HEADER_SIZE) + records).ljust(size, b"\0")
        sectors = [body[at : at + 512] for at in range(512, size, 512)]
        header = self.next._replace(
            block_size=size, record_count=2, row_count=9, zero_sectors=sectors.count(bytes(512))
        )._replace(**changed)
        encoded = log_format.encode_block_header(header)
        start, self.end = self.end, self.end + size
        self.content[start : self.end] = encoded + body[BLOCK_HEADER_SIZE:]
        self.next = self.next._replace(
            block_seq=header.block_seq + 1,
            first_row=self.next.first_row + 9,
            previous_crc=int.from_bytes(encoded[-4:], "little"),
        )
        self.blocks.append((start, self.end))
        return start, self.end

    def scan(self, active: bool = True) -> tuple[list[Block], FileScan]:
        content = self.content if active else self.content[: self.end]
        scan = FileScan("wal.log", memoryview(bytes(content)), active)
        return list(scan), scan

    def corrupt_at(self, active: bool = True) -> int:
        with pytest.raises(Corrupt) as caught:
            self.scan(active)
        assert caught.value.path == "wal.log"
        return caught.value.offset


@pytest.fixture
def image() -> Image:
    image = Image()
    image.add()
    image.add()
    return image


@pytest.mark.parametrize("active", [True, False])
def test_a_good_file_is_read_to_its_end(image: Image, active: bool) -> None:
    blocks, scan = image.scan(active)
    assert [block.offset for block in blocks] == [start for start, _ in image.blocks]
    assert [len(block.records) for block in blocks] == [2, 2]
    assert scan.torn is None
    assert scan.end == NextBlock(image.end, 3, 18, image.next.previous_crc)


def test_a_file_without_blocks_ends_behind_its_header() -> None:
    blocks, scan = Image().scan()
    assert (blocks, scan.torn, scan.end) == ([], None, NextBlock(FIRST, 1, 0, 0))


def test_a_file_that_is_full_to_the_last_byte_is_read(image: Image) -> None:
    del image.content[image.end :]
    assert len(image.scan()[0]) == 2


def test_a_block_that_lacks_a_sector_is_torn(image: Image) -> None:
    start, end = image.add()
    image.content[end - 512 : end] = bytes(512)
    blocks, scan = image.scan()
    assert (len(blocks), scan.torn) == (2, Torn(start, end))
    assert scan.end.offset == start


def test_a_block_that_lacks_its_first_sector_is_torn(image: Image) -> None:
    start, end = image.add()
    image.content[start : start + 512] = bytes(512)
    assert image.scan()[1].torn == Torn(start, end)


def test_a_block_that_lacks_only_sectors_of_zeros_is_whole(image: Image) -> None:
    image.add()
    assert image.content.count(bytes(512), FIRST, image.end) >= 3
    assert len(image.scan()[0]) == 3


def test_a_full_file_has_no_torn_tail(image: Image) -> None:
    start, end = image.add()
    image.content[end - 512 : end] = bytes(512)
    assert start < image.corrupt_at(active=False) < end


def test_a_missing_block_before_a_later_one_is_corruption(image: Image) -> None:
    start, end = image.blocks[0]
    image.content[start:end] = bytes(end - start)
    assert image.corrupt_at() == start


def test_a_missing_sector_before_a_later_block_is_corruption(image: Image) -> None:
    start, end = image.blocks[0]
    image.content[end - 512 : end] = bytes(512)
    assert start < image.corrupt_at() < end


def test_a_header_of_zeros_in_a_sector_with_data_is_corruption(image: Image) -> None:
    start, _ = image.add()
    image.content[start : start + 64] = bytes(64)
    assert image.corrupt_at() == start


def test_a_damaged_last_block_with_all_its_sectors_is_corruption(image: Image) -> None:
    start, _ = image.blocks[1]
    image.content[start + BLOCK_HEADER_SIZE + 16] ^= 4
    assert image.corrupt_at() == start + BLOCK_HEADER_SIZE


def test_data_behind_a_torn_block_is_corruption(image: Image) -> None:
    """Only one block can be under way; what lies behind it was not written by this program."""
    start, end = image.add()
    image.content[end - 512 : end] = bytes(512)
    image.content[end + 512] = 1
    assert start < image.corrupt_at() < end


def test_bytes_that_pass_for_a_block_of_another_file_do_not_count_as_later(image: Image) -> None:
    """What clients send may contain blocks copied from elsewhere, but not this file's key."""
    start, end = image.add()
    foreign = log_format.encode_block_header(
        image.next._replace(block_size=512, file_crc=image.file_crc ^ 1)
    )
    image.content[start : start + 512] = bytes(512)
    image.content[start + 512 : start + 576] = foreign
    assert image.scan()[1].torn == Torn(start, end)


def test_nonzero_padding_is_corruption(image: Image) -> None:
    _, end = image.blocks[1]
    image.content[end - 1] = 1
    record_end = image.corrupt_at()
    assert end - 512 < record_end < end
    assert image.content[record_end : end - 1].strip(b"\0") == b""


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"block_seq": 9}, "block 9 where 3 belongs"),
        ({"previous_crc": 1}, "previous_crc"),
        ({"first_row": 7}, "row 7, not 18"),
        ({"file_number": 2}, "another file"),
        ({"file_crc": 2}, "another file"),
        ({"row_count": 8}, "8 rows holds 9"),
        ({"record_count": 1}, "not its padding"),
        ({"record_count": 3}, "record"),
        ({"block_size": SIZE}, "beyond the end"),
    ],
)
def test_a_block_that_contradicts_what_surrounds_it_is_corruption(
    image: Image, changed: dict[str, int], reason: str
) -> None:
    image.add(**changed)
    with pytest.raises(Corrupt, match=reason):
        image.scan()


def test_groups_follow_the_records_and_survive_packing(image: Image) -> None:
    groups = Groups()
    for block in image.scan()[0]:
        for record in block.records:
            verify_chain(record, groups)
            groups.follow(record)
    assert groups.sequence == 4
    assert int(groups.index.sum()) == sum(
        len(record.slices) for block in image.scan()[0] for record in block.records
    )
    again = Groups.unpacked(groups.packed())
    assert again.packed() == groups.packed()


def test_a_record_that_does_not_follow_is_damage(image: Image) -> None:
    records = [record for block in image.scan()[0] for record in block.records]
    groups = Groups()
    groups.follow(records[0])
    with pytest.raises(Damaged, match="sequence"):
        groups.follow(records[0])
    with pytest.raises(Damaged, match="time"):
        groups.follow(records[0]._replace(sequence=2**40))
    skipped = Groups()
    skipped.index[int(records[0].slices["partition"][0])] = 5
    with pytest.raises(Damaged, match="index"):
        skipped.follow(records[0])
    newer = Groups()
    newer.term[int(records[0].slices["partition"][0])] = 5
    with pytest.raises(Damaged, match="term"):
        newer.follow(records[0])


def test_the_hash_chain_covers_content_order_and_header(image: Image) -> None:
    meta, events = image.scan()[0][0].records
    for record in (meta, events):
        verify_chain(record, Groups())
        other = Groups()
        other.digest[int(record.slices["partition"][0]), 1] = 1
        for wrong in (
            record._replace(leader_time=record.leader_time + 1),
            record._replace(registry_version=9),
            record._replace(payload=memoryview(bytes([1, *record.payload[1:]]))),
        ):
            with pytest.raises(Damaged, match="hash chain"):
                verify_chain(wrong, Groups())
        with pytest.raises(Damaged, match="hash chain"):
            verify_chain(record, other)
