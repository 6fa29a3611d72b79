"""Mends a damaged block of the log of a node that has peers, as far as its bytes allow.

Sans-I/O.  A block whose bytes changed after they were durable is never cut off: it may hold what
this node has acked.  It becomes a block that checks again, of the same size and place:

  * a head with one wrong byte is put right; its checksum says which byte it was
  * a block header that is lost is made anew from its records and the header behind it
  * a record whose head is whole and whose payload is not keeps its place and the identities of its
    ops, which are not here; its rows count for nothing, and peers give the content again
  * a record of events whose head is lost becomes one that says so (`LOST_UNKNOWN`)

Everything else cannot be mended, above all a record that may have held terms and votes: who has
forgotten a vote must not come back as the same voter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.core.kernels import sectors
from meterd.core.log_scan import Place, check_slices, read_block
from meterd.core.neutral_rows import neutral_payload
from meterd.protocol import log_format
from meterd.protocol.log_format import (
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    EVENTS,
    FACTS,
    GROUP_COUNT,
    LOST_UNKNOWN,
    NOT_HERE,
    RECORD_HEADER_SIZE,
    RECORD_MAGIC,
    REPAIR,
    SECTOR_SIZE,
    SLICE,
    SLICE_SIZE,
    BlockHeader,
    Damaged,
    Record,
    RecordFields,
)

CRC_SIZE: Final = 4
# Where in a block header the time lies that nothing depends on; its low half is chosen so that the
# checksum is the one that the next block names.
_WRITTEN_AT: Final = 40
_SLICE_COUNT_AT: Final = 12

Slices = NDArray[np.void]


class Lost(NamedTuple):
    """A record whose content is lost."""

    sequence: int
    kind: int
    slices: Slices  # as they were; none when it is not known whose they were


class Mended(NamedTuple):
    """A block that checks."""

    data: bytes
    lost: list[Lost]


class Surroundings(NamedTuple):
    """What is known of a block without looking into it."""

    place: Place  # where it lies and what it must say
    file_number: int
    file_crc: int
    last_sequence: int  # of the record before it


def mend(
    buffer: memoryview, around: Surroundings, fits: Callable[[BlockHeader], bool]
) -> Mended | None:
    """Return the block at `around.place` mended, None when that cannot be done.

    `fits`: does a header say what a block at this place must?
    """
    offset = around.place.offset
    head = _header(buffer, offset, fits) or _made_anew(buffer, around)
    if head is None:
        return None
    header = log_format.parse_block(head, 0)[0]
    if not fits(header) or offset + header.block_size > len(buffer):
        return None
    block = bytearray(buffer[offset : offset + header.block_size])
    block[:BLOCK_HEADER_SIZE] = head
    lost = _mend_records(block, header, around.last_sequence)
    if lost is None or _zero_sectors(block) > header.zero_sectors:
        return None
    try:
        read_block(memoryview(block), 0)
    except Damaged:
        return None
    return Mended(bytes(block), lost)


def block_header(
    buffer: memoryview, around: Surroundings, fits: Callable[[BlockHeader], bool]
) -> tuple[BlockHeader, int] | None:
    """Return the header of a block and its checksum, whatever became of its records."""
    head = _header(buffer, around.place.offset, fits) or _made_anew(buffer, around)
    if head is None:
        return None
    found = log_format.parse_block(head, 0)
    return found if fits(found[0]) else None


# Records.


def _mend_records(block: bytearray, header: BlockHeader, last: int) -> list[Lost] | None:
    lost: list[Lost] = []
    at, rows, left = BLOCK_HEADER_SIZE, 0, header.record_count
    while left:
        record = _whole(block, at)
        if record is None and _correct_head(block, at):
            record = _whole(block, at)
        if record is None and (found := _empty(block, at)) is not None:
            lost.append(found)
            record = _whole(block, at)
        if record is None:
            size = _fill(block, at, left, header.row_count - rows, last + 1)
            if not size:
                return None
            lost.append(Lost(last + 1, EVENTS, np.zeros(0, SLICE)))
            record = _whole(block, at)
        if record is None:
            return None
        last = record.sequence
        at, rows, left = at + record.size, rows + record.row_count, left - 1
    if len(block) - at >= SECTOR_SIZE:
        return None
    block[at:] = bytes(len(block) - at)
    return lost


def _whole(block: bytearray, at: int) -> Record | None:
    """Return the record at a place of the block if it checks."""
    try:
        record = log_format.parse_record(memoryview(block).toreadonly(), at)
        check_slices(record)
    except Damaged:
        return None
    return record


def _head_size(block: bytearray, at: int) -> int:
    """Return the size of header and slice table as the header says it, 0 when that cannot be."""
    if at + RECORD_HEADER_SIZE > len(block):
        return 0
    size, count, _ = log_format.record_sizes(bytes(block[at : at + RECORD_HEADER_SIZE]))
    head = RECORD_HEADER_SIZE + count * SLICE_SIZE
    return head if count <= GROUP_COUNT and head <= size <= len(block) - at else 0


def _crc_of(head: bytes) -> int:
    """Return the checksum of a record's head: of all of it but the checksum."""
    fixed = head[: RECORD_HEADER_SIZE - CRC_SIZE]
    return int(crc32c(head[RECORD_HEADER_SIZE:], crc32c(fixed)))


