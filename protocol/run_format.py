"""The bytes of a run of identities (`ids-<n>.run`; docs/STORAGE.md).

A header of one page, then three arrays, each from a multiple of a page on.  What they hold is in
`core/kernels/runs.py`; here they are bytes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from crc32c import crc32c

from meterd.protocol.log_format import Bytes, Damaged, padded

MAGIC: Final = b"METERDIR"
VERSION: Final = 1
PAGE: Final = 4096
# magic · version · key bytes · day bytes · 0 · lines · first day · newest day · count · three
# sizes and three CRCs · CRC of what comes before.
_HEADER: Final = struct.Struct("<8sHBBI 4Q 3Q 3I I")
_FRONT_SIZE: Final = _HEADER.size - 4
LINE_SIZE: Final = 64


class RunHeader(NamedTuple):
    """What a run says about itself; sizes and CRCs of lines, starts and entries."""

    key_bytes: int
    day_bytes: int
    lines: int
    first_day: int
    newest_day: int
    count: int  # type: ignore[assignment]
    sizes: tuple[int, int, int]
    crcs: tuple[int, int, int]

    @property
    def offsets(self) -> tuple[int, int, int]:
        """Where the arrays begin."""
        lines = PAGE
        starts = lines + padded(self.sizes[0], PAGE)
        return lines, starts, starts + padded(self.sizes[1], PAGE)

    @property
    def file_size(self) -> int:
        return self.offsets[2] + padded(self.sizes[2], PAGE)


def encode_header(header: RunHeader) -> bytes:
    """Return the first page of a run."""
    front = _HEADER.pack(
        MAGIC,
        VERSION,
        header.key_bytes,
        header.day_bytes,
        0,
        header.lines,
        header.first_day,
        header.newest_day,
        header.count,
        *header.sizes,
        *header.crcs,
        0,
    )[:_FRONT_SIZE]
    return (front + crc32c(front).to_bytes(4, "little")).ljust(PAGE, b"\0")


def parse_header(page: Bytes, file_size: int) -> RunHeader:
    """Read the first page of a run of `file_size` bytes.  Raises Damaged."""
    raw = bytes(page[:PAGE])
    if len(raw) < PAGE or raw[:8] != MAGIC:
        raise Damaged(0, "not a run of identities")
    *fields, crc = _HEADER.unpack_from(raw)
    if crc != crc32c(raw[:_FRONT_SIZE]) or any(raw[_HEADER.size :]):
        raise Damaged(0, "the header's checksum does not match")
    _, version, key_bytes, day_bytes, _, lines, first_day, newest_day, count, *rest = fields
    if version != VERSION:
        raise Damaged(8, f"version {version} of runs is not known")
    header = RunHeader(
        key_bytes, day_bytes, lines, first_day, newest_day, count, tuple(rest[:3]), tuple(rest[3:])
    )
    if header.file_size != file_size:
        raise Damaged(0, f"the file has {file_size} bytes, not {header.file_size}")
    return header
