"""Turns the index beside a full log file into bytes and back (docs/STORAGE.md, "Index").

An index is a header, a table of sections with a checksum each, and the sections: arrays that are
used where they lie, memory-mapped, never copied.  It belongs to one log file, named by number,
size and the crc of its last block header, and is derived from it and from the bitmap of refused
rows, so a lost or damaged one can be made again as long as that bitmap can.

Invariants:
  * what `parse_index` returns has passed its checksums, and its sections agree in size;
  * anything else raises Damaged, and decides nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.protocol.log_format import Bytes, Damaged, padded

MAGIC: Final = b"METERDIX"
VERSION: Final = 1
# Row numbers share a 64-bit word with 40-bit keys while they are sorted.
ROWS_MAX: Final = 1 << 24
HAS_OPERATIONS: Final = 1

_HEADER: Final = struct.Struct("<8sHHIQQIIIIqq")
_SECTION: Final = struct.Struct("<IIQQ")
_CRC: Final = struct.Struct("<I")

U8, U32, U64, I64 = np.dtype("u1"), np.dtype("<u4"), np.dtype("<u8"), np.dtype("<i8")
# The sections in file order; the number in the file is the position here plus one.
SECTIONS: Final[tuple[tuple[str, np.dtype[Any]], ...]] = (
    ("keys", U64),
    ("starts", U32),
    ("min_timestamp", I64),
    ("max_timestamp", I64),
    ("rows", U32),
    ("record_row", U32),
    ("record_offset", U64),
    ("refused", U8),
)
HEADER_SIZE: Final = padded(_HEADER.size + len(SECTIONS) * _SECTION.size + _CRC.size)


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What an index says about itself and its log file."""

    file_number: int
    log_size: int
    log_crc: int  # crc of the last block header of the log file
    row_count: int  # rows in the log file, stored or not
    stored_count: int
    has_operations: bool  # whether a stored row adds or removes a member
    min_timestamp: int  # of the stored rows; the greatest int64 when there is none
    max_timestamp: int  # the least int64 when there is none


@dataclass(frozen=True, slots=True)
class LogIndex:
    """Where the stored rows of an account and metric lie in a log file."""

    header: IndexHeader
    keys: NDArray[np.uint64]  # distinct, rising (core/kernels/scan.py says what of)
    starts: NDArray[np.uint32]  # keys + 1: where a key's rows begin in `rows`
    min_timestamp: NDArray[np.int64]  # per key
    max_timestamp: NDArray[np.int64]
    rows: NDArray[np.uint32]  # row numbers in the file, by key, rising within one
    record_row: NDArray[np.uint32]  # first row of each record of events
    record_offset: NDArray[np.uint64]  # and where its header lies in the log file
    refused: NDArray[np.uint8]  # bitmap, least significant bit first: rows that were not stored

    def sections(self) -> Mapping[str, NDArray[Any]]:
        return {name: getattr(self, name) for name, _ in SECTIONS}


def encode_index(index: LogIndex) -> list[Bytes]:
    """Return the bytes of an index file, in pieces; the sections are not copied."""
    header = index.header
    fixed = _HEADER.pack(
        MAGIC,
        VERSION,
        0,
        len(SECTIONS),
        header.file_number,
        header.log_size,
        header.log_crc,
        header.row_count,
        header.stored_count,
        HAS_OPERATIONS if header.has_operations else 0,
        header.min_timestamp,
        header.max_timestamp,
    )
    table, offset = b"", HEADER_SIZE
    pieces: list[Bytes] = []
    for number, (name, dtype) in enumerate(SECTIONS, 1):
        raw = np.ascontiguousarray(getattr(index, name), dtype).view(np.uint8).data
        table += _SECTION.pack(number, crc32c(raw), offset, len(raw))
        pieces += [raw, bytes(padded(len(raw)) - len(raw))]
        offset += padded(len(raw))
    header_bytes = fixed + table + _CRC.pack(crc32c(fixed + table))
    return [header_bytes.ljust(HEADER_SIZE, b"\0"), *pieces]


def parse_header(buffer: bytes | memoryview) -> IndexHeader:
    """Return the header of an index file, without looking at its sections.  Raises Damaged."""
    if len(buffer) < HEADER_SIZE:
        raise Damaged(0, f"an index of {len(buffer)} bytes has no header")
    magic, version, reserved, sections, *fields = _HEADER.unpack_from(buffer)
    end = _HEADER.size + len(SECTIONS) * _SECTION.size
    if magic != MAGIC:
        raise Damaged(0, "not an index (magic)")
    if _CRC.unpack_from(buffer, end)[0] != crc32c(buffer[:end]):
        raise Damaged(0, "index header checksum")
    if version != VERSION or reserved or sections != len(SECTIONS):
        raise Damaged(0, f"index version {version} is not known")
    number, log_size, log_crc, row_count, stored_count, flags, low, high = fields
    return IndexHeader(
        number, log_size, log_crc, row_count, stored_count, bool(flags & HAS_OPERATIONS), low, high
    )


def parse_index(buffer: bytes | memoryview) -> LogIndex:
    """Return an index as views of the buffer, all its checksums verified.  Raises Damaged."""
    header = parse_header(buffer)
    found: dict[str, NDArray[Any]] = {}
    for place, (name, dtype) in enumerate(SECTIONS):
        at = _HEADER.size + place * _SECTION.size
        number, crc, offset, size = _SECTION.unpack_from(buffer, at)
        if number != place + 1 or offset % 8 or offset + size > len(buffer):
            raise Damaged(at, f"section {name} does not lie in the file")
        if size % dtype.itemsize:
            raise Damaged(at, f"section {name} has {size} bytes")
        if crc != crc32c(buffer[offset : offset + size]):
            raise Damaged(offset, f"checksum of section {name}")
        found[name] = np.frombuffer(buffer, dtype, size // dtype.itemsize, offset)
    index = LogIndex(header, **found)
    _check_sizes(index)
    return index


def _check_sizes(index: LogIndex) -> None:
    keys, header = len(index.keys), index.header
    agree = (
        len(index.starts) == keys + 1
        and len(index.min_timestamp) == len(index.max_timestamp) == keys
        and len(index.rows) == header.stored_count == int(index.starts[-1])
        and len(index.record_row) == len(index.record_offset)
        and len(index.refused) == (header.row_count + 7) // 8
    )
    if not agree:
        raise Damaged(0, "sections of the index do not agree in size")
