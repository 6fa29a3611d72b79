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

from meterd.core.log.block_headers import (
    Surroundings,
    header_at,
    made_anew,
    whole_record,
    zero_sectors,
)
from meterd.core.log.checksum_repair import CRC_SIZE, corrections
from meterd.core.log.neutral_rows import neutral_payload
from meterd.core.log.scan import check_slices, read_block
from meterd.protocol import log_format
from meterd.protocol.log_format import (
    BLOCK_HEADER_SIZE,
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


def mend(
    buffer: memoryview, around: Surroundings, fits: Callable[[BlockHeader], bool]
) -> Mended | None:
    """Return the block at `around.place` mended, None when that cannot be done.

    `fits`: does a header say what a block at this place must?
    """
    offset = around.place.offset
    head = header_at(buffer, offset, fits) or made_anew(buffer, around)
    if head is None:
        return None
    header = log_format.parse_block(head, 0)[0]
    if not fits(header) or offset + header.block_size > len(buffer):
        return None
    block = bytearray(buffer[offset : offset + header.block_size])
    block[:BLOCK_HEADER_SIZE] = head
    lost = _mend_records(block, header, around.last_sequence)
    if lost is None or zero_sectors(block) > header.zero_sectors:
        return None
    try:
        read_block(memoryview(block), 0)
    except Damaged:
        return None
    return Mended(bytes(block), lost)


# Records.


def _mend_records(block: bytearray, header: BlockHeader, last: int) -> list[Lost] | None:
    lost: list[Lost] = []
    at, rows, left = BLOCK_HEADER_SIZE, 0, header.record_count
    while left:
        record = whole_record(block, at)
        if record is None and _correct_head(block, at):
            record = whole_record(block, at)
        if record is None and (found := _empty(block, at)) is not None:
            lost.append(found)
            record = whole_record(block, at)
        if record is None:
            size = _fill(block, at, left, header.row_count - rows, last + 1)
            if not size:
                return None
            lost.append(Lost(last + 1, EVENTS, np.zeros(0, SLICE)))
            record = whole_record(block, at)
        if record is None:
            return None
        last = record.sequence
        at, rows, left = at + record.size, rows + record.row_count, left - 1
    if len(block) - at >= SECTOR_SIZE:
        return None
    block[at:] = bytes(len(block) - at)
    return lost


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
        if whole_record(block, at) is not None:
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
        record = whole_record(block, at)
        if record is None:
            return None
        first = first or record.sequence
        rows, at = rows + record.row_count, at + record.size
    return rows, first
