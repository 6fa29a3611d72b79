"""Collects what log files hold for a question, a file at a time.

`Gathering` counts rows into partial cells, `find_matches` finds events for a page.  Both take one
`LogRows` after another, so whoever reads the files may do something else in between.

Does not know: files, clocks, where rows were found (`core/log/index.py`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import apply
from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels import gather as kernels
from meterd.core.kernels.gather import Found, LogRows, Wanted
from meterd.core.kernels.index import Index, make_index
from meterd.core.questions.partial_cells import Members, PartialCells, Seats
from meterd.core.questions.question import Question
from meterd.core.state.erasures import Erasures, none_erased
from meterd.core.state.registry import MetricEntry
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import I64_MAX, I64_MIN

# What one question may hold at most; tables start small and grow by a factor.
CELLS_MAX: Final = 1 << 22
MEMBERS_MAX: Final = 1 << 24
GROWTH: Final = 8
# Cells by metric and window that are kept beside those tables.
PLAIN_CELLS_MAX: Final = 1 << 14
# Rows compared before what matches is counted.
CHUNK_ROWS: Final = 1 << 16

MODES: Final = {
    (True, False): kernels.ANY_ACCOUNT,
    (False, False): kernels.ONE_ACCOUNT,
    (False, True): kernels.SUBTREE,
}


class Room(NamedTuple):
    """How much the tables of a gathering hold."""

    cells: int = 1 << 10
    dims: int = 1 << 16
    members: int = 1 << 10
    seats: int = 1 << 10
    accounts: int = 1 << 10
    text: int = 1 << 14


class Gathering:
    """Counts rows of log files for one question.  Changed only through `count`."""

    def __init__(
        self,
        question: Question,
        entries: list[MetricEntry],
        identity_key: NDArray[np.uint64],
        erasures: Erasures | None = None,
    ) -> None:
        self._key = identity_key.copy()
        self._erasures = erasures or none_erased(identity_key)
        self.erased = 0  # rows left out because their accounts were erased
        self.wanted = make_wanted(question, entries)
        self._numbers = np.array([entry.number for entry in entries], np.int64)
        self._edges = list(question.edges)
        self._room = Room()
        self._found = _make_found(self._room)
        self._recent = np.empty((kernels.RECENT, 3), np.int64)
        self._matches = np.empty((0, kernels.MATCH_WORDS), np.int64)

    def count(self, log: LogRows, rows: NDArray[np.uint32]) -> None:
        """Count those of the rows (numbers, rising) that the question is about.

        Raises BadRequest when there is more to count than one answer may hold.
        """
        if len(self._matches) < min(len(rows), CHUNK_ROWS):
            size = min(len(rows), CHUNK_ROWS)
            self._matches = np.empty((size, kernels.MATCH_WORDS), np.int64)
        at = 0
        while at < len(rows):
            some = frozen(rows[at:])
            found, looked_at = kernels.match_rows(log, some, self.wanted, self._matches)
            at += looked_at
            self.count_matches(log.data, self._matches[:found])

    @property
    def needs_properties(self) -> bool:
        """Whether what is counted depends on more than account, metric and time."""
        kinds = self.wanted.metrics[:, kernels.KIND]
        return bool(self.wanted.needed.any() or (kinds == apply.UNIQUE_PROPERTY).any())

    def count_matches(self, data: NDArray[np.uint8], matches: NDArray[np.int64]) -> None:
        """Count rows that match, whose entries lie in `data`; those erased are moved out of them.

        Raises BadRequest as `count`.
        """
        kept = self._erasures.keep(data, matches)
        self.erased += len(matches) - kept
        matches = matches[:kept]
        self._recent[:, 0] = -1
        while True:
            counted = kernels.count_rows(
                data, matches, self.wanted, self._key, self._found, self._recent
            )
            if counted == len(matches):
                return
            matches = matches[counted:]
            self._grow()

    @property
    def is_plain(self) -> bool:
        """Whether a row's cell depends on its metric and time alone."""
        counts_members = (self.wanted.metrics[:, kernels.KIND] != apply.NOT_UNIQUE).any()
        plain = not (self.wanted.by_account or self.needs_properties or counts_members)
        return plain and len(self._numbers) * (len(self.wanted.edges) - 1) <= PLAIN_CELLS_MAX

    def plain_cells(self) -> NDArray[np.int64]:
        """Return empty cells for `segment_match.fold_runs`; `add_plain` takes them."""
        count = len(self._numbers) * (len(self.wanted.edges) - 1) + 1
        cells = np.zeros((count, cell_rows.CELL_WORDS), np.int64)
        cells[:, cell_rows.MIN], cells[:, cell_rows.MAX] = I64_MAX, I64_MIN
        return cells

    def add_plain(self, cells: NDArray[np.int64]) -> None:
        """Add cells in which a segment's rows were counted.  Raises BadRequest as `count`."""
        while True:
            added = kernels.add_cells(cells, self.wanted, self._numbers, self._key, self._found)
            if added == len(cells) - 1:
                return
            self._grow()

    def _grow(self) -> None:
        room = Room(*(size * GROWTH for size in self._room))
        if room.cells > CELLS_MAX or room.members > MEMBERS_MAX:
            raise BadRequest("too much to count for one answer; ask for less at once")
        grown = _make_found(room)
        _copy_found(self._found, grown)
        self._room, self._found = room, grown

    def partial(self) -> PartialCells:
        """Return everything counted so far."""
        found, counters = self._found, self._found.counters
        count = int(counters[kernels.CELLS])
        cells = found.cells[:count].copy()
        account = cells[:, cell_rows.SERIES].astype(np.int32)
        edges = np.array(self._edges or [0], np.int64)
        window = edges[np.clip(found.window[:count], 0, len(edges) - 1)]
        seats = int(counters[kernels.SEATS])
        members = found.members[: int(counters[kernels.MEMBERS])]
        return PartialCells(
            cells,
            found.metric[:count].copy(),
            account,
            window,
            _texts(found.dims, found.dims_end[:count]),
            Members(members[:, 0].astype(np.int64), members[:, 1:].copy()),
            [
                text.decode()
                for text in _texts(found.text, found.text_end[: int(counters[kernels.ACCOUNTS])])
            ],
            Seats(found.seats[:seats].copy(), found.seat_members[:seats].copy()),
        )