def _stored_crc(head: bytes) -> int:
    return int.from_bytes(head[RECORD_HEADER_SIZE - CRC_SIZE : RECORD_HEADER_SIZE], "little")


def _correct_head(block: bytearray, at: int) -> bool:
    """Put right one wrong byte of a record's head, when then all of the record checks."""
    before = bytes(block[at:])
    for head in _candidates(before):
        block[at : at + len(head)] = head
        if _whole(block, at) is not None:
            return True
    block[at:] = before
    return False


def _candidates(found: bytes) -> list[bytes]:
    """Return the heads that differ in one byte from the one at the beginning of some bytes."""
    if len(found) < RECORD_HEADER_SIZE:
        return []
    heads = []
    for byte in range(CRC_SIZE):  # of the number of slices: it says how long the head is
        for value in range(256):
            head = bytearray(found[:RECORD_HEADER_SIZE])
            head[_SLICE_COUNT_AT + byte] = value
            count = log_format.record_sizes(bytes(head))[1]
            size = RECORD_HEADER_SIZE + count * SLICE_SIZE
            if count <= GROUP_COUNT and size <= len(found):
                head += found[RECORD_HEADER_SIZE:size]
                if _crc_of(bytes(head)) == _stored_crc(bytes(head)):
                    heads.append(bytes(head))
    count = log_format.record_sizes(found[:RECORD_HEADER_SIZE])[1]
    size = RECORD_HEADER_SIZE + count * SLICE_SIZE
    if count <= GROUP_COUNT and size <= len(found):
        message = found[: RECORD_HEADER_SIZE - CRC_SIZE] + found[RECORD_HEADER_SIZE:size]
        stored = found[RECORD_HEADER_SIZE - CRC_SIZE : RECORD_HEADER_SIZE]
        for fixed, crc in corrections(message, stored):
            split = RECORD_HEADER_SIZE - CRC_SIZE
            heads.append(fixed[:split] + crc + fixed[split:])
    return heads


def _empty(block: bytearray, at: int) -> Lost | None:
    """Make a record whose payload is lost one that says so; None when that cannot be done."""
    size = _head_size(block, at)
    head = bytes(block[at : at + size])
    if not size or _crc_of(head) != _stored_crc(head):
        return None
    record = _with_any_payload(block, at, size)
    if record is None or record.kind in FACTS:
        return None
    slices = record.slices.copy()
    here = (record.slices["flags"] & (NOT_HERE | REPAIR)) == 0
    slices["flags"] = NOT_HERE
    for name in ("index", "term", "digest"):
        slices[name][~here] = 0
    payload = neutral_payload(record)
    if payload is None or len(payload) != len(record.payload):
        return None
    fields = RecordFields(
        record.kind,
        record.row_count,
        record.heap_size,
        record.registry_version,
        record.leader_time,
        record.sequence,
    )
    block[at : at + record.size] = log_format.encode_record_head(fields, slices, payload) + payload
    return Lost(record.sequence, record.kind, record.slices[here])


def _with_any_payload(block: bytearray, at: int, head_size: int) -> Record | None:
    """Return a record whose head is whole as if its payload were."""
    whole = bytes(block[at : at + head_size])
    size = log_format.record_sizes(whole)[0]
    payload = bytes(block[at + head_size : at + size])
    head = log_format.with_payload_crc(whole, payload)
    try:
        record = log_format.parse_frames(head, payload)
        check_slices(record)
    except Damaged:
        return None
    return record


def _fill(block: bytearray, at: int, left: int, rows: int, sequence: int) -> int:
    """Put a record that names nothing in the place of one whose head is lost; return its size.

    Only when it is one record and had rows, so that it held no terms: 0 otherwise.
    """
    for following in range(at + RECORD_HEADER_SIZE, len(block) + 1, 8):
        rest = _rest(block, following, left - 1)
        if rest is None or rows <= rest[0]:
            continue
        if left > 1 and rest[1] <= sequence:
            return 0
        rows -= rest[0]
        size = following - at
        heap = size - RECORD_HEADER_SIZE - SLICE_SIZE - log_format.payload_layout(rows, 0).size
        if heap < 0:
            return 0
        table = np.zeros(1, SLICE)
        table["flags"], table["count"], table["heap_size"] = NOT_HERE, rows, heap
        table["term"] = LOST_UNKNOWN
        fields = RecordFields(EVENTS, rows, heap, 0, 0, sequence)
        empty = Record(at, size, EVENTS, 0, rows, heap, 0, 0, sequence, table, memoryview(bytes(0)))
        payload = neutral_payload(empty)
        if payload is None:
            return 0
        block[at:following] = log_format.encode_record_head(fields, table, payload) + payload
        return size
    return 0


