"""Turns log files into values and back: file header, block, record, slice table and columns.

docs/STORAGE.md describes the bytes; the dtypes here are that page as code.  Encoding happens
once per proposal and once per group write, so it is `struct` and CRC-32C and nothing else.
Decoding never copies: a `Record` is a view of the buffer (usually a memory-mapped file), and so
are its columns.

Invariants:
  * what `parse_*` returns has passed its checksums and its sizes agree with each other
  * what does not check raises Damaged, which names the offset and decides nothing: whether it is
    a torn tail or corruption depends on what follows (`core/log/scan.py`)
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.protocol import raft_messages
from meterd.protocol.errors import StorageError

SECTOR_SIZE: Final = 512
FILE_HEADER_SIZE: Final = 4096
# A preallocated file is made of whole pages.
FILE_SIZE_MULTIPLE: Final = 4096
BLOCK_HEADER_SIZE: Final = 64
RECORD_HEADER_SIZE: Final = 64
SLICE_SIZE: Final = 40

FILE_MAGIC: Final = b"METERDWL"
BLOCK_MAGIC: Final = 0x4B4C424D
RECORD_MAGIC: Final = 0x4345524D
FILE_VERSION: Final = 2
# Of version 1 are files of nodes that replicated to nobody; nothing of version 2 is added to them.
FILE_VERSIONS: Final = (1, 2)
BLOCK_VERSION: Final = 1
RECORD_VERSION: Final = 1
MACHINE_VERSION: Final = 1

EVENTS, META, EXPIRE, ACCOUNT = 1, 2, 3, 4
NOOP, CONFIG = raft_messages.NOOP, raft_messages.CONFIG
TERMS, MARK = 32, 33
KINDS: Final = (EVENTS, META, EXPIRE, ACCOUNT, NOOP, CONFIG, TERMS, MARK)
# What the log says about groups; such a record is no op.
FACTS: Final = (TERMS, MARK)
# Operations of the state machine.
COMMANDS: Final = (META, EXPIRE, ACCOUNT)
# Kinds that were proposed under a registry version and at a time; the others have 0 for both.
TIMED: Final = (EVENTS, META, EXPIRE, ACCOUNT)

# Flags of a slice.
NOT_HERE: Final = 1  # the record was not taken for this group: its rows count for nothing
REPAIR: Final = 2  # the content of a damaged op again: replaces nothing
# A slice that is not here has no index, term or digest.  Where it has, its content was lost to
# damage: they name the op; index 0 and this term: it is not known what was lost.
LOST_UNKNOWN: Final = 0xFFFFFFFF

# Partitions 0..255 and the meta group.
META_GROUP: Final = 256
GROUP_COUNT: Final = 257

ACTIVE_NAME: Final = "wal.log"
SPARE_NAME: Final = "wal.spare"

# No writer comes near these; a size beyond them is damage, not a reason to read on.
RECORD_SIZE_MAX: Final = 256 * 1024 * 1024
BLOCK_SIZE_MAX: Final = RECORD_SIZE_MAX + 16 * 1024 * 1024

FILE_HEADER: Final = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u2"),
        ("reserved", "<u2"),
        ("node_id", "<u4"),
        ("cluster_id", "u1", (16,)),
        ("identity_key", "u1", (16,)),
        ("file_number", "<u8"),
        ("first_block_seq", "<u8"),
        ("created", "<i8"),
        ("previous_crc", "<u4"),
        ("crc", "<u4"),
    ]
)
BLOCK_HEADER: Final = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u2"),
        ("flags", "<u2"),
        ("block_seq", "<u8"),
        ("block_size", "<u4"),
        ("record_count", "<u4"),
        ("row_count", "<u4"),
        ("first_row", "<u4"),
        ("zero_sectors", "<u4"),
        ("previous_crc", "<u4"),
        ("written_at", "<i8"),
        ("file_number", "<u8"),
        ("file_crc", "<u4"),
        ("crc", "<u4"),
    ]
)
RECORD_HEADER: Final = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "u1"),
        ("kind", "u1"),
        ("machine_version", "<u2"),
        ("record_size", "<u4"),
        ("slice_count", "<u4"),
        ("row_count", "<u4"),
        ("heap_size", "<u4"),
        ("registry_version", "<u4"),
        ("reserved", "<u4"),
        ("leader_time", "<i8"),
        ("sequence", "<u8"),
        ("payload_crc", "<u4"),
        ("reserved_2", "<u4"),
        ("reserved_3", "<u4"),
        ("head_crc", "<u4"),
    ]
)
SLICE: Final = np.dtype(
    [
        ("partition", "<u2"),
        ("flags", "<u2"),
        ("count", "<u4"),
        ("index", "<u8"),
        ("digest", "<u8", (2,)),
        ("term", "<u4"),
        ("heap_size", "<u4"),
    ]
)
# A row of a TERMS record; flag 1: it is not known where the log ended.
TERM_ROW: Final = np.dtype([("group", "<u2"), ("flags", "<u2"), ("term", "<u4"), ("vote", "<u8")])

_FILE: Final = struct.Struct("<8sHHI16s16sQQqI")
_BLOCK: Final = struct.Struct("<IHHQIIIIIIqQI")
_RECORD: Final = struct.Struct("<IBBHIIIIIIqQIII")
_CRC: Final = struct.Struct("<I")
_SIZES: Final = struct.Struct("<8xIII")
_PAYLOAD_CRC_AT: Final = 48
_SEQUENCE: Final = struct.Struct("<Q")
_SEQUENCE_AT: Final = 40

Bytes = bytes | memoryview


class Damaged(StorageError):
    """Bytes of a log file do not check; `offset` is where the header, record or padding begins."""

    code = "damaged"

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"offset {offset}: {reason}")
        self.offset = offset
        self.reason = reason


class FileHeader(NamedTuple):
    """The first 4096 bytes of a log file."""

    node_id: int
    cluster_id: bytes
    identity_key: bytes
    file_number: int
    first_block_seq: int
    created: int  # UTC ns
    previous_crc: int  # crc of the last block header of the file before


class BlockHeader(NamedTuple):
    """What one group write says about itself."""

    block_seq: int
    block_size: int
    record_count: int
    row_count: int
    first_row: int
    zero_sectors: int
    previous_crc: int
    written_at: int  # UTC ns
    file_number: int
    file_crc: int  # crc of the header of the file it was written to


class PayloadLayout(NamedTuple):
    """Where each column of an events payload begins, and how large the payload is."""

    timestamp: int
    value: int
    heap_end: int
    metric: int
    operation: int
    heap: int
    size: int


class Columns(NamedTuple):
    """The columns of an events record, as views of its payload."""

    timestamp: NDArray[np.int64]
    value: NDArray[np.int64]
    heap_end: NDArray[np.uint32]
    metric: NDArray[np.uint16]
    operation: NDArray[np.uint8]
    heap: NDArray[np.uint8]


class RecordFields(NamedTuple):
    """What a new record says about itself, apart from what follows from its bytes."""

    kind: int
    row_count: int  # 0 unless kind is EVENTS
    heap_size: int  # EVENTS: bytes of the heap; else: bytes of the body, unpadded
    registry_version: int
    leader_time: int  # UTC ns; 0 unless kind is in TIMED
    sequence: int


class Record(NamedTuple):
    """One proposal, as a view of the buffer it lies in."""

    offset: int  # of its header in that buffer
    size: int
    kind: int
    machine_version: int
    row_count: int
    heap_size: int
    registry_version: int
    leader_time: int
    sequence: int
    slices: NDArray[np.void]
    payload: memoryview

    @property
    def body(self) -> memoryview:
        """The msgpack map of a record that holds no events."""
        return self.payload[: self.heap_size]


def full_name(file_number: int) -> str:
    """Return the name of a full log file."""
    return f"wal-{file_number:020d}.log"


def number_of(name: str) -> int | None:
    """Return the number of a full log file, or None when `name` is no such name."""
    digits = name[4:-4]
    if len(digits) == 20 and digits.isdecimal() and name == full_name(int(digits)):
        return int(digits)
    return None


def open_name(file_number: int) -> str:
    """Return the second name of the active log file, which it keeps when it is full.

    Whoever copies the directory has listed `wal.log`, and finds the next file under that name
    later: under this one it finds what it has listed.
    """
    return f"wal-{file_number:020d}.open"


def number_of_open(name: str) -> int | None:
    """Return the number in such a second name, or None when `name` is none."""
    return number_of(name.removesuffix(".open") + ".log") if name.endswith(".open") else None


def padded(size: int, multiple: int = 8) -> int:
    """Return the least multiple (a power of two) that is not below `size`."""
    return (size + multiple - 1) & -multiple


def payload_layout(row_count: int, heap_size: int) -> PayloadLayout:
    """Return the offsets of the columns of an events payload."""
    heap_end = 16 * row_count
    metric = heap_end + padded(4 * row_count)
    operation = metric + padded(2 * row_count)
    heap = operation + padded(row_count)
    return PayloadLayout(
        0, 8 * row_count, heap_end, metric, operation, heap, heap + padded(heap_size)
    )


def encode_file_header(header: FileHeader) -> bytes:
    """Return the first 4096 bytes of a log file."""
    fixed = _FILE.pack(
        FILE_MAGIC,
        FILE_VERSION,
        0,
        header.node_id,
        header.cluster_id,
        header.identity_key,
        header.file_number,
        header.first_block_seq,
        header.created,
        header.previous_crc,
    )
    return (fixed + _CRC.pack(crc32c(fixed))).ljust(FILE_HEADER_SIZE, b"\0")


def parse_file_header(buffer: Bytes) -> tuple[FileHeader, int]:
    """Return the header of a log file and its crc, which every block of the file repeats.

    Raises Damaged.
    """
    if len(buffer) < FILE_HEADER_SIZE:
        raise Damaged(0, f"a file of {len(buffer)} bytes has no header")
    magic, version, reserved, *fields = _FILE.unpack_from(buffer)
    (crc,) = _CRC.unpack_from(buffer, _FILE.size)
    if magic != FILE_MAGIC:
        raise Damaged(0, "not a log file (magic)")
    if crc != crc32c(buffer[: _FILE.size]):
        raise Damaged(0, "file header checksum")
    if version not in FILE_VERSIONS or reserved:
        raise Damaged(0, f"log file version {version} is not known")
    if bytes(buffer[_FILE.size + _CRC.size : FILE_HEADER_SIZE]).strip(b"\0"):
        raise Damaged(0, "file header padding is not zero")
    return FileHeader(*fields), crc


def file_version(buffer: Bytes) -> int:
    """Return the version in a file header that has been parsed."""
    return int.from_bytes(buffer[8:10], "little")


def encode_block_header(header: BlockHeader) -> bytes:
    """Return the 64 bytes of a block header; the last four are its crc."""
    fixed = _BLOCK.pack(BLOCK_MAGIC, BLOCK_VERSION, 0, *header)
    return fixed + _CRC.pack(crc32c(fixed))


def parse_block(buffer: Bytes, offset: int) -> tuple[BlockHeader, int]:
    """Return the block header at `offset` and its crc.  Raises Damaged.

    Only the header: its records are read with `parse_record`.
    """
    fixed = buffer[offset : offset + _BLOCK.size]
    if len(buffer) - offset < BLOCK_HEADER_SIZE:
        raise Damaged(offset, "block header reaches beyond the end of the file")
    magic, version, flags, *fields = _BLOCK.unpack(fixed)
    (crc,) = _CRC.unpack_from(buffer, offset + _BLOCK.size)
    if magic != BLOCK_MAGIC:
        raise Damaged(offset, "no block header (magic)")
    if crc != crc32c(fixed):
        raise Damaged(offset, "block header checksum")
    header = BlockHeader(*fields)
    if version != BLOCK_VERSION or flags:
        raise Damaged(offset, f"block version {version} flags {flags} is not known")
    size = header.block_size
    if size % SECTOR_SIZE or not BLOCK_HEADER_SIZE < size <= BLOCK_SIZE_MAX:
        raise Damaged(offset, f"block size {size} is not valid")
    return header, crc


def encode_record_head(fields: RecordFields, slices: NDArray[np.void], payload: Bytes) -> bytes:
    """Return header and slice table of a record.

    `payload` is padded to a multiple of 8 already; it is read for its checksum and not copied.
    """
    kind, row_count, heap_size, registry_version, leader_time, sequence = fields
    table = slices.tobytes()
    fixed = _RECORD.pack(
        RECORD_MAGIC,
        RECORD_VERSION,
        kind,
        MACHINE_VERSION,
        RECORD_HEADER_SIZE + len(table) + len(payload),
        len(slices),
        row_count,
        heap_size,
        registry_version,
        0,
        leader_time,
        sequence,
        crc32c(payload),
        0,
        0,
    )
    return fixed + _CRC.pack(crc32c(table, crc32c(fixed))) + table


def record_sizes(head: Bytes) -> tuple[int, int, int]:
    """Return record size, slice count and row count of an encoded record head."""
    sizes: tuple[int, int, int] = _SIZES.unpack_from(head)
    return sizes


def record_sequence(buffer: Bytes, offset: int) -> int:
    """Return the sequence of the record at `offset`, unchecked."""
    sequence: int = _SEQUENCE.unpack_from(buffer, offset + _SEQUENCE_AT)[0]
    return sequence


def with_payload_crc(head: bytes, payload: Bytes) -> bytes:
    """Return a record's head made to fit another payload of the same size."""
    fixed = bytearray(head[: _RECORD.size])
    _CRC.pack_into(fixed, _PAYLOAD_CRC_AT, crc32c(payload))
    table = head[RECORD_HEADER_SIZE:]
    return bytes(fixed) + _CRC.pack(crc32c(table, crc32c(fixed))) + table


