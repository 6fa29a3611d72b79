"""Lays folded rows out as a totals file, and reads accounts of it without the others.

A totals file is a container (protocol/checkpoint_format.py) that is used where it lies.  Accounts
are sorted by their text, cells by account, so the cells of an account, or of a path and all below
it, are one run of rows; they lie in packed blocks, of which only those concerned are unpacked.
In a block the columns of a cell are differences that are mostly zero for a cell of one event, then
split into planes of bytes and compressed (docs/STORAGE.md, "Totals file").

Does not know: files, which of them stand for the log (`actors/files/totals_files.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Final

import lz4.block
import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels.cells import CELL_WORDS
from meterd.core.questions.folded import (
    ACCOUNT,
    BUCKET,
    DIMS,
    METRIC,
    OPENING,
    SEAT_WORDS,
    TIMESTAMP,
    Folded,
)
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.log_format import Damaged

KIND: Final = "totals"
# Version 1 said how many erasures of the node's own list were applied.  Nobody can say which ones
# these were, so they all count as not applied.
VERSIONS: Final = (1, 2)
BLOCK_ROWS: Final = 4_096
# Cells that are looked at in one go.
SPAN_CELLS: Final = 1 << 17

Rows = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]
Span = tuple[int, int]  # accounts from the first up to, not with, the last

# The columns of a packed cell: metric number, dimensions, bucket, then what was counted.
COUNTED: Final = (
    cell_rows.COUNT,
    cell_rows.SUM_LO,
    cell_rows.SUM_HI,
    cell_rows.MIN,
    cell_rows.MAX,
    cell_rows.LATEST_TS,
    cell_rows.LATEST_POS,
    cell_rows.LATEST_VALUE,
    cell_rows.FIRST_TS,
    cell_rows.FIRST_POS,
    cell_rows.FIRST_VALUE,
)
COLUMNS: Final = 3 + len(COUNTED)


def pack_block(keys: Rows, cells: Rows) -> bytes:
    """Return cells as the bytes of one block.  Differences wrap around at 64 bits."""
    out = np.empty((COLUMNS, len(keys)), np.int64)
    out[0], out[1], out[2] = keys[:, METRIC], keys[:, DIMS], keys[:, BUCKET]
    for place, column in enumerate(COUNTED):
        out[3 + place] = cells[:, column]
    count, low, high, least, most, at, position, value, first_at, first_position, first = out[3:]
    at -= first_at
    position -= first_position
    first_at -= out[2]
    high -= low >> 63
    low -= first
    most -= first
    least -= first
    value -= first
    count -= 1
    planes = out.view(np.uint8).reshape(COLUMNS, len(keys), 8).transpose(0, 2, 1)
    return lz4.block.compress(np.ascontiguousarray(planes).tobytes(), store_size=False)


def unpack_block(raw: Any, rows: int) -> tuple[Rows, Rows]:
    """Return keys (without accounts) and cells of a block."""
    size = 8 * COLUMNS * rows
    planes = np.frombuffer(lz4.block.decompress(raw, uncompressed_size=size), np.uint8)
    columns = planes.reshape(COLUMNS, 8, rows).transpose(0, 2, 1).copy()
    out = columns.reshape(-1).view(np.int64).reshape(COLUMNS, rows)
    count, low, high, least, most, at, position, value, first_at, first_position, first = out[3:]
    count += 1
    low += first
    high += low >> 63
    most += first
    least += first
    value += first
    first_at += out[2]
    at += first_at
    position += first_position
    keys, cells = np.zeros((rows, 4), np.int64), np.zeros((rows, CELL_WORDS), np.int64)
    keys[:, METRIC], keys[:, DIMS], keys[:, BUCKET] = out[0], out[1], out[2]
    for place, column in enumerate(COUNTED):
        cells[:, column] = out[3 + place]
    return keys, cells


class TotalsWriter:
    """Makes a totals file of parts; every account of a part is behind those of the parts before."""

    def __init__(
        self,
        first: int,
        last: int,
        horizon: int,
        applied: Mapping[int, int],
        reached: Rows | None = None,
    ) -> None:
        """The log files covered, the totals horizon, and what is erased (`Erasures.latest`).

        reached: of each partition the greatest index of an op with rows there, or -1; None where
        that is not known.
        """
        self._reached = reached
        self._state: dict[str, Any] = {
            "kind": KIND,
            "version": VERSIONS[-1],
            "first": first,
            "last": last,
            "horizon": horizon,
            "erased": dict(applied),
        }
        self._accounts: list[bytes] = []
        self._dims: dict[bytes, int] = {}
        self._account_cell: list[Rows] = []
        self._account_seat: list[Rows] = []
        self._blocks: list[bytes] = []
        self._block_row: list[int] = [0]
        self._parts: list[tuple[Rows, NDArray[np.uint64], Rows, NDArray[np.uint64]]] = []
        self._seats = 0
        self._horizon = horizon
        self._bounds = (I64_MAX, I64_MIN)
        self._next = I64_MAX
        self.events = 0

    @property
    def cells(self) -> int:
        return self._block_row[-1]

    def add(self, part: Folded) -> None:
        """Append a part."""
        dims = np.array([self._dims.setdefault(d, len(self._dims)) for d in part.dims], np.int64)
        first, count = self.cells, len(part.accounts)
        known = np.arange(count)
        self._account_cell.append(first + np.searchsorted(part.keys[:, ACCOUNT], known))
        self._account_seat.append(self._seats + np.searchsorted(part.seats[:, ACCOUNT], known))
        keys, seats = part.keys.copy(), part.seats.copy()
        keys[:, DIMS], seats[:, DIMS] = dims[keys[:, DIMS]], dims[seats[:, DIMS]]
        seats[:, ACCOUNT] += len(self._accounts)
        for at in range(0, len(keys), BLOCK_ROWS):
            end = min(at + BLOCK_ROWS, len(keys))
            self._blocks.append(pack_block(keys[at:end], part.cells[at:end]))
            self._block_row.append(first + end)
        self._parts.append((part.member_cell + first, part.members, seats, part.seat_members))
        self._accounts += [name.encode() for name in part.accounts]
        self._seats += len(seats)
        self.events += part.count
        buckets, moments = part.keys[:, BUCKET], part.seats[:, TIMESTAMP]
        for later in (buckets[buckets != OPENING], moments[moments >= self._horizon]):
            self._next = min(self._next, int(later.min(initial=I64_MAX)))
        for least, most in _bounds(part):
            self._bounds = (min(self._bounds[0], least), max(self._bounds[1], most))

    def finish(self) -> tuple[dict[str, Any], Arrays]:
        """Return state and arrays of the container."""
        parts = self._parts or [_NO_PART]
        members, hashes, seats, seat_members = (
            np.concatenate([part[place] for part in parts]) for place in range(4)
        )
        dims = list(self._dims)
        arrays: Arrays = {
            "text": np.frombuffer(b"".join(self._accounts), np.uint8),
            "text_end": _ends(self._accounts),
            "dims": np.frombuffer(b"".join(dims), np.uint8),
            "dims_end": _ends(dims),
            "account_cell": np.concatenate([*self._account_cell, [self.cells]]).astype(np.int64),
            "account_seat": np.concatenate([*self._account_seat, [self._seats]]).astype(np.int64),
            "block_row": np.array(self._block_row, np.int64),
            "block_end": _ends(self._blocks),
            "blocks": np.frombuffer(b"".join(self._blocks), np.uint8),
            "member_cell": members.astype(np.uint32),
            "members": hashes,
            "seats": seats,
            "seat_members": seat_members,
        }
        if self._reached is not None:
            arrays["reached"] = self._reached
        state = self._state | {
            "events": self.events,
            "min_timestamp": self._bounds[0],
            "max_timestamp": self._bounds[1],
            "next_timestamp": self._next,
        }
        return state, arrays


class TotalsFile:
    """Reads a totals file."""

    def __init__(self, state: dict[str, Any], arrays: Arrays) -> None:
        """Raises Damaged when it is none, or of another version."""
        if state.get("kind") != KIND or state.get("version") not in VERSIONS:
            raise Damaged(0, "no totals file of a known version")
        self.first: int = state["first"]  # log files covered
        self.last: int = state["last"]
        self.horizon: int = state["horizon"]
        # Of each partition the floor of the last erasure that is applied: `Erasures.latest`.
        self.applied: dict[int, int] = state.get("erased", {})
        self.events: int = state["events"]
        self.min_timestamp: int = state["min_timestamp"]
        self.max_timestamp: int = state["max_timestamp"]
        # The earliest that is not part of the opening state.
        self.next_timestamp: int = state["next_timestamp"]
        self._arrays = arrays
        self._text_end: Rows = arrays["text_end"]
        self._account_cell: Rows = arrays["account_cell"]
        self._account_seat: Rows = arrays["account_seat"]

    @property
    def account_count(self) -> int:
        return len(self._text_end)

    @property
    def reached(self) -> Rows | None:
        """The greatest index of an op with rows of each partition, or -1; None: older files."""
        return self._arrays.get("reached")

    @property
    def cell_count(self) -> int:
        return int(self._account_cell[-1])

    @property
    def has_seats(self) -> bool:
        """Does it hold rows that add or remove a member?"""
        return bool(self._account_seat[-1])

    def account(self, place: int) -> bytes:
        """Return the text of an account."""
        start = int(self._text_end[place - 1]) if place else 0
        text: bytes = self._arrays["text"][start : int(self._text_end[place])].tobytes()
        return text

    def place_of(self, account: bytes) -> int:
        """Return the first account that is not before this one."""
        return bisect_left(range(self.account_count), account, key=self.account)

    def spans(self, account: str, subtree: bool) -> Iterator[Span]:
        """Yield the accounts asked for ("": all), in pieces of a bounded number of cells."""
        text = account.encode()
        if not account:
            yield from self._pieces(0, self.account_count)
            return
        place = self.place_of(text)
        if place < self.account_count and self.account(place) == text:
            yield from self._pieces(place, place + 1)
        if subtree:  # "0" follows "/"
            yield from self._pieces(self.place_of(text + b"/"), self.place_of(text + b"0"))

    def accounts(self, span: Span) -> list[str]:
        return [self.account(place).decode() for place in range(*span)]

    def read(self, span: Span) -> Folded:
        """Return what some accounts have."""
        low, high = span
        first, last = int(self._account_cell[low]), int(self._account_cell[high])
        seat, seats_end = int(self._account_seat[low]), int(self._account_seat[high])
        keys, cells = self._cells(first, last)
        sizes = np.diff(self._account_cell[low : high + 1])
        keys[:, ACCOUNT] = np.repeat(np.arange(high - low), sizes)
        seats = self._arrays["seats"][seat:seats_end].copy()
        seats[:, ACCOUNT] -= low
        owners = self._arrays["member_cell"]
        begin, end = np.searchsorted(owners, [first, last]).tolist()
        dims = np.concatenate([keys[:, DIMS], seats[:, DIMS]])
        used, place = np.unique(dims, return_inverse=True)
        keys[:, DIMS], seats[:, DIMS] = place[: len(keys)], place[len(keys) :]
        return Folded(
            self.accounts(span),
            [self._dims(at) for at in used.tolist()],
            keys,
            cells,
            owners[begin:end].astype(np.int64) - first,
            self._arrays["members"][begin:end],
            seats,
            self._arrays["seat_members"][seat:seats_end],
        )

    def _pieces(self, low: int, high: int) -> Iterator[Span]:
        while low < high:
            enough = int(self._account_cell[low]) + SPAN_CELLS
            end = int(np.searchsorted(self._account_cell[: high + 1], enough, side="right")) - 1
            end = min(max(end, low + 1), high)
            yield low, end
            low = end

    def _cells(self, first: int, last: int) -> tuple[Rows, Rows]:
        starts, ends = self._arrays["block_row"], self._arrays["block_end"]
        keys, cells = [np.empty((0, 4), np.int64)], [np.empty((0, CELL_WORDS), np.int64)]
        begin = int(np.searchsorted(starts, first, side="right")) - 1
        for block in range(begin, int(np.searchsorted(starts, last)) if last > first else begin):
            low, high = int(starts[block]), int(starts[block + 1])
            start = int(ends[block - 1]) if block else 0
            raw = self._arrays["blocks"][start : int(ends[block])].tobytes()
            block_keys, block_cells = unpack_block(raw, high - low)
            wanted = slice(max(first - low, 0), min(last, high) - low)
            keys.append(block_keys[wanted])
            cells.append(block_cells[wanted])
        return np.concatenate(keys), np.concatenate(cells)

    def _dims(self, place: int) -> bytes:
        ends = self._arrays["dims_end"]
        start = int(ends[place - 1]) if place else 0
        text: bytes = self._arrays["dims"][start : int(ends[place])].tobytes()
        return text


_NO_PART = (
    np.empty(0, np.int64),
    np.empty((0, 2), np.uint64),
    np.empty((0, SEAT_WORDS), np.int64),
    np.empty((0, 2), np.uint64),
)


def _bounds(part: Folded) -> Iterator[tuple[int, int]]:
    """Yield the earliest and the latest timestamp, of cells and of rows of members."""
    if len(part.cells):
        yield (
            int(part.cells[:, cell_rows.FIRST_TS].min()),
            int(part.cells[:, cell_rows.LATEST_TS].max()),
        )
    if len(part.seats):
        yield int(part.seats[:, TIMESTAMP].min()), int(part.seats[:, TIMESTAMP].max())


def _ends(texts: list[bytes]) -> Rows:
    return np.cumsum([len(text) for text in texts], dtype=np.int64)