def _rest(block: bytearray, at: int, count: int) -> tuple[int, int] | None:
    """Return the rows of the last `count` records, which begin here, and the first's sequence.

    None when they do not.  With no record left the place must be the end of the block.
    """
    if count == 0:
        return (0, 0) if at == len(block) else None
    if block[at : at + 4] != RECORD_MAGIC.to_bytes(4, "little"):
        return None
    rows = first = 0
    for _ in range(count):
        record = _whole(block, at)
        if record is None:
            return None
        first = first or record.sequence
        rows, at = rows + record.row_count, at + record.size
    return rows, first


# Headers of blocks.


def _header(buffer: memoryview, offset: int, fits: Callable[[BlockHeader], bool]) -> bytes | None:
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


def _made_anew(buffer: memoryview, around: Surroundings) -> bytes | None:
    """Return a header made from the records behind it and the next block's header."""
    offset, place = around.place.offset, around.place
    following = _next_header(buffer, around)
    if following is None:
        return None
    end, after = following
    block = bytearray(buffer[offset:end])
    count, rows, at = 0, 0, BLOCK_HEADER_SIZE
    while len(block) - at >= RECORD_HEADER_SIZE:
        record = _whole(block, at)
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
        _zero_sectors(block),
        place.previous_crc,
        after.written_at,
        around.file_number,
        around.file_crc,
    )
    if after.first_row != place.row + rows:
        return None
    made = log_format.encode_block_header(header)[: BLOCK_HEADER_SIZE - CRC_SIZE]
    made = _forced(made, after.previous_crc, _WRITTEN_AT)
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


def _zero_sectors(block: bytearray) -> int:
    return int(sectors.count_zero_sectors(np.frombuffer(bytes(block), np.uint64)))


# Checksums.  CRC32C is linear: what a changed byte does to it depends only on the change and on how
# many bytes come behind.


def _effects() -> NDArray[np.uint32]:
    """Return what each change of the last byte does to a checksum (u32[256])."""
    return np.array([crc32c(bytes([v])) ^ crc32c(b"\0") for v in range(256)], np.uint32)


_LAST: Final = _effects()


def _moved(effect: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the effects of the same changes one byte earlier."""
    return (effect >> np.uint32(8)) ^ _LAST[effect & np.uint32(255)]


def corrections(message: bytes, stored: bytes) -> list[tuple[bytes, bytes]]:
    """Return all (message, checksum) that agree and differ from these in exactly one byte."""
    computed = int(crc32c(message)).to_bytes(CRC_SIZE, "little")
    syndrome = int.from_bytes(computed, "little") ^ int.from_bytes(stored, "little")
    found = []
    if sum(a != b for a, b in zip(computed, stored, strict=True)) == 1:
        found.append((message, computed))
    effect = _LAST
    for at in range(len(message) - 1, -1, -1):
        for change in np.flatnonzero(effect == syndrome).tolist():
            if change:
                other = bytearray(message)
                other[at] ^= change
                found.append((bytes(other), stored))
        effect = _moved(effect)
    return found


def _forced(message: bytes, crc: int, at: int) -> bytes:
    """Return the message with the four bytes at `at` chosen so that it has this checksum."""
    effects = []
    effect = _LAST
    for place in range(len(message) - 1, at - 1, -1):
        if place < at + CRC_SIZE:
            effects.insert(0, effect)
        effect = _moved(effect)
    first = (effects[0][:, None] ^ effects[1][None, :]).ravel()
    second = (effects[2][:, None] ^ effects[3][None, :]).ravel()
    wanted = first ^ np.uint32(int(crc32c(message)) ^ crc)
    order = np.argsort(second)
    places = np.searchsorted(second[order], wanted)
    places = np.minimum(places, len(order) - 1)
    hit = np.flatnonzero(second[order[places]] == wanted)[0]
    other = order[places[hit]]
    changes = bytes([int(hit) >> 8, int(hit) & 255, int(other) >> 8, int(other) & 255])
    changed = bytes(a ^ b for a, b in zip(message[at : at + CRC_SIZE], changes, strict=True))
    return message[:at] + changed + message[at + CRC_SIZE :]
