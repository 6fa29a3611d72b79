"""Any flipped bit of a durable block is reported, and any torn block is told from it.

The model of a torn block is brute force: lay the block over zeros, sector by sector, and compare.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.actors.log.wal_recovery import Recovery
from meterd.core.log.scan import FileScan, Torn
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from tests.support.crash_disk import CrashDisk
from tests.support.log_life import DIRECTORY, OWNER, any_entries, as_read, open_log, read_all
from tests.support.replica import Replica

SEGMENT_SIZE = 16 * 1024
ACTIVE = f"{DIRECTORY}/{log_format.ACTIVE_NAME}"
SECTOR = log_format.SECTOR_SIZE


def log_of(random: Random, blocks: int) -> CrashDisk:
    disk = CrashDisk()
    log, _, groups = open_log(disk, SEGMENT_SIZE)
    replica = Replica(groups)
    for _ in range(blocks):
        log.append(any_entries(replica, random))
    log.protect()
    return disk


def parts(content: bytes, path: str) -> list[tuple[int, int]]:
    """Return where each header, record and padding of a file begins and ends."""
    found = [(0, log_format.FILE_HEADER_SIZE)]
    for block in FileScan(path, memoryview(content), active=path == ACTIVE):
        at = block.offset + log_format.BLOCK_HEADER_SIZE
        found.append((block.offset, at))
        for record in block.records:
            found.append((at, at + record.size))
            at += record.size
        if at < block.offset + block.header.block_size:
            found.append((at, block.offset + block.header.block_size))
    return found


@given(st.integers(0, 2**32), st.integers(1, 12), st.data())
def test_a_flipped_bit_is_corruption_with_file_and_offset(
    seed: int, blocks: int, data: st.DataObject
) -> None:
    disk = log_of(Random(seed), blocks)
    names = [f"{DIRECTORY}/{n}" for n in disk.names(DIRECTORY) if not n.endswith(".open")]
    path = data.draw(st.sampled_from(names))
    start, end = data.draw(st.sampled_from(parts(bytes(disk.content(path)), path)))
    at, bit = data.draw(st.integers(start, end - 1)), data.draw(st.integers(0, 7))
    disk.content(path)[at] ^= 1 << bit
    with pytest.raises(Corrupt) as caught:
        Recovery(disk, DIRECTORY, OWNER, None, lambda _: None).run()
    assert (caught.value.path, caught.value.offset) == (path, start)


@given(st.integers(0, 2**32), st.integers(0, 4), st.data())
def test_a_torn_block_is_found_for_every_set_of_missing_sectors(
    seed: int, blocks: int, data: st.DataObject
) -> None:
    random = Random(seed)
    disk = CrashDisk()
    log, _, groups = open_log(disk, 64 * 1024)
    replica = Replica(groups)
    for _ in range(blocks):
        log.append(any_entries(replica, random))
    start = log.place.offset
    log.append(any_entries(replica, random))
    whole = disk.content(ACTIVE)
    block = bytes(whole[start : log.place.offset])
    image = bytearray(whole)
    for at in range(0, len(block), SECTOR):
        if data.draw(st.booleans()):
            image[start + at : start + at + SECTOR] = bytes(SECTOR)
    left = bytes(image[start : start + len(block)])

    scan = FileScan(ACTIVE, memoryview(bytes(image)), active=True)
    found = [scanned.offset for scanned in scan]
    if left == block:
        assert (len(found), scan.torn) == (blocks + 1, None)
    elif not any(left):
        assert (len(found), scan.torn, scan.end.offset) == (blocks, None, start)
    else:
        # Without its header nobody knows how long the block was; its last sector shows.
        kept = len(left.rstrip(b"\0")) if not any(left[:SECTOR]) else len(block)
        end = start + log_format.padded(kept, SECTOR)
        assert (len(found), scan.torn, scan.end.offset) == (blocks, Torn(start, end), start)


@given(st.integers(0, 2**32), st.data())
def test_a_flipped_bit_in_an_unprotected_last_block_is_not_cut(
    seed: int, data: st.DataObject
) -> None:
    """But for one case, the reason to protect an idle log: the bit was its sector's only one."""
    random = Random(seed)
    disk = CrashDisk()
    log, _, groups = open_log(disk, 64 * 1024)
    start = log.place.offset
    log.append(any_entries(Replica(groups), random))
    content = disk.content(ACTIVE)
    at = data.draw(st.integers(start, log.place.offset - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    sector = (at - start) // SECTOR * SECTOR + start
    scan = FileScan(ACTIVE, memoryview(bytes(content)), active=True)
    if any(content[sector : sector + SECTOR]):
        with pytest.raises(Corrupt):
            list(scan)
    else:
        assert (list(scan), scan.torn) == ([], Torn(start, log.place.offset))


@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=3000), st.integers(0, 12_000))
def test_any_bytes_in_a_file_are_read_or_reported(seed: int, noise: bytes, at: int) -> None:
    content = disk_content = bytearray(log_of(Random(seed), 2).content(ACTIVE))
    content[at : at + len(noise)] = noise
    try:
        list(FileScan(ACTIVE, memoryview(bytes(disk_content)), active=True))
    except Corrupt as error:
        assert 0 <= error.offset <= len(content)


@given(st.integers(0, 2**32), st.sampled_from(("remove", "swap", "foreign")))
def test_files_that_are_missing_or_in_the_wrong_place_are_corruption(seed: int, how: str) -> None:
    disk = log_of(Random(seed), 40)
    first, second = (f"{DIRECTORY}/{log_format.full_name(number)}" for number in (1, 2))
    if how == "remove":
        disk.remove(first)
    elif how == "swap":
        disk.rename(first, "/data/held")
        disk.rename(second, first)
        disk.rename("/data/held", second)
    else:
        other = log_of(Random(seed), 40)
        disk.content(second)[:] = other.content(first)
    with pytest.raises(Corrupt):
        Recovery(disk, DIRECTORY, OWNER, None, lambda _: None).run()


@given(st.integers(0, 2**32))
def test_a_lost_active_file_is_corruption(seed: int) -> None:
    """An operator deletes wal.log: the full files alone must not pass for the whole log."""
    disk = log_of(Random(seed), 40)
    disk.remove(ACTIVE)
    with pytest.raises(Corrupt, match="missing"):
        Recovery(disk, DIRECTORY, OWNER, None, lambda _: None).run()


@given(st.integers(0, 2**32))
def test_what_was_written_is_read(seed: int) -> None:
    random = Random(seed)
    disk = CrashDisk()
    log, _, groups = open_log(disk, SEGMENT_SIZE)
    replica = Replica(groups)
    written = []
    for _ in range(10):
        entries = any_entries(replica, random)
        durable = log.append(entries)
        written += as_read(entries)
        assert len(durable) == 32 * len(entries)
    assert read_all(disk) == written
