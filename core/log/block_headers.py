"""Puts right the header of a damaged block, or makes it anew from what lies around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from meterd.core.kernels import sectors
from meterd.core.log.checksum_repair import CRC_SIZE, corrections, forced
from meterd.core.log.scan import NextBlock, check_slices
from meterd.protocol import log_format
from meterd.protocol.log_format import (
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    RECORD_HEADER_SIZE,
    SECTOR_SIZE,
    BlockHeader,
    Damaged,
    Record,
)

# Where in a block header the time lies that nothing depends on; its low half is chosen so that the
# checksum is the one that the next block names.
_WRITTEN_AT: Final = 40


class Surroundings(NamedTuple):
    """What is known of a block without looking into it."""

    place: NextBlock  # where it lies and what it must say
    file_number: int
    file_crc: int
    last_sequence: int  # of the record before it


def block_header(
    buffer: memoryview, around: Surroundings, fits: Callable[[BlockHeader], bool]
) -> tuple[BlockHeader, int] | None:
    """Return the header of a block and its checksum, whatever became of its records."""
    head = header_at(buffer, around.place.offset, fits) or made_anew(buffer, around)
    if head is None:
        return None
    found = log_format.parse_block(head, 0)
    return found if fits(found[0]) else None


def whole_record(block: bytearray, at: int) -> Record | None:
    """Return the record at a place of the block if it checks."""
    try:
        record = log_format.parse_record(memoryview(block).toreadonly(), at)
        check_slices(record)
    except Damaged:
        return None
    return record


def header_at(buffer: memoryview, offset: int, fits: Callable[[BlockHeader], bool]) -> bytes | None:
    """Return a block's header, one wrong byte of it put right; None when that is not enough."""
    found = bytes(buffer[offset : offset + BLOCK_HEADER_SIZE])
    if len(found) < BLOCK_HEADER_SIZE:
        return None
    candidates = [found]
    split = BLOCK_HEADER_SIZE - CRC_SIZE
    candidates += [fixed + crc for fixed, crc in corrections(found[:split], found[split:])]
    for candidate in candidates:
        try:
            if fits(log_format.parse_block(candidate, 0)[0]):
                return candidate
        except Damaged:
            continue
    return None


def made_anew(buffer: memoryview, around: Surroundings) -> bytes | None:
    """Return a header made from the records behind it and the next block's header."""
    offset, place = around.place.offset, around.place
    following = _next_header(buffer, around)
    if following is None:
        return None
    end, after = following
    block = bytearray(buffer[offset:end])
    count, rows, at = 0, 0, BLOCK_HEADER_SIZE
    while len(block) - at >= RECORD_HEADER_SIZE:
        record = whole_record(block, at)
        if record is None:
            break
        count, rows, at = count + 1, rows + record.row_count, at + record.size
    if not count or len(block) - at >= SECTOR_SIZE or bytes(block[at:]).strip(b"\0"):
        return None
    block[:BLOCK_HEADER_SIZE] = b"\xff" * BLOCK_HEADER_SIZE
    header = BlockHeader(
        place.block_seq,
        end - offset,
        count,
        rows,
        place.row,
        zero_sectors(block),
        place.previous_crc,
        after.written_at,
        around.file_number,
        around.file_crc,
    )
    if after.first_row != place.row + rows:
        return None
    made = log_format.encode_block_header(header)[: BLOCK_HEADER_SIZE - CRC_SIZE]
    made = forced(made, after.previous_crc, _WRITTEN_AT)
    return made + after.previous_crc.to_bytes(CRC_SIZE, "little")


def _next_header(buffer: memoryview, around: Surroundings) -> tuple[int, BlockHeader] | None:
    """Return where the next block begins, and its header."""
    offset, place = around.place.offset, around.place
    magic = BLOCK_MAGIC.to_bytes(4, "little")
    limit = min(len(buffer), offset + log_format.BLOCK_SIZE_MAX)
    for at in range(offset + SECTOR_SIZE, limit, SECTOR_SIZE):
        if buffer[at : at + 4] != magic:
            continue
        try:
            header, _ = log_format.parse_block(buffer, at)
        except Damaged:
            continue
        if header.file_crc == around.file_crc and header.block_seq == place.block_seq + 1:
            return at, header
    return None


def zero_sectors(block: bytearray) -> int:
    return int(sectors.count_zero_sectors(np.frombuffer(bytes(block), np.uint64)))