def make_wanted(question: Question, entries: list[MetricEntry]) -> Wanted:
    """Return what the kernels compare rows with; `entries` are the versions wanted."""
    local = np.full(max((entry.number for entry in entries), default=0) + 1, -1, np.int32)
    metrics = np.zeros((max(1, len(entries)), 6), np.int64)
    keys = bytearray()
    places: list[tuple[int, int]] = []
    needed: list[bool] = []
    asked = {key for key, _ in question.filters} | set(question.group_by)
    for place, entry in enumerate(entries):
        definition = entry.definition
        local[entry.number] = place
        row = metrics[place]
        row[kernels.KIND], row[kernels.DECIMALS] = apply.NOT_UNIQUE, definition.decimals
        row[kernels.DIM_FIRST], row[kernels.DIM_COUNT] = len(places), len(definition.dimensions)
        for key in sorted(definition.dimensions, key=str.encode):
            places.append((len(keys), len(keys) + len(key.encode())))
            keys += key.encode()
            needed.append(key in asked)
        if definition.aggregation == "unique" and question.kind != "events":
            on = (definition.unique_on or "").encode()
            row[kernels.KIND] = apply.UNIQUE_PROPERTY if on else apply.UNIQUE_VALUES
            row[kernels.MEMBER_START], row[kernels.MEMBER_END] = len(keys), len(keys) + len(on)
            keys += on
    return Wanted(
        np.frombuffer(question.account.encode(), np.uint8),
        MODES[not question.account, question.subtree],
        question.kind == "accounts",
        local,
        metrics,
        np.frombuffer(bytes(keys), np.uint8),
        np.array(places or [(0, 0)], np.int64),
        np.array(needed or [False], np.uint8),
        np.array(question.edges or (question.start, question.end), np.int64),
    )


def _make_found(room: Room) -> Found:
    return Found(
        make_index(room.cells),
        np.empty((room.cells, cell_rows.CELL_WORDS), np.int64),
        np.empty(room.cells, np.uint16),
        np.empty(room.cells, np.int32),
        np.empty(room.dims, np.uint8),
        np.empty(room.cells, np.int64),
        make_index(room.members),
        np.empty((room.members, 3), np.uint64),
        np.empty((room.seats, 4), np.int64),
        np.empty((room.seats, 2), np.uint64),
        make_index(room.accounts),
        np.empty(room.text, np.uint8),
        np.empty(room.accounts, np.int64),
        np.zeros(6, np.int64),
    )


def _copy_found(old: Found, new: Found) -> None:
    """Copy everything into larger tables."""
    for name in Found._fields:
        source, target = getattr(old, name), getattr(new, name)
        if isinstance(source, Index):
            kernels.copy_entries(source, target)
        else:
            target[: len(source)] = source


def _texts(heap: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[bytes]:
    """Return texts that lie one after another."""
    raw = heap[: int(ends[-1]) if len(ends) else 0].tobytes()
    return [raw[start:end] for start, end in pairwise([0, *ends.tolist()])]


def find_matches(
    log: LogRows, rows: NDArray[np.uint32], wanted: Wanted, limit: int, erasures: Erasures
) -> tuple[NDArray[np.int64], int]:
    """Return at most `limit` matching rows (kernels/gather.py), and how many were looked at."""
    out = np.empty((min(limit, len(rows)), kernels.MATCH_WORDS), np.int64)
    found, looked_at = kernels.match_rows(log, frozen(rows), wanted, out)
    return out[: erasures.keep(log.data, out[:found])], int(looked_at)
