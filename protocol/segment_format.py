"""Names, headers and directories of a segment's three files (docs/STORAGE.md, "Segment").

A segment holds the stored rows of the log files `first` to `last`, sorted.  `.seg` has the columns
and the ids in blocks, `.props` the distinct property sets in blocks, `.idx` says where everything
lies: it is written last, so a segment whose `.idx` checks and names its two companions is
complete.  All three carry the same random `set_id`; the files of two makings never pass for one.

A segment that is written again without rows of erased accounts has another *generation* of the same
range, in name and index.  Versions that do not know generations refuse such an index.

Invariants:
  * what `parse_*` returns has passed its checksum, and its sizes agree with each other;
  * anything else raises Damaged, and decides nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.protocol.log_format import GROUP_COUNT, Bytes, Damaged, padded

MAGIC: Final = {".seg": b"METERDSG", ".props": b"METERDSP", ".idx": b"METERDSI"}
VERSION: Final = 1  # of `.seg` and `.props`, and of an index of generation 0
INDEX_VERSION: Final = 2  # of an index of a later generation
SUFFIXES: Final = (".seg", ".props", ".idx")

# Rows of a block: a small account costs the decoding of one block or two.
BLOCK_ROWS: Final = 2048
# Values that share base and width.
CHUNK_ROWS: Final = 128
# Accounts of a page of the index, and property sets of a block.
PAGE_ACCOUNTS: Final = 64
SET_BLOCK_COUNT: Final = 256
# Behind packed columns, so that eight bytes can be loaded anywhere in them.
TAIL_SIZE: Final = 8

HAS_OPERATIONS, ERASED = 1, 2
# Of a block: a row adds or removes a member; an id is text; the ids, a property block are LZ4.
BLOCK_OPERATIONS, BLOCK_TEXT_IDS, BLOCK_LZ4 = 1, 2, 4

FILE: Final = np.dtype([("first_ordinal", "<u4"), ("log_crc", "<u4"), ("log_size", "<u8")])
GROUP: Final = np.dtype(
    [("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("first_slice", "<u4"), ("slices", "<u4")]
)
BLOCK: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc", "<u4"),
        ("id_offset", "<u8"),
        ("id_size", "<u4"),
        ("id_crc", "<u4"),
        ("min_timestamp", "<i8"),
        ("max_timestamp", "<i8"),
        ("id_raw_size", "<u4"),
        ("flags", "<u4"),
    ]
)
PAGE: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc", "<u4"),
        ("first_row", "<u4"),
        ("runs", "<u4"),
        ("partition", "<u2"),
        ("accounts", "<u2"),
        ("text_size", "<u4"),
    ]
)
SET_BLOCK: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc", "<u4"),
        ("raw_size", "<u4"),
        ("flags", "<u4"),
    ]
)
# Sections of an index in file order.  Those that are checked piece by piece have no crc of their
# own in the table: the directory before them has one for each piece.
SECTIONS: Final[tuple[tuple[str, np.dtype[Any]], ...]] = (
    ("files", FILE),
    ("groups", GROUP),
    ("blocks", BLOCK),
    ("pages", PAGE),
    ("set_blocks", SET_BLOCK),
    ("slices", np.dtype("u1")),
    ("accounts", np.dtype("u1")),
    ("digests", np.dtype("<u8")),
)
CHECKED_IN_PIECES: Final = frozenset({"slices", "accounts"})
# Not needed to answer questions; checked by those who read it.
CHECKED_LATER: Final = frozenset({"digests"})

_FILE_HEADER: Final = struct.Struct("<8sHHIQQQq")
_INDEX_HEADER: Final = struct.Struct("<8sHHIQQQqQQQQQQqqQIQI")
_SECTION: Final = struct.Struct("<QQII")
_CRC: Final = struct.Struct("<I")
_GENERATION: Final = struct.Struct("<I")
_GENERATION_AT: Final = 328  # behind the table of sections
HEADER_SIZE: Final = 64
INDEX_HEADER_SIZE: Final = 384


class SegmentName(NamedTuple):
    """The log files that a segment covers, first and last included, and its generation."""

    first: int
    last: int
    generation: int = 0

    def file(self, suffix: str) -> str:
        """Return the name of one of its files."""
        generation = f"-{self.generation:04d}" if self.generation else ""
        return f"seg-{self.first:012d}-{self.last:012d}{generation}{suffix}"

    def supersedes(self, other: SegmentName) -> bool:
        """Whether the other one is not read where this one is complete."""
        if self[:2] == other[:2]:
            return self.generation > other.generation
        return self.first <= other.first and other.last <= self.last


def parse_name(name: str) -> tuple[SegmentName, str] | None:
    """Return what a segment's file belongs to, and its suffix; None when `name` is no such name."""
    stem, dot, rest = name.partition(".")
    parts = stem.split("-")
    if len(parts) not in (3, 4) or dot + rest not in SUFFIXES:
        return None
    if not all(part.isdecimal() for part in parts[1:]):
        return None
    found = SegmentName(*map(int, parts[1:]))
    if name != found.file(dot + rest) or found.first > found.last:
        return None
    return found, dot + rest


