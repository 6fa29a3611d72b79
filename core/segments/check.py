"""Checks every byte of a segment, and finds all damage, not only the first.

Does not know: files (it gets their bytes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.protocol import segment_format as fmt
from meterd.protocol.log_format import Damaged, padded
from meterd.protocol.segment_format import SegmentIndex

Raw = NDArray[np.uint8]


class Damage(NamedTuple):
    """Where damage lies, and what it is."""

    suffix: str
    offset: int
    reason: str


def stray_byte(data: Raw, pieces: Iterable[tuple[int, int]]) -> int | None:
    """Return where the first byte lies that is not zero and in none of the pieces (offset, size).

    What belongs to no piece was written as zeros.
    """
    at = 0
    for offset, size in [*sorted(pieces), (len(data), 0)]:
        between = np.flatnonzero(data[at:offset])
        if len(between):
            return at + int(between[0])
        at = max(at, offset + size)
    return None


def damages(index: SegmentIndex, idx: Raw, seg: Raw, props: Raw) -> Iterator[Damage]:
    """Yield all damage in a segment whose index could be read (`parse_index`)."""
    places = index.places
    pages = _pieces(index.pages, "offset", "size", "crc", places["accounts"])
    groups = _pieces(index.groups, "offset", "size", "crc", places["slices"])
    columns = _pieces(index.blocks, "offset", "size", "crc", 0)
    ids = _pieces(index.blocks, "id_offset", "id_size", "id_crc", 0)
    sets = _pieces(index.set_blocks, "offset", "size", "crc", 0)
    yield from _check(".idx", idx, pages, "page of accounts")
    yield from _check(".idx", idx, groups, "slices")
    yield from _check(".seg", seg, columns, "column block")
    yield from _check(".seg", seg, ids, "block of ids")
    yield from _check(".props", props, sets, "block of property sets")
    try:
        index.checked_digests()
    except Damaged as damage:
        yield Damage(".idx", damage.offset, damage.reason)
    sections = [(places[name], getattr(index, name).nbytes) for name, _ in fmt.SECTIONS]
    known = {
        ".idx": (idx, [(0, fmt.INDEX_HEADER_SIZE), *sections]),
        ".seg": (seg, [(0, fmt.HEADER_SIZE), *_spans(columns), *_spans(ids)]),
        ".props": (props, [(0, fmt.HEADER_SIZE), *_spans(sets)]),
    }
    for suffix, (data, spans) in known.items():
        stray = stray_byte(data, spans)
        if stray is not None:
            yield Damage(suffix, stray, "a byte that belongs to nothing is not zero")
    end = max(offset + padded(size) for offset, size in known[".idx"][1]) + fmt.TAIL_SIZE
    if len(idx) != end:
        yield Damage(".idx", min(len(idx), end), f"the index has {len(idx)} bytes, not {end}")


_Piece = tuple[int, int, int]


def _pieces(rows: NDArray[Any], offset: str, size: str, crc: str, base: int) -> list[_Piece]:
    columns = (rows[offset].tolist(), rows[size].tolist(), rows[crc].tolist())
    return [(base + at, length, wanted) for at, length, wanted in zip(*columns, strict=True)]


def _spans(pieces: list[_Piece]) -> list[tuple[int, int]]:
    return [(at, size) for at, size, _ in pieces]


def _check(suffix: str, data: Raw, pieces: list[_Piece], what: str) -> Iterator[Damage]:
    for at, size, crc in pieces:
        if size and crc32c(data[at : at + size].data) != crc:
            yield Damage(suffix, at, f"checksum of a {what}")