def parse_record(buffer: Bytes, offset: int = 0) -> Record:
    """Return the record at `offset`, all its checksums verified.  Raises Damaged."""
    view = memoryview(buffer)
    left = len(view) - offset
    if left < RECORD_HEADER_SIZE:
        raise Damaged(offset, "record header reaches beyond the end")
    size, slice_count, _ = _SIZES.unpack_from(view, offset)
    table_end = RECORD_HEADER_SIZE + slice_count * SLICE_SIZE
    if not table_end <= size <= min(left, RECORD_SIZE_MAX) or size % 8:
        raise Damaged(offset, f"record size {size} is not valid")
    head, payload = view[offset : offset + table_end], view[offset + table_end : offset + size]
    return _parse(head, payload, offset)


def check_record(buffer: memoryview, offset: int, size: int) -> None:
    """Check both checksums of a record whose size is known to fit.  Raises Damaged.

    For readers that walk through columns where they lie; `parse_record` checks everything.
    """
    _, slice_count, _ = _SIZES.unpack_from(buffer, offset)
    payload = offset + RECORD_HEADER_SIZE + slice_count * SLICE_SIZE
    if payload > offset + size:
        raise Damaged(offset, "slice table reaches beyond the record")
    crc = crc32c(buffer[offset : offset + _RECORD.size])
    table = buffer[offset + RECORD_HEADER_SIZE : payload]
    if _CRC.unpack_from(buffer, offset + _RECORD.size)[0] != crc32c(table, crc):
        raise Damaged(offset, "record head checksum")
    if _CRC.unpack_from(buffer, offset + _PAYLOAD_CRC_AT)[0] != crc32c(
        buffer[payload : offset + size]
    ):
        raise Damaged(offset, "record payload checksum")


