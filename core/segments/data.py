"""The checked bytes of a segment: what lies where, each piece once its checksum was looked at.

Directories are checked when a segment is opened, pages, slices, sets and blocks when they are first
needed, and what was checked is remembered.  Damage raises Corrupt, which names file and offset.

Does not know: files (it gets their bytes), questions.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, NamedTuple

import lz4.block
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import segment_blocks as blocks
from meterd.core.kernels import segment_match as kernels
from meterd.core.kernels.gather import ENTRY
from meterd.core.kernels.segment_match import Accounts, Columns, Slices
from meterd.core.segments.encoder import SegmentLog
from meterd.protocol import segment_format as fmt
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import GROUP_COUNT, Damaged
from meterd.protocol.segment_format import BLOCK_ROWS, SegmentIndex, SegmentName

Ints = NDArray[np.int64]
Raw = NDArray[np.uint8]

# Property blocks that stay decoded, about 10 KB each.
SET_BLOCKS_KEPT: Final = 256


class Runs(NamedTuple):
    """Runs of some accounts, in row order."""

    rows: Ints  # (r, 4): kernels/segment_match.py
    accounts: Accounts

    def part(self, first: int, last: int) -> Runs:
        return Runs(self.rows[first:last], self.accounts)


class Blocks(NamedTuple):
    """Some blocks that follow each other."""

    columns: Raw
    ids: Raw
    # int64[b, 3]: where columns and ids of each begin, whether some ids are text (their sizes
    # first, then).
    places: Ints
    size: int  # bytes read


class SegmentData:
    """One segment.  Remembers which of its blocks have been checked."""

    def __init__(self, index: SegmentIndex, seg: Raw, props: Raw) -> None:
        """`seg`, `props`: the bytes of those files, as arrays that cannot be written.

        Raises Damaged when they do not belong together.
        """
        self.index, self.header = index, index.header
        self.name: SegmentName = index.header.name
        self._seg, self._props = seg, props
        self._check_companions()
        self._offsets = index.blocks["offset"].astype(np.int64)
        self._first_rows = index.pages["first_row"].astype(np.int64)
        self.page_starts = index.pages["offset"].astype(np.int64)
        flags = index.blocks["flags"] & fmt.BLOCK_OPERATIONS
        self.times = np.empty((len(self._offsets), 3), np.int64)
        self.times[:, 0] = index.blocks["min_timestamp"]
        self.times[:, 1] = index.blocks["max_timestamp"]
        self.times[:, 2] = flags
        self._unchecked = np.ones(len(self._offsets), np.uint8)
        self._unchecked_ids = np.ones(len(self._offsets), np.bool_)
        self._checked_pages: set[int] = set()
        self._scratch = np.empty((blocks.COLUMN_COUNT, BLOCK_ROWS), np.int64)
        self._sets: OrderedDict[int, bytes] = OrderedDict()
        self._ids: tuple[int, NDArray[np.bool_], Ints, Raw] | None = None  # the block used last
        self._slices: tuple[tuple[int, int], Slices] | None = None

    def page_at(self, page: int) -> int:
        """Return where a page lies in the section, once it has been checked."""
        at = int(self.index.pages["offset"][page])
        if page not in self._checked_pages:
            raw = self.index.accounts[at : at + int(self.index.pages["size"][page])]
            if crc32c(raw.data) != int(self.index.pages["crc"][page]):
                self._corrupt(".idx", self.index.places["accounts"] + at, "page of the index")
            self._checked_pages.add(page)
        return at

    def check_pages(self) -> None:
        """Check all pages that were not checked before.  Raises Corrupt."""
        pages, data = self.index.pages, self.index.accounts.data
        columns = (pages[name].tolist() for name in ("offset", "size", "crc"))
        for page, (at, size, crc) in enumerate(zip(*columns, strict=True)):
            if page not in self._checked_pages and crc32c(data[at : at + size]) != crc:
                self._corrupt(".idx", self.index.places["accounts"] + at, "page of the index")
        self._checked_pages.update(range(len(pages)))

    def columns_of(
        self, runs: Runs, span: tuple[int, int] | None = None, members: bool = False
    ) -> Columns:
        """Return the column blocks of runs, those of the time asked for checked.

        Without a span of time all blocks of the runs are wanted.
        """
        wanted = np.zeros(len(self._offsets), np.uint8)
        times = self.times if span else np.zeros_like(self.times)
        start, end = span or (0, 1)
        kernels.mark_blocks(runs.rows, times, start, end, members, wanted)
        for block in np.flatnonzero(wanted & self._unchecked).tolist():
            self._check_block(block)
        return Columns(self._seg, self._offsets, wanted, self._scratch)

    def block(self, number: int) -> tuple[Ints, int]:
        """Return the columns of a block, int64[6, rows] valid until the next call, and its rows."""
        if self._unchecked[number]:
            self._check_block(number)
        count = blocks.decode_block(self._seg, int(self._offsets[number]), True, self._scratch)
        return self._scratch[:, : int(count)], int(count)

    def blocks(self, first: int, last: int) -> Blocks:
        """Return some blocks, checked.  Raises Corrupt."""
        found = self.index.blocks[first:last]
        columns, places = self._piece(found, "", "column block")
        ids, id_places = self._piece(found, "id_", "block of ids")
        has_text = found["flags"] & fmt.BLOCK_TEXT_IDS
        if has_text.any():
            raw = [
                self._unpacked(one, ids[at : at + int(one["id_size"])])
                for one, at in zip(found, id_places.tolist(), strict=True)
            ]
            ids = frozen(np.concatenate([*raw, np.zeros(8, np.uint8)]))
            id_places = np.cumsum([0, *map(len, raw[:-1])])
        size = int(found["size"].sum()) + int(found["id_size"].sum())
        return Blocks(columns, ids, np.stack([places, id_places, has_text], axis=1), size)

    def _piece(self, found: NDArray[np.void], prefix: str, what: str) -> tuple[Raw, Ints]:
        """Return the bytes of columns or ids, which lie together, and where those of each begin."""
        offsets, sizes, crcs = (found[prefix + name].tolist() for name in ("offset", "size", "crc"))
        begin, end = min(offsets), max(map(sum, zip(offsets, sizes, strict=True)))
        data = self._seg[begin:end]
        view = data.data
        for at, size, crc in zip(offsets, sizes, crcs, strict=True):
            if crc32c(view[at - begin : at - begin + size]) != crc:
                self._corrupt(".seg", at, what)
        return data, np.array(offsets, np.int64) - begin

    def _check_block(self, number: int) -> None:
        found = self.index.blocks[number]
        at = int(found["offset"])
        if crc32c(self._seg[at : at + int(found["size"])].data) != int(found["crc"]):
            self._corrupt(".seg", at, "column block")
        self._unchecked[number] = 0

    def property_set(self, number: int) -> bytes:
        """Return a property set as it stands in a heap entry."""
        raw = np.frombuffer(self.set_block(number // fmt.SET_BLOCK_COUNT), np.uint8)
        return set_bytes(raw, 0, number, self.header.set_count)

    def log(self) -> SegmentLog:
        """Return what the segment keeps of the log.  Raises Corrupt."""
        slices = self.slices(0, GROUP_COUNT - 1)
        groups = np.repeat(np.arange(GROUP_COUNT), np.diff(slices.group))
        try:
            digests = self.index.checked_digests()
        except Damaged as damage:
            path = self.name.file(".idx")
            raise Corrupt(path, damage.offset, damage.reason) from damage
        rows = np.stack([groups, slices.first, slices.index, slices.term], axis=1)
        return SegmentLog(self.index.files, self.header.ordinal_count, rows, digests)

    def id_of(self, row: int) -> tuple[bool, bytes]:
        """Return whether the id of a row is a UUID, and its bytes."""
        block, within = divmod(row, BLOCK_ROWS)
        if self._ids is None or self._ids[0] != block:
            self._ids = (block, *self.id_block(block))
        _, is_uuid, ends, raw = self._ids
        start = int(ends[within - 1]) if within else 0
        return bool(is_uuid[within]), raw[start : int(ends[within])].tobytes()

    def id_block(self, block: int) -> tuple[NDArray[np.bool_], Ints, Raw]:
        """Return the ids of a block: which are UUIDs, where each ends, their bytes."""
        raw, has_text = self.raw_ids(block)
        rows = min(self.header.row_count - block * BLOCK_ROWS, BLOCK_ROWS)
        if not has_text:
            return np.ones(rows, np.bool_), np.arange(16, 16 * rows + 16, 16), raw
        sizes = raw[:rows].astype(np.int64)
        is_uuid = sizes == 0
        sizes[is_uuid] = 16
        return is_uuid, np.cumsum(sizes), raw[rows:]

    def raw_ids(self, block: int) -> tuple[Raw, bool]:
        """Return the bytes of a block of ids, and whether it begins with the size of each."""
        found = self.index.blocks[block]
        at = int(found["id_offset"])
        raw = self._seg[at : at + int(found["id_size"])]
        if self._unchecked_ids[block]:
            if crc32c(raw.data) != int(found["id_crc"]):
                self._corrupt(".seg", at, "block of ids")
            self._unchecked_ids[block] = False
        return self._unpacked(found, raw), bool(found["flags"] & fmt.BLOCK_TEXT_IDS)

    @staticmethod
    def _unpacked(found: Any, raw: Raw) -> Raw:
        """Return a block of ids as it was before it was compressed, if it was."""
        if not found["flags"] & fmt.BLOCK_LZ4:
            return raw
        whole = lz4.block.decompress(raw.data, uncompressed_size=int(found["id_raw_size"]))
        return np.frombuffer(whole, np.uint8)

    # Slices and property sets

    def slices(self, first_group: int, last_group: int) -> Slices:
        """Return the slices of some groups, the last included."""
        groups = self.index.groups
        counts = np.zeros(GROUP_COUNT + 1, np.int64)
        counts[first_group + 1 : last_group + 2] = groups["slices"][first_group : last_group + 1]
        starts = np.cumsum(counts)
        out = np.empty((3, int(starts[-1])), np.int64)
        for group in range(first_group, last_group + 1):
            count, at = int(groups["slices"][group]), int(groups["offset"][group])
            if not count:
                continue
            raw = self.index.slices[at : at + int(groups["size"][group])]
            if crc32c(raw.data) != int(groups["crc"][group]):
                self._corrupt(".idx", self.index.places["slices"] + at, "slices")
            part = np.empty((3, count), np.int64)
            blocks.unpack_slices(self.index.slices, at, count, part)
            out[:, starts[group] : starts[group] + count] = part
        return Slices(out[0], out[1], out[2], starts)

    def slices_of(self, runs: Runs) -> Slices:
        accounts = runs.rows[[0, -1], kernels.ACCOUNT]
        first, last = runs.accounts.partition[accounts].tolist()
        if self._slices is not None:
            (low, high), known = self._slices
            if (low, high) == (first, last) or (low == 0 and high == GROUP_COUNT - 1):
                return known
        self._slices = ((first, last), self.slices(first, last))
        return self._slices[1]

    def all_slices(self) -> Slices:
        """Return the slices of all groups, and keep them for who asks for some."""
        if self._slices is None or self._slices[0] != (0, GROUP_COUNT - 1):
            self._slices = ((0, GROUP_COUNT - 1), self.slices(0, GROUP_COUNT - 1))
        return self._slices[1]

    def set_block(self, number: int) -> bytes:
        """Return a block of property sets: ends u32, then the sets as in heap entries."""
        known = self._sets.get(number)
        if known is None:
            found = self.index.set_blocks[number]
            at = int(found["offset"])
            raw = self._props[at : at + int(found["size"])]
            if crc32c(raw.data) != int(found["crc"]):
                self._corrupt(".props", at, "block of property sets")
            known = raw.tobytes()
            if found["flags"] & fmt.BLOCK_LZ4:
                known = lz4.block.decompress(known, uncompressed_size=int(found["raw_size"]))
            self._sets[number] = known
            if len(self._sets) > SET_BLOCKS_KEPT:
                self._sets.popitem(last=False)
        self._sets.move_to_end(number)
        return known

    def sets_of(self, matches: Ints) -> tuple[Raw, Ints, int]:
        """Return the property blocks that matches need: bytes, where each lies, how many sets."""
        used = np.bincount((matches[:, ENTRY] & 0xFFFFFFFF) // fmt.SET_BLOCK_COUNT)
        numbers = np.flatnonzero(used)
        places = np.full(len(self.index.set_blocks), -1, np.int64)
        parts, at = [], 0
        for number in numbers.tolist():
            parts.append(self.set_block(number))
            places[number] = at
            at += len(parts[-1])
        raw = np.frombuffer(b"".join(parts) + bytes(8), np.uint8)
        return raw, places, self.header.set_count

    def _check_companions(self) -> None:
        header = self.header
        wanted = [
            (".seg", self._seg, header.seg_size, header.seg_crc),
            (".props", self._props, header.props_size, header.props_crc),
        ]
        for suffix, data, size, crc in wanted:
            found, found_crc = fmt.parse_file_header(suffix, data[: fmt.HEADER_SIZE].data)
            same = (found.set_id, found.first, found.last) == (
                header.set_id,
                header.first,
                header.last,
            )
            if not same or found_crc != crc or len(data) != size:
                raise Damaged(0, f"{suffix} and .idx of segment {self.name} do not belong together")

    def _corrupt(self, suffix: str, offset: int, what: str) -> None:
        raise Corrupt(self.name.file(suffix), offset, f"checksum of a {what}")


NO_ACCOUNTS: Final = Accounts(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))
NO_SETS: Final = (np.frombuffer(b"", np.uint8), np.empty(0, np.int64), 0)


def set_bytes(raw: Raw, base: int, number: int, set_count: int) -> bytes:
    """Return one property set of a block that begins at `base`."""
    within = number % fmt.SET_BLOCK_COUNT
    count = min(set_count - (number - within), fmt.SET_BLOCK_COUNT)
    ends = np.frombuffer(raw, "<u4", count, base)
    start = int(ends[within - 1]) if within else 0
    at = base + 4 * count
    return raw[at + start : at + int(ends[within])].tobytes()
