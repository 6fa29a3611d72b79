"""Which rows of the log count, as the bitmaps of refused rows have it after a start."""

from __future__ import annotations

from typing import Any

import lz4.block
import numpy as np

from meterd.core.kernels.tables import Capacity
from meterd.core.log.commit_queue import Ready
from meterd.core.log.refused_rows import RefusedRows
from meterd.core.log.scan import FileScan
from meterd.core.state.applier import Applier
from meterd.core.state.machine import StateMachine
from meterd.protocol.log_format import Record
from tests.support.log_builder import LogBuilder, LoggedEvent

CAPACITY = Capacity(30_000, 100, 400, 1_600, 400)


def records() -> list[Record]:
    """Two records of three rows each, all of one partition."""
    builder = LogBuilder()
    for batch in range(2):
        builder.block([[LoggedEvent("a", f"{batch}-{n}", 1, 1, 5) for n in range(3)]])
    found = [block.records for block in FileScan("wal.log", memoryview(bytes(builder.data)))]
    return [one for (one,) in found]


def started() -> Applier:
    """With a checkpoint that knows the first record, and that its second row was refused."""
    applier = Applier(StateMachine((1, 2), CAPACITY))
    saved = RefusedRows()
    saved.note(1, 0, np.array([False, True, False]))
    applier.refused = RefusedRows.from_map(saved.to_map())
    return applier


def bits(applier: Applier) -> list[int]:
    packed, count = applier.refused.packed(1)
    raw = np.frombuffer(lz4.block.decompress(packed), np.uint8)
    found: list[int] = np.unpackbits(raw, count=count, bitorder="little").tolist()
    return found


def passed(record: Record, first_row: int) -> Ready[Any]:
    """A record of which the checkpoint has applied every op."""
    every = np.ones(len(record.slices), np.bool_)
    return Ready(record, (record.sequence, 1, 0, first_row), None, ~every, every, True)


def test_of_what_the_checkpoint_had_applied_its_own_bitmap_speaks() -> None:
    first, _ = records()
    applier = started()
    applier.events(passed(first, 0))
    assert bits(applier) == [0, 1, 0]


def test_a_repair_behind_the_checkpoint_of_what_was_not_lost_counts_for_nothing() -> None:
    first, repair = records()
    applier = started()
    applier.events(passed(first, 0))
    applier.events(passed(repair, 3))
    assert bits(applier) == [0, 1, 0, 1, 1, 1]