def parse_frames(head: Bytes, payload: Bytes) -> Record:
    """Return the record of two frames, as actors pass it on; all checks as in `parse_record`."""
    if len(head) < RECORD_HEADER_SIZE:
        raise Damaged(0, "record head too short")
    size, slice_count, _ = _SIZES.unpack_from(head)
    table_end = RECORD_HEADER_SIZE + slice_count * SLICE_SIZE
    if len(head) != table_end or size != table_end + len(payload) or size % 8:
        raise Damaged(0, f"record size {size} is not valid")
    return _parse(memoryview(head), memoryview(payload), 0)


def _parse(head: memoryview, payload: memoryview, offset: int) -> Record:
    (
        magic,
        version,
        kind,
        machine_version,
        size,
        _,
        row_count,
        heap_size,
        registry_version,
        reserved,
        leader_time,
        sequence,
        payload_crc,
        reserved_2,
        reserved_3,
    ) = _RECORD.unpack_from(head)
    if magic != RECORD_MAGIC:
        raise Damaged(offset, "no record header (magic)")
    table = head[RECORD_HEADER_SIZE:]
    if _CRC.unpack_from(head, _RECORD.size)[0] != crc32c(table, crc32c(head[: _RECORD.size])):
        raise Damaged(offset, "record head checksum")
    if payload_crc != crc32c(payload):
        raise Damaged(offset, "record payload checksum")
    if version != RECORD_VERSION or kind not in KINDS or reserved | reserved_2 | reserved_3:
        raise Damaged(offset, f"record version {version} kind {kind} is not known")
    if kind not in TIMED and (registry_version or leader_time):
        raise Damaged(offset, f"a record of kind {kind} has a time or a registry version")
    if (len(table) == 0) != (kind in FACTS):
        raise Damaged(offset, f"a record of kind {kind} has {len(table) // SLICE_SIZE} slices")
    wanted = payload_layout(row_count, heap_size).size if kind == EVENTS else padded(heap_size)
    if len(payload) != wanted or (row_count > 0) != (kind == EVENTS):
        raise Damaged(offset, f"payload of {len(payload)} bytes where {wanted} belong")
    return Record(
        offset,
        size,
        kind,
        machine_version,
        row_count,
        heap_size,
        registry_version,
        leader_time,
        sequence,
        np.frombuffer(table, SLICE),
        payload,
    )


def columns(record: Record) -> Columns:
    """Return the columns of an events record: views, nothing is copied."""
    return columns_of(record.row_count, record.heap_size, record.payload)


def columns_of(n: int, heap_size: int, payload: Bytes) -> Columns:
    """Return the columns of a payload of n events: views, nothing is copied."""
    at = payload_layout(n, heap_size)
    return Columns(
        np.frombuffer(payload, np.int64, n, at.timestamp),
        np.frombuffer(payload, np.int64, n, at.value),
        np.frombuffer(payload, np.uint32, n, at.heap_end),
        np.frombuffer(payload, np.uint16, n, at.metric),
        np.frombuffer(payload, np.uint8, n, at.operation),
        np.frombuffer(payload, np.uint8, heap_size, at.heap),
    )
