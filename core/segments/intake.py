"""Takes the stored rows of a full log file, checked, for the segment that is made from it.

The segment will be the only copy, so every header, record and count is checked here: what does not
check is Corrupt, and no segment is made.  Memory: about 130 bytes a row, in `IntakeRoom`.

Does not know: files; the bytes come in windows of whole blocks.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import scan
from meterd.core.kernels import segment_rows as kernels
from meterd.core.kernels.index import clear, make_index
from meterd.core.kernels.memory import reserve
from meterd.core.kernels.segment_rows import Intake
from meterd.core.segments.encoder import Batch, SegmentLog
from meterd.protocol import log_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.limits import ACCOUNT_SIZE_MAX
from meterd.protocol.log_format import FILE_HEADER_SIZE, Damaged
from meterd.protocol.segment_format import FILE

METRIC_NUMBERS: Final = 1 << 16
RECORD_SIZE_MIN: Final = log_format.RECORD_HEADER_SIZE + log_format.SLICE_SIZE
# Room is made a quarter larger than needed, for files differ.
GROWTH: Final = 4
# What in the state of a walk is a place in the file.
PLACES: Final = [scan.AT, scan.BLOCK_END, scan.BLOCK_AT]


class LogIntake:
    """Takes one log file: `take` for each window, then `finish`."""

    def __init__(
        self,
        path: str,
        log_size: int,
        row_count: int,
        refused: NDArray[np.uint8],
        identity_key: NDArray[np.uint64],
        room: IntakeRoom | None = None,
    ) -> None:
        """`row_count`: rows in the file, as those know who have applied it."""
        self._path = path
        self._log_size = log_size
        self._row_count = row_count
        self._refused = refused
        self._key = identity_key
        self._state = np.zeros(5, np.int64)
        self._state[scan.BLOCK_END] = FILE_HEADER_SIZE
        self._room = room or IntakeRoom()
        self._intake = self._room.intake(log_size, row_count)
        self._last_crc = 0

    @property
    def block_end(self) -> int:
        """Where the last block taken ends."""
        return int(self._state[scan.BLOCK_END])

    def take(self, data: NDArray[np.uint8], begin: int) -> None:
        """Take what the file holds from `begin` on: the next whole blocks.  Raises Corrupt."""
        self._state[PLACES] -= begin
        try:
            self._check(data, begin)
            kernels.take_records(
                data, len(data), self._state, self._refused, self._key, 0, self._intake
            )
        finally:
            self._state[PLACES] += begin

    def _check(self, data: NDArray[np.uint8], begin: int) -> None:
        """Check every header and record of a window before anything in it is used."""
        state = self._state.copy()
        listed = np.empty((len(data) // RECORD_SIZE_MIN + 1, 3), np.int64)
        count = int(kernels.list_records(frozen(data), len(data), state, listed))
        if count < 0:
            raise Corrupt(self._path, int(state[scan.AT]) + begin, "no record of a log (segment)")
        if state[scan.ROW] > self._row_count:
            reason = f"more than the {self._row_count} rows that were applied"
            raise Corrupt(self._path, begin, reason)
        view = data.data
        try:
            self._check_blocks(view, int(self._state[scan.BLOCK_END]))
            for offset, size, _ in listed[:count].tolist():
                log_format.check_record(view, offset, size)
        except Damaged as damage:
            raise Corrupt(self._path, damage.offset + begin, damage.reason) from damage

    def _check_blocks(self, view: memoryview, at: int) -> None:
        while at < len(view):
            header, self._last_crc = log_format.parse_block(view, at)
            at += header.block_size

    def finish(self, created: int = 0) -> tuple[Batch, SegmentLog]:
        """Return the stored rows in order, and what is kept of the log.  Raises Corrupt."""
        if int(self._state[scan.ROW]) != self._row_count:
            reason = f"{int(self._state[scan.ROW])} rows where {self._row_count} were applied"
            raise Corrupt(self._path, self._log_size, reason)
        intake, counters = self._intake, self._intake.counters
        count, accounts = int(counters[kernels.ROWS]), int(counters[kernels.ACCOUNTS])
        rank = np.arange(accounts, dtype=np.int64)
        order, *spare = self._room.order()
        kernels.order_accounts(intake.text, intake.text_end, intake.partition, rank, order)
        places = np.empty(accounts, np.int64)
        places[rank] = np.arange(accounts)
        starts = np.zeros(accounts + 1, np.int64)
        rows = intake.rows[:count]
        kernels.order_rows(rows, intake.metric_rows, places, starts, tuple(spare), order)
        sets = int(counters[kernels.SETS])
        batch = Batch(
            rows,
            order[:count],
            intake.id_text,
            intake.text,
            intake.text_end[:accounts],
            intake.sets,
            intake.set_end[:sets],
            np.full(sets, -1, np.int64),
        )
        files = np.array([(0, self._last_crc, self._log_size)], FILE)
        slices = int(counters[kernels.SLICES])
        log = SegmentLog(files, self._row_count, intake.slices[:slices], intake.digests[:slices])
        return batch, log


class IntakeRoom:
    """Memory into which one log file after another is taken.

    The first touch of a page costs as much as forty bytes of work, so what was touched is kept and
    used for the next file: about 130 bytes a row of the largest one.
    """

    def __init__(self) -> None:
        self._log_size = self._row_count = 0
        self._intake: Intake | None = None
        self._order: tuple[NDArray[np.int64], ...] = ()

    def intake(self, log_size: int, row_count: int) -> Intake:
        """Return an empty intake for everything a file can hold; the one before is used up."""
        if self._intake is None or log_size > self._log_size or row_count > self._row_count:
            self._log_size = log_size + log_size // GROWTH
            self._row_count = row_count + row_count // GROWTH
            self._intake = _make_intake(self._log_size, self._row_count)
            pairs = [reserve((self._row_count, 2), np.int64, large_pages=True) for _ in range(2)]
            counts = np.empty(kernels.DIGITS, np.int64)
            self._order = (reserve((self._row_count,), np.int64), *pairs, counts)
        else:
            intake = self._intake
            clear(intake.account_index)
            clear(intake.set_index)
            for used in (intake.metric_rows, intake.counters, intake.seen_accounts):
                used[:] = 0
            intake.seen_sets[:] = 0
        return self._intake

    def order(self) -> tuple[NDArray[np.int64], ...]:
        """Return what rows are put in order with: order, two times pairs, counts of digits."""
        return self._order


def _make_intake(log_size: int, row_count: int) -> Intake:
    """Return room for everything a file can hold; only what is used takes memory."""
    text = min(log_size, row_count * ACCOUNT_SIZE_MAX)
    slices = log_size // log_format.SLICE_SIZE
    return Intake(
        reserve((row_count, kernels.ROW_WORDS), np.int64, large_pages=True),
        make_index(row_count),
        reserve((text + 8,), np.uint8),
        reserve((row_count,), np.int64),
        reserve((row_count,), np.int64),
        make_index(row_count),
        reserve((log_size,), np.uint8),
        reserve((row_count,), np.int64),
        reserve((log_size,), np.uint8),
        reserve((slices, 4), np.int64),
        reserve((slices, 2), np.uint64),
        np.zeros(METRIC_NUMBERS, np.int64),
        np.zeros(7, np.int64),
        np.zeros(kernels.SEEN, np.int64),
        np.zeros(kernels.SEEN, np.int64),
        np.zeros(kernels.TOGETHER, np.int64),
    )