class FileHeader(NamedTuple):
    """The first 64 bytes of `.seg` and `.props`."""

    set_id: int
    first: int
    last: int
    created: int  # UTC ns, for people


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What an index says about its segment."""

    set_id: int
    first: int  # numbers of the log files
    last: int
    created: int  # UTC ns, for people
    row_count: int  # stored rows
    ordinal_count: int  # rows of the log files, stored or not
    account_count: int
    run_count: int
    set_count: int  # property sets
    slice_count: int
    min_timestamp: int  # of the rows; the greatest int64 when there is none
    max_timestamp: int  # the least int64 when there is none
    has_operations: bool  # whether a row adds or removes a member
    seg_size: int
    seg_crc: int  # of its header
    props_size: int
    props_crc: int
    has_erased: bool = False  # whether stored rows of accounts erased since were left out
    generation: int = 0

    @property
    def name(self) -> SegmentName:
        return SegmentName(self.first, self.last, self.generation)


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """An index as views of its bytes.  What is in pieces is checked by those who read it."""

    header: SegmentHeader
    files: NDArray[np.void]  # FILE, one for each log file
    groups: NDArray[np.void]  # GROUP, 257
    blocks: NDArray[np.void]  # BLOCK
    pages: NDArray[np.void]  # PAGE
    set_blocks: NDArray[np.void]  # SET_BLOCK
    slices: NDArray[np.uint8]
    accounts: NDArray[np.uint8]
    digests: NDArray[np.uint64]
    digests_crc: int
    places: Mapping[str, int]  # where each section begins in the file

    def checked_digests(self) -> NDArray[np.uint64]:
        """Return the digests of all slices, u64[n, 2].  Raises Damaged."""
        if crc32c(self.digests.data) != self.digests_crc:
            raise Damaged(self.places["digests"], "checksum of the digests")
        return self.digests.reshape(-1, 2)


def encode_file_header(suffix: str, header: FileHeader) -> bytes:
    """Return the first 64 bytes of `.seg` or `.props`; `header_crc` reads its crc."""
    fixed = _FILE_HEADER.pack(MAGIC[suffix], VERSION, 0, BLOCK_ROWS, *header)
    fixed = fixed.ljust(HEADER_SIZE - _CRC.size, b"\0")
    return fixed + _CRC.pack(crc32c(fixed))


def header_crc(header: Bytes) -> int:
    """Return the crc in a header that `encode_file_header` made."""
    (crc,) = _CRC.unpack_from(header, HEADER_SIZE - _CRC.size)
    return int(crc)


def parse_file_header(suffix: str, buffer: Bytes) -> tuple[FileHeader, int]:
    """Return the header of `.seg` or `.props`, and its crc.  Raises Damaged."""
    if len(buffer) < HEADER_SIZE:
        raise Damaged(0, f"a {suffix} file of {len(buffer)} bytes has no header")
    magic, version, reserved, block_rows, *fields = _FILE_HEADER.unpack_from(buffer)
    if magic != MAGIC[suffix]:
        raise Damaged(0, f"not a {suffix} file (magic)")
    crc = header_crc(buffer)
    if crc != crc32c(buffer[: HEADER_SIZE - _CRC.size]):
        raise Damaged(0, "segment header checksum")
    if version != VERSION or reserved or block_rows != BLOCK_ROWS:
        raise Damaged(0, f"segment version {version} is not known")
    return FileHeader(*fields), crc


def encode_index(header: SegmentHeader, sections: Mapping[str, NDArray[Any]]) -> list[Bytes]:
    """Return the bytes of an index, in pieces; the sections are not copied."""
    fixed = _INDEX_HEADER.pack(
        MAGIC[".idx"],
        INDEX_VERSION if header.generation else VERSION,
        HAS_OPERATIONS * header.has_operations | ERASED * header.has_erased,
        BLOCK_ROWS,
        header.set_id,
        header.first,
        header.last,
        header.created,
        header.row_count,
        header.ordinal_count,
        header.account_count,
        header.run_count,
        header.set_count,
        header.slice_count,
        header.min_timestamp,
        header.max_timestamp,
        header.seg_size,
        header.seg_crc,
        header.props_size,
        header.props_crc,
    )
    offset = INDEX_HEADER_SIZE
    pieces: list[Bytes] = []
    for name, dtype in SECTIONS:
        raw = np.ascontiguousarray(sections[name], dtype).view(np.uint8).reshape(-1).data
        crc = 0 if name in CHECKED_IN_PIECES else crc32c(raw)
        fixed += _SECTION.pack(offset, len(raw), crc, 0)
        pieces += [raw, bytes(padded(len(raw)) - len(raw))]
        offset += padded(len(raw))
    fixed += _GENERATION.pack(header.generation)
    front = fixed.ljust(INDEX_HEADER_SIZE - _CRC.size, b"\0")
    return [front + _CRC.pack(crc32c(front)), *pieces, bytes(TAIL_SIZE)]


def parse_header(buffer: Bytes) -> SegmentHeader:
    """Return what an index says about its segment, without its sections.  Raises Damaged."""
    if len(buffer) < INDEX_HEADER_SIZE:
        raise Damaged(0, f"an index of {len(buffer)} bytes has no header")
    magic, version, flags, block_rows, *fields = _INDEX_HEADER.unpack_from(buffer)
    if magic != MAGIC[".idx"]:
        raise Damaged(0, "not the index of a segment (magic)")
    end = INDEX_HEADER_SIZE - _CRC.size
    if _CRC.unpack_from(buffer, end)[0] != crc32c(buffer[:end]):
        raise Damaged(0, "index header checksum")
    (generation,) = _GENERATION.unpack_from(buffer, _GENERATION_AT)
    expected = INDEX_VERSION if generation else VERSION
    if version != expected or block_rows != BLOCK_ROWS:
        raise Damaged(0, f"segment version {version} is not known")
    *before, low, high, seg_size, seg_crc, props_size, props_crc = fields
    set_id, first, last, created, *counts = before
    rows, ordinals, accounts, runs, sets, slices = counts
    return SegmentHeader(
        set_id,
        first,
        last,
        created,
        rows,
        ordinals,
        accounts,
        runs,
        sets,
        slices,
        low,
        high,
        bool(flags & HAS_OPERATIONS),
        seg_size,
        seg_crc,
        props_size,
        props_crc,
        bool(flags & ERASED),
        generation,
    )


def parse_index(buffer: Bytes) -> SegmentIndex:
    """Return an index as views of the buffer; its header and directories check.

    Raises Damaged.
    """
    header = parse_header(buffer)
    found: dict[str, NDArray[Any]] = {}
    places: dict[str, int] = {}
    crcs: dict[str, int] = {}
    for number, (name, dtype) in enumerate(SECTIONS):
        at = _INDEX_HEADER.size + number * _SECTION.size
        offset, size, crc, _ = _SECTION.unpack_from(buffer, at)
        if offset % 8 or offset + size + TAIL_SIZE > len(buffer) or size % dtype.itemsize:
            raise Damaged(at, f"section {name} does not lie in the file")
        checked = name not in CHECKED_IN_PIECES and name not in CHECKED_LATER
        if checked and crc != crc32c(buffer[offset : offset + size]):
            raise Damaged(offset, f"checksum of section {name}")
        found[name] = np.frombuffer(buffer, dtype, size // dtype.itemsize, offset)
        places[name], crcs[name] = offset, crc
    index = SegmentIndex(header, **found, digests_crc=crcs["digests"], places=places)
    _check_sizes(index)
    return index


def _check_sizes(index: SegmentIndex) -> None:
    header = index.header
    agree = (
        len(index.files) == header.last - header.first + 1
        and len(index.groups) == GROUP_COUNT
        and len(index.blocks) == -(-header.row_count // BLOCK_ROWS)
        and len(index.set_blocks) == -(-header.set_count // SET_BLOCK_COUNT)
        and len(index.pages) == -(-header.account_count // PAGE_ACCOUNTS)
        and len(index.digests) == 2 * header.slice_count
        and _within(index.groups["offset"], index.groups["size"], len(index.slices))
        and _within(index.pages["offset"], index.pages["size"], len(index.accounts))
        and _within(index.blocks["offset"], index.blocks["size"], header.seg_size)
        and _within(index.blocks["id_offset"], index.blocks["id_size"], header.seg_size)
        and _within(index.set_blocks["offset"], index.set_blocks["size"], header.props_size)
    )
    if not agree:
        raise Damaged(0, "sections of the index do not agree in size")


def _within(offsets: NDArray[Any], sizes: NDArray[Any], end: int) -> bool:
    return len(offsets) == 0 or int((offsets + sizes).max()) <= end


def directory(dtype: np.dtype[Any], rows: Sequence[tuple[Any, ...]]) -> NDArray[np.void]:
    """Return rows of a directory as an array."""
    return np.array(list(rows), dtype) if rows else np.empty(0, dtype)
